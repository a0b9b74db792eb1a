"""The ops that deepres exists for, each served by several implementations with one meaning."""

from deepres.kernels.dispatch import backends
from deepres.kernels.hazard.op import hazard_nll, hazard_value
from deepres.kernels.info_nce.op import info_nce
from deepres.kernels.residual_stack.op import residual_stack

__all__ = ["backends", "hazard_nll", "hazard_value", "info_nce", "residual_stack"]
