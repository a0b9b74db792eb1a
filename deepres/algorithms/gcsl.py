"""GCSL, goal-conditioned supervised learning (arXiv 1912.06088): GCBC with other goals and the steps that are left.

    loss = -mean log pi(a | s, g, h),   g = e(s_{t+h}), h drawn alike from the steps that the trajectory still has

A fifth of the rows keeps the commanded goal, with h the steps left of the trajectory, as is done online since. The
source discretises actions, acts at random at first and a tenth of the time later, and gives h as a thermometer code;
here actions are continuous, the policy explores by its own standard deviation, and the actor sees log(1 + h).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepres.algorithms.base import About
from deepres.algorithms.gcbc import GCBC, GCBCOptions
from deepres.options import option


@dataclass(frozen=True)
class GCSLOptions(GCBCOptions):
    """Goal-conditioned supervised learning; gamma matters with geometric goals alone."""

    goals: Literal["geometric", "uniform"] = option("uniform")
    """Law of the later step that is the goal: every one alike, or P(d) proportional to gamma^d."""
    commanded: float = option(0.2, least=0, below=1, share=True)
    """Share of the rows that keep the goal that the policy was given."""
    horizon_input: bool = option(True)
    """Let the actor see how many steps are left: to the row's goal, and of the episode where it acts."""


class GCSL(GCBC):
    """Goal-conditioned supervised learning: do again what led there in the steps that are left."""

    Options = GCSLOptions
    options: GCSLOptions
    about = About(source="arXiv 1912.06088", losses="actor: -log pi(a | s, g, h)", layers="2 D")
