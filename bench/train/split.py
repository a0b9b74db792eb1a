"""Where a gradient step of deepres's learner spends its time: its parts, each timed alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat, zeros

from bench.harness.turns import clocked
from deepres.algorithms.parts import pair_energy, policy_losses, squashed_gaussian
from deepres.data.batch import Batch
from deepres.kernels import info_nce
from deepres.networks import call_frozen
from deepres.training.learner import Learner
from deepres.training.optimizer import squares_of

REPEATS = 3  # of what takes less than SLOW_S
SLOW_S = 0.5


def parts(learner: Learner, batch: Batch, noise: Tensor) -> dict[str, float]:
    """Seconds of the actor's part, the critic's and the optimisers' of one gradient step, the best of a few."""
    crl = learner.algorithm

    def critic() -> None:
        crl.phi.zero_grad()
        crl.psi.zero_grad()
        phi, psi = crl.phi(cat([batch.state, batch.action], dim=1)), crl.psi(batch.goal)
        loss, _ = info_nce(phi, psi, logsumexp_penalty=learner.config.get("logsumexp_penalty"))
        loss.backward()

    psi = crl.psi(batch.goal).detach()  # the learner has it from the critic's part

    def actor() -> None:
        crl.actor.zero_grad()
        mean, log_std = crl.actor(cat([batch.state, batch.goal], dim=1))
        action, log_prob = squashed_gaussian(mean, log_std, noise)
        energy = pair_energy(call_frozen(crl.phi, cat([batch.state, action], dim=1)), psi, "norm")
        policy_losses(log_prob, energy, crl.log_alpha, crl.target_entropy).actor.backward()

    def optimisers() -> None:
        keep = zeros(())
        for optimizer in learner.optimizers.values():
            optimizer.step(skip=keep, squares=squares_of(optimizer.gradients()))

    learner.update(batch, noise)  # every gradient and moment is there
    return {"actor": _best(actor), "critic": _best(critic), "optimiser": _best(optimisers)}


def _best(call: Callable[[], None]) -> float:
    times: list[float] = []
    while len(times) < REPEATS and not (times and times[0] > SLOW_S):
        times.append(clocked(call))
    return min(times)
