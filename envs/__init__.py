"""Goal-conditioned environments on MuJoCo MJX: `make(name, num_envs=...)`; `names()` lists what there is.

Nothing here imports JAX until an environment is made.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from deepres.envs import xla

if TYPE_CHECKING:
    from deepres.envs.base import Task
    from deepres.envs.vector import VectorEnv

# name -> module, class of the task, and the arguments that make this variant of it.
_REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ant": ("ant", "Ant", {}),
    "point_u_maze": ("point", "PointMaze", {"layout": "u_maze"}),
    "reacher": ("reacher", "Reacher", {}),
}


def names() -> list[str]:
    """The names that `make` knows, sorted."""
    return sorted(_REGISTRY)


def make(
    name: str,
    num_envs: int = 64,
    seed: int = 0,
    episode_length: int = 1000,
    auto_reset: str = "fresh",
    **options: Any,
) -> VectorEnv:
    """`num_envs` environments of the task called `name`.

        env = deepres.envs.make("ant", num_envs=64)
        state = env.reset()
        state = env.step(state, action)          # action [64, env.action_dim], obs in state.obs

    Args:
        name: one of `names()`.
        num_envs: environments stepped together, >= 1. seed: >= 0, decides every start and goal.
        episode_length: time limit in control periods of env.dt seconds.
        auto_reset: what follows a done: "fresh", a new start and goal; or "first", the environment's own
        first
            ones again (the published runs').
        options: of the task itself, e.g. layout=... for a maze; see its class.

    Raises: ValueError in one sentence for what does not fit; ImportError without JAX and MuJoCo MJX.
    Source: arXiv 2503.14858, appendix on environments.
    """
    task = make_task(name, **options)
    from deepres.envs.base import GoalEnv
    from deepres.envs.vector import VectorEnv

    return VectorEnv(GoalEnv(task, episode_length, auto_reset), num_envs, seed)


def make_task(name: str, **options: Any) -> Task:
    """The task called `name` alone, without physics: sizes, start and goal draws, thresholds, scenes."""
    if name not in _REGISTRY:
        raise ValueError(f"env must be one of {', '.join(names())}, got {name!r}")
    xla.prepare()
    xla.keep_compiled()
    module, class_name, variant = _REGISTRY[name]
    task_class = getattr(import_module(f"deepres.envs.{module}"), class_name)
    unknown = sorted(set(options) - set(signature(task_class).parameters))
    if unknown:
        known = ", ".join(signature(task_class).parameters) or "none"
        raise ValueError(f"{name} has no option {unknown[0]!r}, its options: {known}")
    task = task_class(**{**variant, **options})
    task.name = name
    return task


__all__ = ["make", "make_task", "names"]
