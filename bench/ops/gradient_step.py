"""One whole CRL gradient step: critic, actor and temperature, losses, gradients and Adam.

Sizes are the humanoid's; depth is the critic's, and the actor's too up to the 512 that the paper stays at.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness.contestants import Case, Prepared
from bench.ops.registry import ACTOR_DEPTH_LIMIT
from bench.ops.residual_stack import layer_products, stack_served_by
from bench.ops.serving import settle_precision, waiter
from bench.published.crl import EagerLearner
from deepres.config import Config
from deepres.data.batch import Batch, Sizes
from deepres.training.cuda_graph import GraphSteps, gradient_steps
from deepres.training.learner import Learner

HUMANOID = Sizes(state=268, action=17, goal=3)
FEATURE_DIM = 64


def batch_and_noise(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Batch, Tensor]:
    """The same numbers in every process."""
    random = torch.Generator().manual_seed(case.seed + 1)

    def normal(columns: int) -> Tensor:
        return torch.randn(case.batch, columns, generator=random).to(case.device, dtype)

    state, action, goal = normal(HUMANOID.state), torch.tanh(normal(HUMANOID.action)), normal(HUMANOID.goal)
    return Batch(state, action, goal), normal(HUMANOID.action)


def learner(case: Case, impl: str) -> Learner:
    """deepres's own learner; the same initial weights in every process."""
    config = Config(
        "crl",
        depth=case.depth,
        actor_depth=min(case.depth, ACTOR_DEPTH_LIMIT),
        width=case.width,
        feature_dim=FEATURE_DIM,
        batch_size=case.batch,
        precision=case.precision,
        impl=impl,
    )
    generator = torch.Generator().manual_seed(case.seed)
    return Learner(config, HUMANOID, device=case.device, generator=generator)


def gradients(own: Learner) -> dict[str, Tensor]:
    """What the last step's losses left, by the parameter's name."""
    return {name: p.grad for name, p in own.algorithm.named_parameters() if p.grad is not None}


def truth(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(float64's loss gradients, plain PyTorch's in the case's own precision), by parameter."""
    exact = Case(**{**vars(case), "precision": "fp32"})
    double, single = learner(exact, "reference"), learner(case, "reference")
    double.algorithm.double()
    double.update(*batch_and_noise(case, torch.float64))
    single.update(*batch_and_noise(case))
    return gradients(double), gradients(single)


def fused(case: Case, impl: str) -> Prepared:
    settle_precision(case)
    server = stack_served_by(case, impl)
    own, (batch, noise) = learner(case, impl), batch_and_noise(case)
    steps = gradient_steps(own)
    return Prepared(
        lambda: own.update(batch, noise),
        lambda _: gradients(own),
        waiter(case.device),
        server,
        timed=partial(_replayed, steps, batch, noise) if isinstance(steps, GraphSteps) else None,
    )


def _replayed(steps: GraphSteps, batch: Batch, noise: Tensor) -> None:
    """A step from a graph. Raises RuntimeError where CUDA refused to capture one: what is timed then is Python."""
    steps(batch, noise)
    if steps.refused:
        raise RuntimeError("CUDA refused to capture the gradient step; cuda_graph says why on stderr")


def eager(case: Case, variant: str) -> Prepared:
    return _plain(case, compile=False)


def compiled(case: Case, variant: str) -> Prepared:
    return _plain(case, compile=True)


def _plain(case: Case, *, compile: bool) -> Prepared:
    """The published step in PyTorch at its strongest."""
    settle_precision(case)
    given = learner(case, "reference")
    step = EagerLearner(given, strong=True, compile=compile, precision=case.precision)
    batch, noise = batch_and_noise(case)
    return Prepared(lambda: step.update(batch, noise), lambda _: step.gradients(), waiter(case.device))


def products(case: Case, variant: str) -> Prepared:
    """The stacks' products of one step: phi, psi and actor, forward and backward; phi to its input again."""
    forward, input_gradient, weight_gradient = layer_products(case)

    def run() -> None:
        for depth, needs_weights in (
            (case.depth, True),
            (case.depth, True),
            (min(case.depth, ACTOR_DEPTH_LIMIT), True),
            (case.depth, False),
        ):
            for l in range(depth):
                forward(l)
            for l in reversed(range(depth)):
                input_gradient(l)
                if needs_weights:
                    weight_gradient(l)

    def nothing(_: Any) -> dict[str, Tensor]:
        return {}

    return Prepared(run, nothing, waiter(case.device))
