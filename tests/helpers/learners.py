"""Small learners of every algorithm and the batches to feed them, for the tests that take gradient steps."""

from __future__ import annotations

import torch
from torch import Tensor

from deepres import Batch, Config, Learner, Sizes

SIZES = Sizes(state=7, action=3, goal=2)
B = 24
METRICS = (
    "critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy",
    "logsumexp", "accuracy", "positive_logit", "negative_logit",
    "skipped_steps",
)  # fmt: skip
"""What a step of CRL measures, in its order."""

SMALL = {"depth": 8, "actor_depth": 4, "width": 32, "batch_size": B}


def small(algorithm: str = "crl", **changes: object) -> Config:
    """A config of networks that take milliseconds."""
    own = {"feature_dim": 16} if algorithm == "crl" else {}
    return Config(algorithm, **{**SMALL, **own, **changes})


def learner_of(config: Config, *, seed: int = 0, apart: float = 0.0, device: str = "cpu") -> Learner:
    """A learner for SIZES. apart: standard deviation of what is added to every parameter, away from the initial 0s and
    1s, so that no gradient is trivially zero."""
    generator = torch.Generator().manual_seed(seed)
    learner = Learner(config, SIZES, device=device, generator=generator)
    if apart:
        with torch.no_grad():
            for p in learner.parameters().values():
                p.add_(apart * torch.randn(p.shape, generator=generator).to(p.device))
    return learner


def stream(count: int, seed: int = 1) -> list[tuple[Batch, Tensor]]:
    """`count` batches of a state, an action and a goal, each with the noise of one action."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(B, n, generator=g)  # noqa: E731
    return [
        (Batch(draw(SIZES.state), torch.tanh(draw(SIZES.action)), draw(SIZES.goal)), draw(SIZES.action))
        for _ in range(count)
    ]


def batch_for(learner: Learner, seed: int = 1) -> tuple[Batch, Tensor]:
    """A batch with every column, and the noise that the learner's algorithm asks for: six rows end for good, four
    are cut by the time limit, others are rewarded."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(B, n, generator=g)  # noqa: E731
    batch = Batch(
        state=draw(SIZES.state),
        action=torch.tanh(draw(SIZES.action)),
        goal=draw(SIZES.goal),
        next_state=draw(SIZES.state),
        reward=(torch.arange(B) % 3 == 0).float(),
        terminal=(torch.arange(B) % 4 == 1).float(),
        extra={
            "truncation": (torch.arange(B) % 6 == 2).float(),
            "achieved": draw(SIZES.goal),
            "next_achieved": draw(SIZES.goal),
            "actor_goal": draw(SIZES.goal),
            "near": draw(SIZES.goal),
            "waypoint": draw(SIZES.goal),
            "waypoint_state": draw(SIZES.state),
        },
    )
    return batch, learner.noise(batch, g)


def doubled(learner: Learner) -> Learner:
    """`learner` with parameters in float64, where nothing but what is computed can tell it from another."""
    learner.algorithm.double()
    return learner


def numbers(learner: Learner) -> dict[str, Tensor]:
    """Every number of the learner's state, as it is now."""
    return {name: tensor.clone() for name, tensor in learner.state_tensors().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
