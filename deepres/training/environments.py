"""The environments of a run, as its options say."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from deepres.data.batch import Sizes
from deepres.data.environments import Environments, GymnasiumEnvironments, open_environments
from deepres.env_options import EnvOptions, values


def open_for(options: EnvOptions, num_envs: int, *, seed: int, device: torch.device) -> Environments:
    """`num_envs` environments of the task that is learned; with options.evaluated, of the one that is evaluated on.

    Asked for again, those that are compiled already, where they carry no state of their own.
    """
    arguments = (
        options.name, num_envs, seed, options.episode_length, options.auto_reset, options.engine, options.parity,
        device, options.goal_sampler, options.options, _own_class(options.name),
    )  # fmt: skip
    if options.goal_sampler is not None:  # in a notebook the name may stand for another function by now
        return _compiled.__wrapped__(*arguments)
    found = _compiled(*arguments)
    if isinstance(found, GymnasiumEnvironments):  # two users of one would disturb each other
        _compiled.cache_clear()
    return found


@lru_cache(maxsize=4)
def _compiled(
    name: str, num_envs: int, seed: int, episode_length: int, auto_reset: str, engine: str, parity: bool,
    device: torch.device, goal_sampler: str | None, own: tuple[str, ...], _own_class: Any,
) -> Environments:  # fmt: skip
    return open_environments(
        name, num_envs, seed, episode_length, auto_reset, engine, parity, device, goal_sampler, **values(own)
    )


def _own_class(name: str) -> Any:
    """What a user's name stands for now: in a notebook perhaps another class than when it was last asked for."""
    from deepres.envs.registry import find

    entry = find(name)
    return entry.task_class() if entry.own and entry.task is not None else None


def sizes_of(env: Environments) -> Sizes:
    """The sizes of what `env` takes and returns."""
    return Sizes(env.state_dim, env.action_dim, env.goal_dim, env.bytes_per_env())


def require_like(env: Environments, sizes: Sizes, options: EnvOptions) -> None:
    """Raise ValueError if `env`, which is evaluated on, is not of the sizes of what is learned."""
    for name in ("state", "action", "goal"):
        wanted, got = getattr(sizes, name), getattr(env, f"{name}_dim")
        if got != wanted:
            raise ValueError(
                f"eval_env must have {options.name}'s {name}_dim {wanted}, got {env.name} with {got}; pass a variant "
                "of the same task"
            )


def task_sizes(options: EnvOptions) -> Sizes:
    """Of the task that is learned. Raises ValueError for an unknown one, ImportError without what it needs."""
    return sizes_of(open_for(options, 1, seed=0, device=torch.device("cpu")))
