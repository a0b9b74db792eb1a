"""The contract of an algorithm: what it is asked for, and nothing of how it is run.

An algorithm is one class in one file: its options, its networks, its losses, its targets, how its goals are drawn. The
learner, CUDA graphs, averaging over processes, skipping of steps that are not finite, clipping, checkpoints, the memory
plan, logs and progress serve every algorithm unchanged and know none of them.

    class Mine(Algorithm):
        Options = MineOptions                       # a frozen dataclass of deepres.options
        headline = ("critic_loss",)
        passes = (Pass("q"), Pass("actor"))

        def build(self, networks): ...              # self.actor = networks.actor(...); returns the groups
        def losses(self, batch, noise): ...         # yields ({"actor": loss, ...}, metrics)
        def after_step(self, skip): ...             # target networks, if there are any
        def policy(self): ...                       # what acts
        @property
        def sampler(self): ...                      # what a batch holds

    deepres.algorithms.register("mine", Mine)

Samplers stand in deepres.data.relabel: FutureGoals gives pairs, Hindsight transitions with next_state, reward and
terminal. Parts stand in parts.py (average_into for target networks, policy_losses), call_frozen in networks.py
(a network whose weights get no gradient). sac.py uses all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from deepres.acting import ActorPolicy
from deepres.data.batch import Batch, Sizes
from deepres.data.relabel import Sampler
from deepres.networks import Networks


@dataclass(frozen=True)
class Group:
    """Parameters that one optimiser steps. lr: Adam's step size. every: steps it at every so manieth gradient step
    only (TD3's delayed actor); skipped gradient steps count too. clip: whether `max_grad_norm` bounds its gradient.
    bound: every step ends with the parameters clamped to [-bound, bound]; None leaves them. decay_steps, last_share:
    over so many steps the step size falls along half a cosine to this share of itself, and stays there; 0 keeps it."""

    parameters: list[nn.Parameter]
    lr: float
    every: int = 1
    clip: bool = True
    bound: float | None = None
    decay_steps: int = 0
    last_share: float = 1.0


@dataclass(frozen=True)
class Pass:
    """One network's way through a gradient step, for the memory plan.

    network: name of the algorithm's module. weights: whether its weights get gradients from it. backward: whether
    anything is kept for a backward; a target network's pass keeps nothing. turn: the yield of `losses` that it is for,
    0 the first; what one turn kept is gone before the next begins. batches: batches of rows that go through it at once.
    (One pass of two batches makes one gradient of its weights; two passes make two, and their sum.)
    """

    network: str
    weights: bool = True
    backward: bool = True
    turn: int = 0
    batches: int = 1


class Exchange:
    """What an algorithm may ask of the other processes of its run; alone, nothing happens."""

    rank = 0
    size = 1

    def gather_rows(self, x: Tensor) -> Tensor:
        """x [B, ...] of each process -> [size * B, ...], in the order of the ranks, differentiable."""
        return x


@dataclass(frozen=True)
class About:
    """What a reader compares algorithms by (`deepres algorithms`); nothing is computed from it.

    source: the paper, "arXiv 2206.07568". losses: of each group, in a few words. actor_reads: the critic as it was
    before the step ("old"), or as the step has made it ("updated"): the actor's losses then come in a yield after the
    critic's; "" without a critic. layers: of one gradient step, in networks of depth D, those that wait for one
    another, e.g. "4 D": its time on a machine that runs all else side by side.
    """

    source: str = ""
    losses: str = ""
    actor_reads: Literal["old", "updated", ""] = ""
    layers: str = ""


Losses = tuple[dict[str, Tensor], dict[str, Tensor]]


class Algorithm(nn.Module, ABC):
    """The base of every algorithm; see the module's head.

    options: of its `Options`. sizes: of the task. networks: makes networks as the run's options say.
    """

    Options: ClassVar[type]
    headline: ClassVar[tuple[str, ...]]
    """Metrics that a progress line shows, the most telling first."""
    passes: tuple[Pass, ...]
    """The networks that a gradient step goes through, in the order of the forward passes; of the class, or set by
    `build` where the options decide."""
    noises: ClassVar[int] = 1
    """How many actions it draws in a step: `losses` gets noise [B, A], or [noises, B, A] if there are several."""
    about: ClassVar[About] = About()
    begun_by: ClassVar[str] = ""
    """The command that begins its runs, where they start from more than options say; `train` then goes on with them."""
    on_policy: ClassVar[bool] = False
    """Whether it learns from what its policy as it is has just done and from nothing older. Its sampler's window is
    then the `unroll_length` steps that a round collects, and options that would give it others' are refused."""

    def __init__(self, options: Any, sizes: Sizes, networks: Networks):
        super().__init__()
        self.options, self.sizes = options, sizes
        self.impl = networks.stack.get("impl", "auto")
        self.exchange: Any = Exchange()
        self.unstepped: dict[str, Tensor] = {}
        """Of each group that is stepped every so manieth time: [] float32, 1 where the last step left it as it was,
        because it was not due or the step was skipped. There in `after_step`."""
        self.groups: dict[str, Group] = self.build(networks)

    @abstractmethod
    def build(self, networks: Networks) -> dict[str, Group]:
        """Make the networks as attributes of this module; returns what is learned, by name, in disjoint groups."""

    @property
    def horizon(self) -> int:
        """H: how many actions the policy plans at once. The actor then puts out H * A numbers, a batch's action and
        the noise have as many columns, and the sampler says which rows' chunks are whole (extra["valid"]). See
        deepres.data.chunks."""
        return 1

    @property
    def op_impl(self) -> str:
        """`impl` of the ops beside the stack, which have not all of its backends."""
        return "reference" if self.impl == "reference" else "auto"

    @property
    @abstractmethod
    def sampler(self) -> Sampler:
        """What a batch holds, and how its goals are drawn."""

    @abstractmethod
    def losses(self, batch: Batch, noise: Tensor) -> Iterator[Losses]:
        """Yields ({group: its scalar loss}, {metric: scalar}): the gradients of the losses are disjoint, each reaches
        its own group alone.

        One yield for all groups, which then all read the parameters from before the step. To let a group read what
        another has become, yield the other's loss first: it is stepped before the next is asked for.

        noise: [B, A] standard normal (see `noises`). Everything stays on the device, and nothing waits for it (it may
        be captured into a CUDA graph).
        """

    def after_step(self, skip: Tensor) -> None:
        """Called after the groups were stepped. skip: [] float32, 1 where the step was not finite and nothing was
        changed. Nothing here may wait for the device."""

    @abstractmethod
    def policy(self) -> ActorPolicy:
        """What acts, with the parameters as they are now and will be: no copy. Its horizon is the algorithm's."""
