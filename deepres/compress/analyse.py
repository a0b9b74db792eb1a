"""What each residual block of a policy does, measured on states that the policy visited, with the goals it was given.

With the streams x_b and branches F_b of blocks.py, a = a(x_B) the action without noise, means over the N states and,
of actions, their K numbers; every measure is 0 for a block that adds nothing

    exact      sqrt(mean |a_without_b - a|^2)     the block left out, all behind it computed anew: B forwards
    ablated    the same with the block replaced by what it adds on average, x_{b+1} = x_b + mean F_b: where it is much
               less than `exact`, the block serves as a bias; where both are small, it is not used
    gradient   sqrt(mean_i (sum_w g_b F_b)^2 / K),  g_b = d(sum_k v_k a_k) / d x_{b+1},  v = +1 or -1 at random for each
               state and number: one forward and one backward. The mean square over v is mean |J_b F_b|^2 with
               J_b = da / dx_{b+1}: `exact` to first order (arXiv 1611.06440 does so with a loss, for channels)
    angular    mean_i arccos(cos(x_b - mean x_b, x_{b+1} - mean x_{b+1})) / pi; of runs of n blocks x_{b+n}
               (arXiv 2403.17887, there without the means; Swish adds the same positive constant to every stream, so
               raw cosines are all near 1)
    norm       mean_i ||F_b|| / ||x_b||
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepres.compress.blocks import Blocks
from deepres.data.chunks import seen_by
from deepres.machine import plain_torch, seeded
from deepres.policy import Policy
from deepres.training.evaluate import EVAL_SEED

SCORES = ("exact", "ablated", "gradient", "angular", "norm")
"""What blocks can be removed by, the least first."""
STATES = 10_000
_ROWS = 1024  # states at a time: the streams of all blocks are kept for them


@dataclass(frozen=True)
class Analysis:
    """Of every block, in the order of the network; see the module's head.

    runs: n -> of every run of n = 1, 2, 4, ... blocks that begins at block b = 0 ... B - n, its angular distance.
    """

    exact: list[float]
    ablated: list[float]
    gradient: list[float]
    runs: dict[int, list[float]]
    norm: list[float]
    states: int

    @property
    def angular(self) -> list[float]:
        return self.runs[1]

    def score(self, name: str) -> list[float]:
        """The measure called `name`, one of SCORES."""
        return getattr(self, name)


@plain_torch()
@torch.no_grad()
def visited(policy: Policy, states: int = STATES, seed: int = 0) -> Tensor:
    """What the policy sees, [N, S + G] and a column more where it is clocked, in the episodes of `Policy.evaluate()`.

    states: N at most, drawn without replacement from all steps of all episodes. seed: draws them. Rows that are not
    finite are left out. Raises ValueError in one sentence.
    """
    if isinstance(states, bool) or not isinstance(states, int) or states < 2:
        raise ValueError(f"states must be a whole number >= 2, got {states!r}")
    env, player = policy.environments(), policy.player()
    step = env.reset(policy.config.schedule.seed + EVAL_SEED)
    every = max(1, env.episode_length * env.num_envs // (4 * states))
    seen: list[Tensor] = []
    alive = torch.ones_like(step.done)
    for t in range(env.episode_length):
        obs = seen_by(policy.network, env, step)
        if t % every == 0:
            seen.append(obs[alive])
        step = env.step(step, player.act(obs, step.traj_id))
        alive = alive & ~step.done  # what an environment does after its episode is another one's
        if not alive.any():
            break
    rows = torch.cat(seen)
    rows = rows[rows.isfinite().all(dim=1)]
    if len(rows) < 2:
        raise ValueError("the policy's episodes hold no finite observations; evaluate an earlier checkpoint")
    drawn = torch.randperm(len(rows), generator=seeded(seed))[:states]
    return rows[drawn.to(rows.device)]


@plain_torch()
def analyse(blocks: Blocks, obs: Tensor, seed: int = 0) -> Analysis:
    """Measure every block on obs [N, S + G], N >= 2. seed: draws the signs of `gradient`."""
    chunks = obs.split(_ROWS)
    means = sum(_streams(blocks, rows).sum(dim=1) for rows in chunks) / len(obs)  # [B + 1, W]
    assert isinstance(means, Tensor)
    generator = seeded(seed)
    lengths = [2**i for i in range(max(1, blocks.count).bit_length()) if 2**i <= blocks.count]
    exact, ablated, gradient, norm = (torch.zeros(blocks.count, dtype=torch.float64) for _ in range(4))
    runs = {n: torch.zeros(blocks.count + 1 - n, dtype=torch.float64) for n in lengths}
    for rows in chunks:
        x = _streams(blocks, rows)
        without, biased = _left_out(blocks, rows, x, means.diff(dim=0))
        exact += without
        ablated += biased
        gradient += _first_order(blocks, rows, x[0], generator)
        norm += _sum(_ratio(x.diff(dim=0), x[:-1]))
        centred = x - means[:, None]
        for n, angles in runs.items():
            angles += _sum(angle(centred[:-n], centred[n:]))
    count = len(obs)
    return Analysis(
        exact=(exact / count).sqrt().tolist(),
        ablated=(ablated / count).sqrt().tolist(),
        gradient=(gradient / count).sqrt().tolist(),
        runs={n: (angles / count).tolist() for n, angles in runs.items()},
        norm=(norm / count).tolist(),
        states=count,
    )


@torch.no_grad()
def _streams(blocks: Blocks, obs: Tensor) -> Tensor:
    """x_0 ... x_B, [B + 1, N, W]."""
    x = [blocks.start(obs)]
    for block in range(blocks.count):
        x.append(blocks.run(x[-1], block, block + 1))
    return torch.stack(x)


@torch.no_grad()
def _left_out(blocks: Blocks, obs: Tensor, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """[B] each: sum_i mean_k (a_without_b - a)^2, and the same with added[b] [W] in the block's place."""
    action, both = blocks.act(obs, x[-1]), torch.cat([obs, obs])
    errors = []
    for block in range(blocks.count):
        without = torch.cat([x[block], x[block] + added[block]])
        ends = blocks.act(both, blocks.run(without, block + 1, blocks.count))
        errors.append([_sum((half - action).square().mean(dim=1)) for half in ends.split(len(obs))])
    first, second = zip(*errors, strict=True)
    return torch.stack(first), torch.stack(second)


