"""Where a gradient step of deepres's learner spends its time: its parts, each timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor, cat, zeros

from deepres.kernels import info_nce
from deepres.learner import Batch, Learner
from deepres.losses import actor_loss, pair_energy, squashed_gaussian
from deepres.networks import call_frozen
from deepres.optimizer import sum_of_squares

REPEATS = 3  # of what takes less than SLOW_S
SLOW_S = 0.5


def parts(learner: Learner, batch: Batch, noise: Tensor) -> dict[str, float]:
    """Seconds of the actor's part, the critic's and the optimisers' of one gradient step, the best of a few."""

    def critic() -> None:
        learner.phi.zero_grad()
        learner.psi.zero_grad()
        phi, psi = learner.phi(cat([batch.state, batch.action], dim=1)), learner.psi(batch.goal)
        loss, _ = info_nce(phi, psi, logsumexp_penalty=learner.config.logsumexp_penalty)
        loss.backward()

    psi = learner.psi(batch.goal).detach()  # the learner has it from the critic's part

    def actor() -> None:
        learner.actor.zero_grad()
        mean, log_std = learner.actor(cat([batch.state, batch.goal], dim=1))
        action, log_prob = squashed_gaussian(mean, log_std, noise)
        energy = pair_energy(call_frozen(learner.phi, cat([batch.state, action], dim=1)), psi, "norm")
        actor_loss(learner.log_alpha.exp().detach(), log_prob, energy).backward()

    def optimisers() -> None:
        keep = zeros(())
        for optimizer in learner.optimizers.values():
            optimizer.step(skip=keep, squares=sum_of_squares(optimizer.gradients()))

    learner.update(batch, noise)  # every gradient and moment is there
    return {"actor": _best(actor), "critic": _best(critic), "optimiser": _best(optimisers)}


def _best(call: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
        if times[0] > SLOW_S:
            break
    return min(times)
