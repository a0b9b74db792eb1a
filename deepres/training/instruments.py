"""Instruments of deep training: what every residual block does, measured on one batch, beside the training itself.

Of each network of a gradient step, block by block, on the batch's rows

    stream    rms of what leaves the block
    varying   rms of its part that depends on the input, x - mean over the rows
    branch    rms of what the block adds
    gradient  norm of the loss's gradient in the block's Dense weights
    dormant   share of the features whose mean |branch| is below 0.025 of the block's mean (arXiv 2302.12902)
    rank      of the last block's stream, exp of the entropy of its singular values' shares (effective rank; Roy and
              Vetterli 2007); NaN of the others
    saturated of an actor whose actions go through tanh, share of its outputs that are not live (see `live_outputs`),
              in its last block's row; else NaN

Nothing of the training changes: no parameter, no moment, no random number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepres.data.batch import Batch
from deepres.networks import LOG_STD_MAX, LOG_STD_MIN, Actor, DeterministicActor, Encoder, ResidualStack
from deepres.training.learner import Learner

Row = dict[str, Any]
DORMANT = 0.025
LIVE_MEAN = 7.6  # 1 - tanh^2 is 1e-6 there
LIVE_SPREAD = 1e-3


def measure(learner: Learner, batch: Batch, noise: Tensor) -> list[Row]:
    """A row for every block of every network that a gradient step goes through; see the module's head.

    Of networks side by side (twin values) the first is measured.
    """
    stacks = {
        name.removesuffix(".trunk.stack"): module
        for name, module in learner.algorithm.named_modules()
        if isinstance(module, ResidualStack)
    }
    actors = {
        name: module
        for name, module in learner.algorithm.named_modules()
        if isinstance(module, Actor | DeterministicActor)
    }
    kept = {p: p.grad for p in learner.algorithm.parameters()}
    for p in kept:
        p.grad = None
    with _inputs(stacks) as seen, _inputs(actors) as observed:
        total, _ = learner.losses(batch, noise)
        total.backward()
    rows = [row for name, stack in stacks.items() if name in seen for row in _blocks(name, stack, seen[name])]
    ends = {row["network"]: row for row in rows}  # the last block's
    for name in observed.keys() & ends.keys():
        live = torch.cat(live_outputs(actors[name], observed[name]), dim=-1)
        ends[name]["saturated"] = 1 - float(live.float().mean())
    for p, grad in kept.items():
        p.grad = grad
    return rows


@torch.no_grad()
def live_outputs(actor: nn.Module, obs: Tensor) -> tuple[Tensor, ...]:
    """Of an actor's outputs on obs [B, in_dim], which can still learn: where its tanh has a slope, [B, A] each.

        means: abs(mean) < 7.6,    and of an `Actor` also    log_std: 1 - tanh(raw)^2 > 1e-3

    mean, raw: what tanh is given.
    """
    if isinstance(actor, DeterministicActor):
        return (Encoder.forward(actor, obs).abs() < LIVE_MEAN,)
    mean, log_std = actor(obs)
    middle, half = (LOG_STD_MAX + LOG_STD_MIN) / 2, (LOG_STD_MAX - LOG_STD_MIN) / 2
    return mean.abs() < LIVE_MEAN, 1 - ((log_std - middle) / half).square() > LIVE_SPREAD


@contextmanager
def _inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each module is first given within the block."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def see(
            _: nn.Module, inputs: tuple[Any, ...]
        ) -> None:  # what a hook returns would be the module's input
            seen.setdefault(name, inputs[0].detach())

        return see

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _blocks(name: str, stack: ResidualStack, x: Tensor) -> list[Row]:
    from deepres.kernels import residual_stack

    one = (lambda p: p) if stack.members is None else (lambda p: p[0])
    parts = [None if p is None else one(p) for p in (stack.weight, stack.bias, stack.gamma, stack.beta)]
    grad = stack.weight.grad
    grads = None if grad is None else one(grad)
    x = x[0] if x.ndim == 3 else x
    size = stack.skip_every or 1
    rows: list[Row] = []
    depth = parts[0].shape[0]  # type: ignore[union-attr]
    for first in range(0, depth, size):
        layers = slice(first, first + size)
        weight, bias, gamma, beta = (None if p is None else p[layers] for p in parts)
        assert weight is not None and bias is not None
        y = residual_stack(x, weight, bias, gamma, beta, **stack.options)
        branch = y - x
        size_of = branch.abs().mean(dim=0)
        rows.append(
            {
                "network": name,
                "block": first // size,
                "stream": _rms(y),
                "varying": _rms(y - y.mean(dim=0)),
                "branch": _rms(branch),
                "gradient": math.nan if grads is None else float(grads[layers].norm()),
                "dormant": float((size_of <= DORMANT * size_of.mean()).float().mean()),
                "rank": effective_rank(y) if first + size >= depth else math.nan,
                "saturated": math.nan,
            }
        )
        x = y
    return rows


def effective_rank(x: Tensor) -> float:
    """exp(-sum_i p_i log p_i), p the singular values of x [B, W] less its mean row, over their sum; NaN of an x that is
    not finite."""
    if not x.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals((x - x.mean(dim=0)).double())
    shares = values / values.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
