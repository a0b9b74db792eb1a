"""Goal-conditioned environments on MuJoCo: `make(name, num_envs=...)`; `names()` lists what there is.

Nothing here imports JAX until an environment is made.
"""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from deepres.envs import xla
from deepres.envs.layouts import ANT_LAYOUTS

if TYPE_CHECKING:
    from deepres.envs.adapter import GymnasiumEnv
    from deepres.envs.env import GoalSampler
    from deepres.envs.task import Task
    from deepres.envs.vector import VectorEnv

EPISODE_LENGTH = 1000  # control periods, the published time limit of every task

# name -> module, class of the task, and the arguments that make this variant of it.
_REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ant": ("ant", "Ant", {}),
    "ant_ball": ("ant_ball", "AntBall", {}),
    "ant_push": ("ant_push", "AntPush", {}),
    "humanoid": ("humanoid", "Humanoid", {}),
    "arm_binpick_easy": ("arm", "ArmBinpick", {}),
    "arm_binpick_hard": ("arm", "ArmBinpick", {"hard": True}),
    "arm_grasp": ("arm", "ArmGrasp", {}),
    "arm_push_easy": ("arm", "ArmPush", {}),
    "arm_push_hard": ("arm", "ArmPush", {"hard": True}),
    "arm_reach": ("arm", "ArmReach", {}),
    "half_cheetah": ("half_cheetah", "HalfCheetah", {}),
    "pusher_easy": ("pusher", "Pusher", {}),
    "pusher_hard": ("pusher", "Pusher", {"hard": True}),
    "reacher": ("reacher", "Reacher", {}),
}
_MAZES = {
    "ant": ("ant", "AntMaze"),
    "humanoid": ("humanoid", "HumanoidMaze"),
    "point": ("point", "PointMaze"),
}
_REGISTRY |= {f"ant_{layout}": (*_MAZES["ant"], {"layout": layout}) for layout in ANT_LAYOUTS}
_REGISTRY |= {
    f"{robot}_{layout}": (*_MAZES[robot], {"layout": layout})
    for robot in ("humanoid", "point")
    for layout in ("u_maze", "u_maze_eval", "big_maze", "big_maze_eval", "hardest_maze")
}
# Starts and goals so many cells apart: trained on near ones, evaluated on farther ones; `make` takes any such name.
_APART = re.compile(r"ant_(?P<layout>\w+_maze)_gen_(?P<apart>(\d+f)+)")
_GENERALIZATION = [
    f"ant_{u}_maze_gen_{apart}"
    for u in ("u", "u2", "u3", "u4", "u5")
    for apart in ("1f2f3f", "4f", "5f", "6f")
]


def names() -> list[str]:
    """The names that `make` knows, sorted. It takes more: ROBOT_maze with a layout, and ant_LAYOUT_gen_1f2f..."""
    return sorted([*_REGISTRY, *_GENERALIZATION])


def _variant(name: str) -> tuple[str, str, dict[str, Any]]:
    """Module, class and arguments of the task called `name`."""
    if name in _REGISTRY:
        return _REGISTRY[name]
    apart = _APART.fullmatch(name)
    if apart:
        cells = tuple(int(k) for k in re.findall(r"\d+", apart["apart"]))
        return (*_MAZES["ant"], {"layout": apart["layout"], "apart": cells})
    if name.removesuffix("_maze") in _MAZES and name.endswith("_maze"):
        return (*_MAZES[name.removesuffix("_maze")], {})
    raise ValueError(f"env must be one of {', '.join(names())}, got {name!r}")


def make(
    name: str,
    num_envs: int = 64,
    seed: int = 0,
    episode_length: int = EPISODE_LENGTH,
    auto_reset: str = "fresh",
    engine: str = "auto",
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
        engine: what steps the physics: "c", MuJoCo's C engine on threads (DEEPRES_ENV_THREADS, by default every core);
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
    engine = _renamed(engine, options)
    task = make_task(name, **options)
    from deepres.envs.engines import pick_engine
    from deepres.envs.engines.mjx import MjxPhysics
    from deepres.envs.env import GoalEnv
    from deepres.envs.vector import VectorEnv

    engine = pick_engine(engine)
    physics = None if engine == "c" else MjxPhysics(task.model, task.dt, engine, num_envs)
    return VectorEnv(GoalEnv(task, episode_length, auto_reset, physics, goal_sampler), num_envs, seed, engine)


def _renamed(engine: str, options: dict[str, Any]) -> str:
    """`engine`, or what the old keyword impl= in `options` names."""
    if "impl" not in options:
        return engine
    old = options.pop("impl")
    if engine != "auto":
        raise ValueError(f"pass engine= alone, got engine={engine!r} and its old name impl={old!r}")
    warnings.warn("impl= is called engine= now", FutureWarning, stacklevel=3)
    return str(old)


def gymnasium_env(env: VectorEnv) -> GymnasiumEnv:
    """`env`, as `make` returns it, as a `gymnasium.vector.VectorEnv` of numpy arrays; see GymnasiumEnv.

    Raises: ImportError without gymnasium.
    """
    from deepres.envs.adapter import GymnasiumEnv

    return GymnasiumEnv(env)


def make_task(name: str, **options: Any) -> Task:
    """The task called `name` alone, without physics: sizes, start and goal draws, thresholds, scenes."""
    module, class_name, variant = _variant(name)
    xla.prepare()
    xla.keep_compiled()
    task_class = getattr(import_module(f"deepres.envs.tasks.{module}"), class_name)
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


__all__ = ["EPISODE_LENGTH", "gymnasium_env", "make", "make_task", "names"]
