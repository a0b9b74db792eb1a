"""Hazards, a discrete-time survival model; `deepres.hazard_nll` and `deepres.hazard_value` are its functions.

options          what a call may ask for
op               the equations, the public functions, the ops as PyTorch sees them
reference        their meaning in plain PyTorch
cpu, triton      the backends; triton_kernels is the device code of the second, csrc/ that of the first
"""
