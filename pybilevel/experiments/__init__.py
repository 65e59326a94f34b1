"""The experiments of the paper, on top of the public face of pybilevel only."""
