"""Kernels of a decode step on a CPU, compiled by numba when they are first imported and kept on disk after that.

team            runs a kernel on the threads that torch's own operations use
paged_decode    attention of one new token a row over pages where they lie
layer           norm, rotation and activation between the products of a layer, activations [width, tokens]
"""
