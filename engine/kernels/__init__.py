"""Fused Triton kernels of the model's inner loop. Nothing here is imported unless a CUDA device (or a test) asks for it.

Shape suffixes: T tokens of the step, B rows, D hidden, F feed-forward, N output features, H query heads, K kv heads, E head dim.
"""
