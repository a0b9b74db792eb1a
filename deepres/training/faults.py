"""Environments whose physics broke: what they did is dropped, and they begin anew."""

from __future__ import annotations

from dataclasses import replace

import torch

from deepres.data.batch import Unroll
from deepres.data.environments import Environments, Step


class BrokenEnvironments(RuntimeError):
    """No environment returned finite values."""


def drop_broken(env: Environments, step: Step, unroll: Unroll, seed: int) -> tuple[Step, Unroll, int]:
    """Where the environments stand and the unroll without those that returned NaN or infinity, and their number.

    A broken environment's steps give way to a healthy one's, under new trajectory ids (a ring holds the same number
    of steps of every environment), and it goes on from a new start and goal drawn with `seed`. Raises
    BrokenEnvironments if none is healthy.
    """
    numbers = [unroll.states, unroll.actions, *(c for c in unroll.columns.values() if c.is_floating_point())]
    finite = step.obs.isfinite().all(dim=1)
    for column in numbers:
        finite = finite & column.isfinite().view(*column.shape[:2], -1).all(dim=2).all(dim=0)
    if bool(finite.all()):
        return step, unroll, 0
    broken, healthy = (~finite).nonzero()[:, 0], finite.nonzero()[:, 0]
    if not len(healthy):
        raise BrokenEnvironments(
            f"all {env.num_envs} environments returned values that are not finite: the policy or the physics "
            "diverged; the last checkpoint is from before. Resume it with smaller learning rates"
        )
    donor = healthy[torch.arange(len(broken), device=healthy.device) % len(healthy)]
    ids = unroll.traj_ids.clone()
    ids[:, broken] = ids[0, broken] + 1 + ids[:, donor] - ids[0, donor]
    begun = env.begin_anew(step, broken, ids[-1, broken] + 1, seed)

    def given(column: torch.Tensor) -> torch.Tensor:
        column = column.clone()
        column[:, broken] = column[:, donor]
        return column

    mended = replace(
        unroll,
        states=given(unroll.states),
        actions=given(unroll.actions),
        traj_ids=ids,
        columns={name: given(column) for name, column in unroll.columns.items()},
    )
    if mended.chunk is not None:
        mended = replace(mended, chunk=mended.chunk.dropped(broken))
    return begun, mended, len(broken)
