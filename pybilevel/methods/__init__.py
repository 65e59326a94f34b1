"""How the hypergradient is computed: reverse, forward, implicit or spectral mode."""

from pybilevel.methods.methods import Forward, Implicit, Method, Reverse, Spectral

__all__ = ["Forward", "Implicit", "Method", "Reverse", "Spectral"]
