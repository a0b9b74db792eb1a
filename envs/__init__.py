"""Goal-conditioned environments: `make(name, num_envs=...)`; `names()` lists what there is, `register` adds your own.

Nothing here imports JAX until an environment is made, or gymnasium until one of gymnasium's is.
"""

from __future__ import annotations

import warnings
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Literal, overload

from deepres.envs import xla
from deepres.envs.registry import LARGEST_SEED, check_figures, check_whole, find, imported, names, register
from deepres.options import plain

if TYPE_CHECKING:
    from deepres.envs.adapter import GymnasiumEnv, SingleGymnasiumEnv
    from deepres.envs.env import GoalSampler
    from deepres.envs.gymnasium_envs import GymnasiumVector
    from deepres.envs.task import FunctionalTask, Task, View
    from deepres.envs.vector import VectorEnv

EPISODE_LENGTH = 1000  # control periods, the published time limit of every task


def make(
    name: str,
    num_envs: int = 64,
    seed: int = 0,
    episode_length: int = EPISODE_LENGTH,
    auto_reset: str = "fresh",
    engine: str = "auto",
    goal_sampler: GoalSampler | str | None = None,
    **options: Any,
) -> VectorEnv | GymnasiumVector:
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
        "jax" or "warp", MJX's two engines; "auto", C on a CPU, on a GPU Warp if it is installed, else JAX, and JAX for
        an arm with parity=True. A task that steps itself has "jax" alone, an environment of gymnasium's has none.
        goal_sampler: a JAX function key -> goal [goal_dim] that draws goals in the task's place, or where it is to be
        imported from, "my_module:my_goals".
        options: of the task itself, e.g. layout=... for a maze; see its class. parity=True, on any task, brings
        back the quirks of its published form that are mended otherwise.

    Raises: ValueError in one sentence for what does not fit; ImportError without JAX, MuJoCo MJX or the engine.
    Source: arXiv 2503.14858, appendix on environments.
    """
    check_whole("num_envs", num_envs, 1)
    check_whole("seed", seed, 0, LARGEST_SEED)
    num_envs, seed = int(num_envs), int(seed)
    engine = _renamed(engine, options)
    if find(name).gymnasium is not None:
        if options.get("parity") is False:
            del options["parity"]
        choices: list[tuple[str, Any, Any]] = [
            ("auto_reset", auto_reset, "fresh"), ("engine", engine, "auto"),
            ("goal_sampler", goal_sampler, None), ("parity", options.get("parity"), None),
        ]  # fmt: skip
        for what, given, only in choices:
            if given != only:
                raise ValueError(
                    f"{what}={given!r} does not apply to {name}, which gymnasium steps; leave {what} out"
                )
        from deepres.envs.gymnasium_envs import GymnasiumVector

        return GymnasiumVector(make_task(name, **options), num_envs, seed, episode_length)
    with xla.settled():
        return _made(name, num_envs, seed, episode_length, auto_reset, engine, goal_sampler, options)


def _made(
    name: str,
    num_envs: int,
    seed: int,
    episode_length: int,
    auto_reset: str,
    engine: str,
    goal_sampler: GoalSampler | str | None,
    options: dict[str, Any],
) -> VectorEnv:
    """`make` of what JAX computes."""
    xla.prepare()
    xla.require_platform()
    task = make_task(name, **options)
    from deepres.envs.engines import pick_engine
    from deepres.envs.env import GoalEnv
    from deepres.envs.task import needs_engine
    from deepres.envs.vector import VectorEnv

    if needs_engine(task):
        engine = pick_engine(task.own_engine if engine == "auto" else engine)
        if engine == "c" and task.own_engine == "jax":
            warnings.warn(
                f"engine='c' moves {name} with parity=True otherwise than published; pass engine='jax' or 'auto'",
                RuntimeWarning,
                stacklevel=3,
            )
        physics = None
        if engine != "c":
            from deepres.envs.engines.mjx import (
                MjxPhysics,  # four seconds of a processor, which C does without
            )

            physics = MjxPhysics(task.model, task.dt, engine, num_envs)
    elif engine in ("auto", "jax"):
        engine, physics = "jax", None
    else:
        raise ValueError(
            f"engine={engine!r} does not apply to {name}, whose physics is its own JAX function; pass engine='jax'"
        )
    sampler = imported(goal_sampler, "goal_sampler") if isinstance(goal_sampler, str) else goal_sampler
    if sampler is not None and not callable(sampler):
        raise ValueError(f"goal_sampler must be a function key -> goal, or where it is, got {sampler!r}")
    return VectorEnv(GoalEnv(task, episode_length, auto_reset, physics, sampler), num_envs, seed, engine)


def _renamed(engine: str, options: dict[str, Any]) -> str:
    """`engine`, or what the old keyword impl= in `options` names."""
    if "impl" not in options:
        return engine
    old = options.pop("impl")
    if engine != "auto":
        raise ValueError(f"pass engine= alone, got engine={engine!r} and its old name impl={old!r}")
    warnings.warn("impl= is called engine= now", FutureWarning, stacklevel=3)
    return str(old)


@overload
def gymnasium_env(env: VectorEnv, single: Literal[False] = False) -> GymnasiumEnv: ...
@overload
def gymnasium_env(env: VectorEnv, single: Literal[True]) -> SingleGymnasiumEnv: ...
def gymnasium_env(env: VectorEnv, single: bool = False) -> GymnasiumEnv | SingleGymnasiumEnv:
    """`env`, as `make` returns it, as a `gymnasium.vector.VectorEnv` of numpy arrays; see GymnasiumEnv.

    single: a `gymnasium.Env` instead, of an env made with num_envs=1; see SingleGymnasiumEnv.
    Raises: ImportError without gymnasium; TypeError for one that is gymnasium's already; ValueError if `single` has
    several environments.
    """
    if env.engine == "gymnasium":
        raise TypeError(f"{env.name} is a gymnasium environment; make its vector environment with gymnasium")
    from deepres.envs.adapter import GymnasiumEnv, SingleGymnasiumEnv

    return SingleGymnasiumEnv(env) if single else GymnasiumEnv(env)


def make_task(name: str, **options: Any) -> Any:
    """The task called `name` alone, without physics: sizes, start and goal draws, thresholds, scenes.

    A Task or FunctionalTask; for an environment of gymnasium's a GymnasiumTask, which knows sizes and thresholds.
    """
    entry = find(name)
    if entry.gymnasium is not None:
        from deepres.envs.gymnasium_envs import GymnasiumTask

        return GymnasiumTask(name, entry.gymnasium, **{**entry.options, **options})
    xla.prepare()
    xla.keep_compiled()
    task_class = entry.task_class()
    parameters = signature(task_class).parameters
    if "parity" not in parameters:
        options.pop("parity", None)  # this task's published form has no quirk
    known = [p.name for p in parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    given = {**entry.options, **options}
    unknown = sorted(set(given) - set(known)) if len(known) == len(parameters) else []
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}, its options: {', '.join(known) or 'none'}")
    for option, value in given.items():
        flag = option in parameters and isinstance(parameters[option].default, bool)
        if flag and not isinstance(plain(bool, value), bool):
            raise ValueError(f"{option} must be True or False, got {value!r}")
    try:
        task = task_class(**given)
    except TypeError as error:
        if not options:
            raise
        told = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ValueError(f"{name} cannot be made with {told}: {error}") from error
    task.name = name
    if entry.own:
        check_figures(task, name)
    return task


def __getattr__(name: str) -> Any:
    """What an environment of one's own is derived from; it imports JAX, so only who asks for it gets it."""
    if name not in ("FunctionalTask", "Task", "View"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    xla.prepare()
    from deepres.envs import task

    return getattr(task, name)


__all__ = [
    "EPISODE_LENGTH",
    "FunctionalTask",
    "Task",
    "View",
    "gymnasium_env",
    "make",
    "make_task",
    "names",
    "register",
]
