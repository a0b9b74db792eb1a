"""Critics that classify: a value is the mean of a distribution over bins, learned by cross entropy (arXiv 2403.03950).

A critic ends in m numbers; with p their softmax and c the bins' centres, Q(s, g, a) = sum_i p_i c_i. With y as below

    hl_gauss   -sum_i t_i log p_i,  t_i what N(y, sigma^2), held to the support, has in bin i (sigma = 0.75 widths)
    two_hot    the same, t split between the two atoms beside y, so that its mean is y
    c51        the same, t the slow critics' distribution at s', moved to r + discount * c and split so, atom by atom
    td_mse     0.5 (Q - y)^2 of a critic that ends in one number: the control, alike in all else

The target is y = r + discount * min_k Qbar_k(s', g, a'); c51 moves the distribution of the slow critic whose mean is
less. Policy, temperature and slow critics are SAC's (sac.py). With hit = 1 where s' is at the goal, the value is

    dwell      r = (1 - gamma) hit                     discounted share of the time spent at the goal, in [0, 1]
    first_hit  r = hit, which ends the row             gamma^T, T the steps before the goal is reached, in [0, 1]
    step       r = hit - 1, a hit ends the row         -1 for each step until the goal, in [-1 / (1 - gamma), 0]

The actor weighs Q, with "dwell" Q / (1 - gamma), against its entropy: a reward of 1 is worth as much as in SAC.
A row that ends for good elsewhere never reaches its goal: 0, with "step" -1 / (1 - gamma), or falling would be worth as
much as arriving. The policy's entropy is left out of the target, since it would carry values off their support. Bins of
hl_gauss divide the support evenly; atoms of two_hot and c51 lie evenly over it with one at either end (arXiv
1707.06887), so that 0 and 1 are among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deepres.algorithms.base import About
from deepres.algorithms.sac import SAC
from deepres.algorithms.td import SoftOptions, ended
from deepres.data.batch import Batch
from deepres.options import option

_ROWS = 64  # of a batch at a time, where each takes bins * bins numbers


@dataclass(frozen=True)
class FormOptions(SoftOptions):
    """What critics of bounded values have."""

    value: Literal["dwell", "first_hit", "step"] = option("dwell")
    """Share of the time at the goal, gamma^steps until it, or -1 for each step until it."""
    entropy_in_target: bool = option(False)
    """Whether the value of the next state counts the policy's entropy; it then leaves [v_min, v_max] unless widened."""


