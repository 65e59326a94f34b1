"""How the hypergradient is computed: reverse, forward, implicit or spectral mode."""

from pybilevel.hypergradient.methods import Forward, Implicit, Method, Reverse, Spectral

__all__ = ["Forward", "Implicit", "Method", "Reverse", "Spectral"]
