"""InfoNCE, the contrastive loss over a batch of pairs; `deepres.info_nce` is its function.

    options          what a call may ask for
    checks           the arguments of a call, checked
    op               the equations, the public function, the op as PyTorch sees it
    reference        its meaning in plain PyTorch
    cpu, triton      the backends; triton_kernels is the device code of the second, csrc/ that of the first

The name `info_nce` in deepres.kernels is the function: import from these modules, `from ... import ...`.
"""
