"""Environments whose physics broke: what they did is dropped, and they begin anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deepres.bridge import to_torch
from deepres.collect import Unroll


class BrokenEnvironments(RuntimeError):
    """No environment returned finite values."""


def drop_broken(env: Any, env_state: Any, unroll: Unroll, seed: int) -> tuple[Any, Unroll, int]:
    """The environments' state and the unroll without environments that returned NaN or infinity, and their number.

    A broken environment's steps give way to a healthy one's, under new trajectory ids (a ring holds the same number
    of steps of every environment), and it goes on from a new start and goal drawn with `seed`. Raises
    BrokenEnvironments if none is healthy.
    """
    finite = unroll.states.isfinite().all(dim=2).all(dim=0) & unroll.actions.isfinite().all(dim=2).all(dim=0)
    finite &= to_torch(env_state.obs, finite.device).isfinite().all(dim=1)
    if bool(finite.all()):
        return env_state, unroll, 0
    broken, healthy = (~finite).nonzero()[:, 0], finite.nonzero()[:, 0]
    if not len(healthy):
        raise BrokenEnvironments(
            f"all {env.num_envs} environments returned values that are not finite: the policy or the physics "
            "diverged; the last checkpoint is from before. Resume it with smaller learning rates"
        )
    donor = healthy[torch.arange(len(broken), device=healthy.device) % len(healthy)]
    states, actions, ids = unroll.states.clone(), unroll.actions.clone(), unroll.traj_ids.clone()
    states[:, broken], actions[:, broken] = states[:, donor], actions[:, donor]
    ids[:, broken] = ids[0, broken] + 1 + ids[:, donor] - ids[0, donor]
    begun = _begin_anew(env, env_state, broken, ids[-1, broken] + 1, seed)
    return begun, replace(unroll, states=states, actions=actions, traj_ids=ids), len(broken)


def _begin_anew(env: Any, env_state: Any, broken: torch.Tensor, ids: torch.Tensor, seed: int) -> Any:
    import jax

    at = broken.cpu().numpy()
    fresh = replace(
        env.reset(jax.random.PRNGKey(seed)), traj_id=env_state.traj_id.at[at].set(ids.cpu().numpy())
    )
    return jax.tree.map(lambda old, new: old.at[at].set(new[at]), env_state, fresh)
