"""Fused kernels of the model's inner loop: in Triton here, for CUDA; in engine.kernels.cpu compiled by numba.

Imported only where a device (or a test) asks for them. Shape suffixes: T tokens of the step, B rows, D hidden,
F feed-forward, N output features, H query heads, K kv heads, E head dim.
"""
