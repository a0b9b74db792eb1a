"""deepres: very deep residual networks for self-supervised reinforcement learning."""

from deepres._version import __version__
from deepres.kernels import backends, info_nce, residual_stack

__all__ = ["__version__", "backends", "info_nce", "residual_stack"]