@dataclass(frozen=True)
class BinOptions(FormOptions):
    """What critics over bins have."""

    bins: int = option(101, least=2)
    """Numbers that a critic ends in."""
    v_min: float | None = option(None)
    """Least value of the support; None is that of `value`."""
    v_max: float | None = option(None)
    """Greatest value of the support; None is that of `value`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.support
        if least >= most:
            raise ValueError(
                f"v_min must be less than v_max, got {least:g} and {most:g}; leave out one of them"
            )

    @property
    def support(self) -> tuple[float, float]:
        """The least and the greatest value."""
        own = (-1 / (1 - self.gamma), 0.0) if self.value == "step" else (0.0, 1.0)
        return own[0] if self.v_min is None else self.v_min, own[1] if self.v_max is None else self.v_max


@dataclass(frozen=True)
class MSEOptions(FormOptions):
    """The control: a critic of one number."""


@dataclass(frozen=True)
class TwoHotOptions(BinOptions):
    """Cross entropy with the two atoms beside the target."""


@dataclass(frozen=True)
class HLGaussOptions(BinOptions):
    """Cross entropy with a normal law around the target."""

    sigma: float = option(0.75, above=0)
    """Standard deviation of that law, in widths of a bin."""


@dataclass(frozen=True)
class C51Options(BinOptions):
    """Cross entropy with the distribution that follows, moved and split over the atoms."""


class TDMSE(SAC):
    """Mean squared TD error of bounded values: the control of the critics that classify."""

    Options: ClassVar[type] = MSEOptions
    options: FormOptions
    about = About(
        source="arXiv 2403.03950 (control)",
        losses="critics: squared TD error of bounded values; the rest as sac",
        actor_reads="old",
        layers="4 D",
    )

    @property
    def reward_unit(self) -> float:
        return 1 / (1 - self.options.gamma) if self.options.value == "dwell" else 1.0

    def outcome(self, batch: Batch) -> tuple[Tensor, Tensor]:
        options = self.options
        hit, over = batch.reward, ended(batch, options)
        assert hit is not None and batch.terminal is not None
        if options.value == "dwell":
            return (1 - options.gamma) * hit, options.gamma * (1 - over)
        discount = options.gamma * (1 - torch.maximum(over, hit))
        if options.value == "first_hit":
            return hit, discount
        lost = over * (1 - hit)
        return hit - 1 - lost * options.gamma / (1 - options.gamma), discount


class TwoHot(TDMSE):
    """Two-hot classification of values: cross entropy with the two atoms beside the target."""

    Options: ClassVar[type] = TwoHotOptions
    options: BinOptions
    about = About(
        source="arXiv 2403.03950",
        losses="critics: cross entropy with the two atoms beside the target; the rest as sac",
        actor_reads="old",
        layers="4 D",
    )

    def critic_outputs(self) -> int:
        return self.options.bins

    def centres(self, like: Tensor) -> Tensor:
        """[m] the values that the bins stand for, of the dtype and on the device of `like`."""
        return torch.linspace(*self.options.support, self.options.bins, dtype=like.dtype, device=like.device)

    def target(self, reward: Tensor, discount: Tensor, slow: Tensor, bonus: Tensor) -> Tensor:
        return super().target(reward, discount, slow, bonus).clamp(*self.options.support)

    def values(self, out: Tensor) -> Tensor:
        return out.softmax(dim=-1) @ self.centres(out)

    def errors(self, out: Tensor, target: Tensor) -> Tensor:
        return -(self.classes(target) * out.log_softmax(dim=-1)).sum(dim=-1)

    def classes(self, target: Tensor) -> Tensor:
        """[B, m] the distribution that stands for the values `target` [B]."""
        return split(target[:, None], self.centres(target))[:, 0]


class HLGauss(TwoHot):
    """HL-Gauss classification of values: cross entropy with a normal law around the target."""

    Options: ClassVar[type] = HLGaussOptions
    options: HLGaussOptions
    about = About(
        source="arXiv 2403.03950",
        losses="critics: cross entropy with a normal law around the target; the rest as sac",
        actor_reads="old",
        layers="4 D",
    )

    def edges(self, like: Tensor) -> Tensor:
        """[m + 1] the bounds of the bins."""
        count = self.options.bins + 1
        return torch.linspace(*self.options.support, count, dtype=like.dtype, device=like.device)

    def centres(self, like: Tensor) -> Tensor:
        edges = self.edges(like)
        return (edges[1:] + edges[:-1]) / 2

    def classes(self, target: Tensor) -> Tensor:
        least, most = self.options.support
        spread = math.sqrt(2) * self.options.sigma * (most - least) / self.options.bins
        below = torch.erf((self.edges(target) - target[:, None]) / spread)
        return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


class C51(TwoHot):
    """C51: cross entropy with the distribution of what follows."""

    Options: ClassVar[type] = C51Options
    about = About(
        source="arXiv 1707.06887",
        losses="critics: cross entropy with the distribution that follows; the rest as sac",
        actor_reads="old",
        layers="4 D",
    )

    def target(self, reward: Tensor, discount: Tensor, slow: Tensor, bonus: Tensor) -> Tensor:
        """[B, m] the distribution that the critics are to give."""
        least = self.values(slow).argmin(dim=0)
        follows = slow.softmax(dim=-1)[least, torch.arange(len(least), device=slow.device)]
        atoms = self.centres(slow)
        moved = reward[:, None] + discount[:, None] * (atoms + bonus[:, None])
        moved = moved.clamp(*self.options.support)
        parts = zip(follows[:, None].split(_ROWS), moved.split(_ROWS), strict=True)
        return torch.cat([torch.bmm(mass, split(to, atoms))[:, 0] for mass, to in parts])

    def level(self, target: Tensor) -> Tensor:
        return target @ self.centres(target)

    def classes(self, target: Tensor) -> Tensor:
        return target


def split(values: Tensor, atoms: Tensor) -> Tensor:
    """[B, n, m] each of `values` [B, n] divided between the two of the evenly spaced atoms [m] beside it, so that the
    mean is the value: relu(1 - |value - atom| / spacing)."""
    apart = values[..., None] - atoms
    return apart.abs_().div_(atoms[0] - atoms[1]).add_(1).clamp_(min=0)
