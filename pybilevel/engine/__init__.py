"""The engine: one verb, `unroll`, over the fused kernels and the generic interpreter of plans."""
