"""What the loss of a policy with entropy is made of, each in one kernel where plain PyTorch takes ten or thirty.

op               the equations, the public functions, the ops as PyTorch sees them
reference        their meaning in plain PyTorch, which also serves the CPU
triton           the backend for GPUs; triton_kernels is its device code
"""
