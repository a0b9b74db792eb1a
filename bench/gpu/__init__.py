"""GPUs: what one should take (model), what the compilers make of the kernels, and what one does (check)."""