def _first_order(blocks: Blocks, obs: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
    """[B]: sum_i (sum_w g_b F_b)^2 / K."""
    with torch.enable_grad():
        x = [start.requires_grad_()]
        for block in range(blocks.count):
            x.append(blocks.run(x[-1], block, block + 1))
        action = blocks.act(obs, x[-1])
        signs = torch.randint(0, 2, action.shape, generator=generator).to(action) * 2 - 1
        grads = torch.autograd.grad((signs * action).sum(), x[1:])
    with torch.no_grad():
        products = [(g * (y - before)).sum(dim=1) for g, y, before in zip(grads, x[1:], x, strict=False)]
        return torch.stack([_sum(p.square()) for p in products]) / action.shape[1]


def angle(x: Tensor, y: Tensor) -> Tensor:
    """arccos(cos(x, y)) / pi of x and y [..., W], in [0, 1]; 0 to the bit where they are equal, or one is 0.

    2 atan2(|u - v|, |u + v|), u = x / |x|, v = y / |y| (arccos of a cosine near 1 loses half the digits)
    """
    u, v = (torch.nn.functional.normalize(one, dim=-1, eps=1e-30) for one in (x, y))
    apart, along = (torch.linalg.vector_norm(one, dim=-1) for one in (u - v, u + v))
    there = (x != 0).any(dim=-1) & (y != 0).any(dim=-1)
    return torch.where(there, 2 / math.pi * torch.atan2(apart, along), 0.0)


def _ratio(branch: Tensor, x: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-30)
    return torch.linalg.vector_norm(branch, dim=-1) / size


def _sum(values: Tensor) -> Tensor:
    """Over the states, the last dimension, in float64 and on the CPU."""
    return values.double().sum(dim=-1).cpu()
