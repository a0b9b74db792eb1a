"""The stem's bias, LayerNorm and activation in plain PyTorch: what the backend means, the oracle of its tests."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def norm_activation(
    u: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, eps: float, activation: str
) -> Tensor:
    """See op.norm_activation."""
    z = F.layer_norm(u + bias, u.shape[1:], scale, shift, eps)
    return F.silu(z) if activation == "swish" else F.relu(z)
