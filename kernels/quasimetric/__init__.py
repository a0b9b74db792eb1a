"""Distances that keep the triangle inequality but need not be the same both ways, between rows of features.

op           the equations, the public functions, the op as PyTorch sees it
reference    its meaning in plain PyTorch
cpu          the backend in C++
triton       the backend for GPUs; triton_kernels is its device code
"""
