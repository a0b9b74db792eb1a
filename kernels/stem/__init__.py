"""What follows the product of a network's first layer: its bias, LayerNorm and activation in one kernel.

op               the equations, the function, the ops as PyTorch sees them
reference        their meaning in plain PyTorch, which also serves the CPU
triton           the backend for GPUs; triton_kernels is its device code
"""
