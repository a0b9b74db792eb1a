"""Adam, in one pass over the parameters, with the verdict on a gradient step made on the device.

Per parameter p with gradient g, at step t (arXiv 1412.6980, algorithm 1; torch.optim.Adam, fused)

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    p = p - lr_t (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

g is scaled down first where the gradient's norm passes `max_grad_norm`, lr_t grows to lr over `warmup_steps` and may
fall again along half a cosine, and nothing at all changes where `skip` is 1. None of it asks the device for a number,
so none of it waits.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

_DOT = 2**30  # numbers to a dot product: beyond 2^31, those of 4096 layers of width 1024, BLAS cannot count


class Adam(torch.optim.Adam):
    """torch.optim.Adam (fused) with clipping, warm-up and a skip flag; its state_dict is torch's own.

    parameters: of one device, float32. lr: step size. warmup_steps: the step size is lr * min(1, t / warmup_steps)
    at step t = 1, 2, ...; 0 has none. decay_steps, last_share: it is multiplied besides by last_share
    + (1 - last_share) (1 + cos(pi min(1, (t - 1) / decay_steps))) / 2, which is torch's CosineAnnealingLR up to there;
    0 steps have none. max_grad_norm: the gradients' Euclidean norm, all parameters together, is brought down to this
    (torch.nn.utils.clip_grad_norm_); None never does.
    """

    # torch's own, less a wrapper that imports the whole compiler (150 MB) to say that it should not trace them
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        last_share: float = 1.0,
        max_grad_norm: float | None = None,
    ):
        parameters = list(parameters)
        super().__init__(parameters, lr=lr, fused=True, capturable=parameters[0].is_cuda)
        self.warmup_steps, self.max_grad_norm = warmup_steps, max_grad_norm
        self.decay_steps, self.last_share = decay_steps, last_share
        self.lr_scale = 1.0
        """Multiplies lr; a run that was rolled back lowers it."""

    def gradients(self) -> list[Tensor]:
        """The gradients that the last backward left."""
        return [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]

    @torch.no_grad()
    def step(self, *, skip: Tensor | None = None, squares: Tensor | None = None) -> None:  # type: ignore[override]
        """One update. skip: [] float32, 1 leaves parameters and moments as they are, 0 does not. squares: of the
        gradients (`squares_of`), where the caller has them.

        With clipping the gradients are left as clipped, as torch's own function leaves them.
        """
        group = self.param_groups[0]
        parameters: list[Tensor] = []
        grads: list[Tensor] = []
        means: list[Tensor] = []
        variances: list[Tensor] = []
        steps: list[Tensor] = []
        self._init_group(group, parameters, grads, means, variances, [], steps)
        if not parameters:
            return
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            grads,
            means,
            variances,
            [],
            steps,
            lr=self._rate(group["lr"] * self.lr_scale, steps[0]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=self._divisor(grads, squares),
            found_inf=skip,
        )
        torch.autograd.graph.increment_version(parameters)  # which the fused kernel leaves out
        if skip is not None:
            torch._foreach_sub_(steps, [skip] * len(steps))

    def _rate(self, lr: float, step: Tensor) -> Any:
        if not (self.warmup_steps or self.decay_steps):
            return lr
        t = step.to(torch.float32 if step.is_cuda else torch.float64)  # what the fused kernels take
        rate = torch.full_like(t, lr)
        if self.warmup_steps:
            rate = (t / self.warmup_steps).clamp(max=1) * lr
        if self.decay_steps:
            turn = math.pi * ((t - 1) / self.decay_steps).clamp(max=1)
            rate = rate * (self.last_share + (1 - self.last_share) * 0.5 * (1 + turn.cos()))
        return rate

    def _divisor(self, grads: list[Tensor], squares: Tensor | None) -> Tensor | None:
        """[] what the gradients are divided by: 1 while their norm is within bounds."""
        if self.max_grad_norm is None:
            return None
        norm = (squares_of(grads) if squares is None else squares).sum().sqrt()
        return ((norm + 1e-6) / self.max_grad_norm).clamp(min=1)


def squares_of(tensors: list[Tensor]) -> Tensor:
    """[len(tensors)] t.square().sum() of each: not finite where an element is not, or is past 1.8e19."""
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(tensors)).square()
    return torch.stack([_square(t.view(-1)) for t in tensors])


def _square(vector: Tensor) -> Tensor:
    if len(vector) > _DOT:
        return reduce(torch.add, map(_square, vector.split(_DOT)))
    return torch.dot(vector, vector)
