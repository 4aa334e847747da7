"""Fused Triton kernels of the model's inner loop; imported only where a CUDA device (or a test) asks for them.

Shape suffixes: T tokens of the step, B rows, D hidden, F feed-forward, N output features, H query heads, K kv heads,
E head dim.
"""
