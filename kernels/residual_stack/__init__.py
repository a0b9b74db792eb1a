"""The residual stack, every layer of a very deep network in one call; `deepres.residual_stack` is its function.

    options          what a call may ask for
    op               the equations, the public function, the op as PyTorch sees it
    reference        its meaning in plain PyTorch
    cpu, triton, cuda   the backends; triton_kernels is the device code of the second, csrc/ that of the others
    memory           bytes that a call keeps for backward

The name `residual_stack` in deepres.kernels is the function: import from these modules, `from ... import ...`.
"""
