"""Kernels of a decode step on a CPU, compiled by numba when they are first imported and kept on disk after that.

team            runs a kernel on the threads that torch's own operations use
product         products of few rows with a weight
paged_decode    attention of one new token a row over pages where they lie
layer           norm, rotation and activation between the products of a layer
blocks          inner loops of product and paged_decode, whose sums stay in registers, written in the terms of vector
"""
