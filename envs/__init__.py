"""Goal-conditioned environments on MuJoCo: `make(name, num_envs=...)`; `names()` lists what there is.

Nothing here imports JAX until an environment is made.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from deepres.envs import xla

if TYPE_CHECKING:
    from deepres.envs.base import GoalSampler, Task
    from deepres.envs.vector import VectorEnv

# name -> module, class of the task, and the arguments that make this variant of it.
_REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ant": ("ant", "Ant", {}),
    "arm_binpick_easy": ("arm", "ArmBinpick", {}),
    "arm_binpick_hard": ("arm", "ArmBinpick", {"hard": True}),
    "arm_grasp": ("arm", "ArmGrasp", {}),
    "arm_push_easy": ("arm", "ArmPush", {}),
    "arm_push_hard": ("arm", "ArmPush", {"hard": True}),
    "arm_reach": ("arm", "ArmReach", {}),
    "half_cheetah": ("half_cheetah", "HalfCheetah", {}),
    "point_u_maze": ("point", "PointMaze", {"layout": "u_maze"}),
    "pusher_easy": ("pusher", "Pusher", {}),
    "pusher_hard": ("pusher", "Pusher", {"hard": True}),
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
    impl: str = "auto",
    goal_sampler: GoalSampler | None = None,
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
        first ones again (the published runs').
        impl: the physics: "c", MuJoCo's C engine on threads (DEEPRES_ENV_THREADS, by default every core);
        "jax" or "warp", MJX's two engines; "auto", C on a CPU, on a GPU Warp if it is installed, else JAX.
        goal_sampler: a JAX function key -> goal [goal_dim] that draws goals in the task's place.
        options: of the task itself, e.g. layout=... for a maze; see its class. parity=True, on any task, brings
        back the quirks of its published form that are mended otherwise.

    Raises: ValueError in one sentence for what does not fit; ImportError without JAX, MuJoCo MJX or the engine.
    Source: arXiv 2503.14858, appendix on environments.
    """
    for what, value, least in (("num_envs", num_envs, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{what} must be a whole number >= {least}, got {value!r}")
    task = make_task(name, **options)
    from deepres.envs.base import GoalEnv
    from deepres.envs.physics import MjxPhysics, pick_engine
    from deepres.envs.vector import VectorEnv

    impl = pick_engine(impl)
    physics = None if impl == "c" else MjxPhysics(task.model, task.dt, impl, num_envs)
    return VectorEnv(GoalEnv(task, episode_length, auto_reset, physics, goal_sampler), num_envs, seed, impl)


def make_task(name: str, **options: Any) -> Task:
    """The task called `name` alone, without physics: sizes, start and goal draws, thresholds, scenes."""
    if name not in _REGISTRY:
        raise ValueError(f"env must be one of {', '.join(names())}, got {name!r}")
    xla.prepare()
    xla.keep_compiled()
    module, class_name, variant = _REGISTRY[name]
    task_class = getattr(import_module(f"deepres.envs.{module}"), class_name)
    known_options = set(signature(task_class).parameters)
    if "parity" not in known_options:
        options.pop("parity", None)  # this task's published form has no quirk
    unknown = sorted(set(options) - known_options)
    if unknown:
        known = ", ".join(signature(task_class).parameters) or "none"
        raise ValueError(f"{name} has no option {unknown[0]!r}, its options: {known}")
    task = task_class(**{**variant, **options})
    task.name = name
    return task


__all__ = ["make", "make_task", "names"]
