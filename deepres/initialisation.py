"""How the blocks of a very deep network start."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def start_blocks_(gamma: Tensor, skip_every: int, init: str) -> None:
    """Set the scale of every block's last LayerNorm: 1/sqrt(blocks) ("scaled"), or 0 ("zero", the identity).

        gamma[skip_every - 1 :: skip_every] = blocks ** -0.5

    gamma: [D, W], or [E, D, W] of E stacks side by side. As published each block adds a constant of mean 0.207 to the
    stream, so B blocks start with a stream of rms 0.2 B, of which only 1.8 depends on the input; with B^-1/2 its rms
    is 0.9 at every depth (as SkipInit scales residual branches, arXiv 2002.10444, and 2206.06929 at the inverse root
    of depth, here by the LayerNorm that is there already).
    """
    last = gamma[..., skip_every - 1 :: skip_every, :]
    last.fill_(0.0 if init == "zero" else last.shape[-2] ** -0.5)
