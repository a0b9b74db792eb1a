"""The names of environments: those of this package, and those that users register.

Nothing here imports JAX, MuJoCo or gymnasium.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Integral
from typing import Any

from deepres.envs.layouts import ANT_LAYOUTS

REQUIRED = (
    "state_dim",
    "goal_slice",
    "dt",
    "threshold",
)  # of a task; a FunctionalTask has an action_dim, too


LARGEST = 2**31 - 1  # steps and environments are counted in int32
LARGEST_SEED = 2**64 - 1  # a run's, of 63 bits, and what evaluation adds to it


def check_whole(what: str, value: Any, least: int, most: int = LARGEST) -> None:
    """Raises ValueError unless `value` is a whole number from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ValueError(f"{what} must be a whole number from {least} to {most}, got {value!r}")


def imported(where: str, what: str) -> Callable[..., Any]:
    """The function that `where` names, "module:function". Raises ValueError, about the option `what`, without one."""
    module, _, name = where.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:
        raise ValueError(
            f"{what}={where} cannot be imported ({type(error).__name__}: {error}); run beside {module}.py, or "
            "set PYTHONPATH"
        ) from error
    if not callable(found):
        raise ValueError(
            f"{what} must name a function, as my_module:my_goals, got {where}, which is {found!r}"
        )
    return found


@dataclass(frozen=True)
class Entry:
    """What a name stands for: a task's class with the arguments of this variant, or what makes a gymnasium one.

    task: "module:Class", or the class. gymnasium: an id of gymnasium's, or a function that makes one environment.
    """

    task: Any = None
    gymnasium: str | Callable[..., Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    own: bool = False  # a user's

    def task_class(self) -> Any:
        if not isinstance(self.task, str):
            return self.task
        module, _, name = self.task.partition(":")
        found = getattr(import_module(module), name, None)
        if found is None:
            raise ValueError(f"{module} has no {name}, which {self.task!r} was registered to name")
        if self.own:
            _check_class(found, self.task)
        return found

    def same(self, other: Entry) -> bool:
        """Whether both say the same, a module that was loaded twice included."""
        mine, theirs = (
            (_where(e.task), _where(e.gymnasium), {k: _where(v) for k, v in e.options.items()})
            for e in (self, other)
        )
        return mine == theirs


def _ours(module: str, name: str, **options: Any) -> Entry:
    return Entry(f"deepres.envs.tasks.{module}:{name}", options=options)


_ENTRIES: dict[str, Entry] = {
    "ant": _ours("ant", "Ant"),
    "ant_ball": _ours("ant_ball", "AntBall"),
    "ant_push": _ours("ant_push", "AntPush"),
    "humanoid": _ours("humanoid", "Humanoid"),
    "arm_binpick_easy": _ours("arm", "ArmBinpick"),
    "arm_binpick_hard": _ours("arm", "ArmBinpick", hard=True),
    "arm_grasp": _ours("arm", "ArmGrasp"),
    "arm_push_easy": _ours("arm", "ArmPush"),
    "arm_push_hard": _ours("arm", "ArmPush", hard=True),
    "arm_reach": _ours("arm", "ArmReach"),
    "half_cheetah": _ours("half_cheetah", "HalfCheetah"),
    "pusher_easy": _ours("pusher", "Pusher"),
    "pusher_hard": _ours("pusher", "Pusher", hard=True),
    "reacher": _ours("reacher", "Reacher"),
}
_FAMILIES = sorted([*_ENTRIES, "point_u_maze", "ant_u_maze", "humanoid_u_maze"])
_MAZES = {
    "ant": ("ant", "AntMaze"),
    "humanoid": ("humanoid", "HumanoidMaze"),
    "point": ("point", "PointMaze"),
}
_ENTRIES |= {f"ant_{layout}": _ours(*_MAZES["ant"], layout=layout) for layout in ANT_LAYOUTS}
_ENTRIES |= {
    f"{robot}_{layout}": _ours(*_MAZES[robot], layout=layout)
    for robot in ("humanoid", "point")
    for layout in ("u_maze", "u_maze_eval", "big_maze", "big_maze_eval", "hardest_maze")
}
# Starts and goals so many cells apart: trained on near ones, evaluated on farther ones; `make` takes any such name.
_APART = re.compile(r"(?P<robot>ant|point)_(?P<layout>\w+_maze)_gen_(?P<apart>(\d+f)+)")
# A maze under this name's end asks for a whole state in place of its goal's coordinates.
_WHOLE = "_whole_goal"
_GENERALIZATION = [
    "point_u_maze_gen_1f2f3f",
    *(
        f"ant_{u}_maze_gen_{apart}"
        for u in ("u", "u2", "u3", "u4", "u5")
        for apart in ("1f2f3f", "4f", "5f", "6f")
    ),
]


def names() -> list[str]:
    """The names that `make` knows, sorted. It takes more: ROBOT_maze with a layout, ant_LAYOUT_gen_1f2f... or
    point_LAYOUT_gen_1f2f..., and any maze's name with _whole_goal after it."""
    return sorted([*_ENTRIES, *_GENERALIZATION])


def find(name: str) -> Entry:
    """What `name` stands for. Raises ValueError, with the names that are like it; TypeError for what is no name."""
    if not isinstance(name, str):
        raise TypeError(
            f"env must be the name of a task, got {name!r}; register one of your own first (deepres.envs.register)"
        )
    entry = _find(name)
    if entry is not None:
        return entry
    near = sorted(difflib.get_close_matches(str(name), names(), n=6, cutoff=0.5)) or _FAMILIES
    raise ValueError(
        f"env must be one of {', '.join(near)} or another of the {len(names())} that `deepres envs` lists, "
        f"got {name!r}; an environment of your own is registered first (deepres.envs.register; "
        "--import my_module on the command line)"
    )


def _find(name: str) -> Entry | None:
    if name in _ENTRIES:
        return _ENTRIES[name]
    if name.endswith(_WHOLE):
        maze = _find(name.removesuffix(_WHOLE))
        kinds = {_ours(*where).task: where[1] for where in _MAZES.values()}
        if maze is None or maze.task not in kinds:
            return None
        return _ours("whole_goal", f"{kinds[maze.task]}WholeGoal", **maze.options)
    apart = _APART.fullmatch(name)
    if apart:
        cells = tuple(int(k) for k in re.findall(r"\d+", apart["apart"]))
        return _ours(*_MAZES[apart["robot"]], layout=apart["layout"], apart=cells)
    robot = name.removesuffix("_maze")
    return _ours(*_MAZES[robot]) if robot in _MAZES and robot != name else None


def register(
    name: str, task: Any = None, *, gymnasium: str | Callable[..., Any] | None = None, **options: Any
) -> None:
    """Give an environment of your own a name, to be used wherever a task's name is: `make`, `Config(env=...)`.

        deepres.envs.register("mine", Mine)                            # a Task: a MuJoCo model, every engine, videos
        deepres.envs.register("mine_hard", "my_module:Mine", hard=True)   # imported when asked for; hard goes to it
        deepres.envs.register("mine", gymnasium="FetchReach-v4")       # any goal environment of gymnasium's
        deepres.envs.register("mine", gymnasium=MyEnv, goal_slice=slice(0, 2), goal=lambda env: env.goal, threshold=0.1)

    Args:
        name: letters, digits, "_", "-" and "."; a taken one is refused, unless it stands for the same already.
        task: a class derived from Task or FunctionalTask (envs/task.py), or "module:Class".
        gymnasium: in a task's place, an id of gymnasium's, or a function that makes one environment.
        options: arguments of the task's class; or for gymnasium those of GymnasiumTask (envs/gymnasium_envs.py:
        goal_slice, goal, threshold, vectorization), all others being the environment's own.

    Raises: ValueError or TypeError in one sentence.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"a name must be letters, digits, '_', '-' or '.', got {name!r}")
    if (task is None) == (gymnasium is None):
        raise TypeError(
            f"register({name!r}, ...) wants a Task or FunctionalTask class, or gymnasium=..., one of them"
        )
    if isinstance(task, str):
        if not re.fullmatch(r"[\w.]+:\w+", task):
            raise ValueError(f"a task to be imported is named 'module:Class', got {task!r}")
    elif task is not None:
        _check_class(task, name)
    elif not isinstance(gymnasium, str) and not callable(gymnasium):
        raise TypeError(
            "gymnasium must be an id such as 'FetchReach-v4' or a function that makes an environment, "
            f"got {gymnasium!r}"
        )
    entry, taken = Entry(task, gymnasium, options, own=True), _find(name)
    if taken is not None and not taken.same(entry):
        raise ValueError(f"the name {name!r} is taken by another environment; choose another name")
    _ENTRIES[name] = entry


def _check_class(task: Any, name: str) -> None:
    """Raises TypeError unless `task` is a class that can be a task; whoever has one has imported JAX."""
    from deepres.envs.task import FunctionalTask

    if not inspect.isclass(task) or not issubclass(task, FunctionalTask):
        raise TypeError(
            f"{name} must be a class derived from deepres.envs.Task or deepres.envs.FunctionalTask, got {task!r}; "
            "pass an environment of gymnasium's as gymnasium=..."
        )
    lacking = sorted(getattr(task, "__abstractmethods__", ()))
    if task.__init__ is object.__init__:  # else it may set them there; make_task looks again
        lacking += _absent(task)
    if lacking:
        raise TypeError(
            f"{name}: {task.__name__} lacks {', '.join(sorted(lacking))}; see deepres.envs.{_base(task)}"
        )


def check_figures(task: Any, name: str) -> None:
    """Raises TypeError where a task, once made, lacks a figure; ValueError for a goal that is no part of its state."""
    lacking = _absent(task)
    if lacking:
        kind = type(task)
        raise TypeError(f"{name}: {kind.__name__} lacks {', '.join(lacking)}; see deepres.envs.{_base(kind)}")
    part, size = task.goal_slice, task.state_dim
    whole = isinstance(part, slice) and all(isinstance(end, Integral) for end in (part.start, part.stop))
    if not whole or part.step not in (None, 1) or not 0 <= part.start < part.stop <= size:
        raise ValueError(
            f"{name}: goal_slice must be slice(start, stop) of the state's {size} numbers, got {part!r}"
        )


def _absent(task: Any) -> list[str]:
    kind = task if inspect.isclass(task) else type(task)
    required = REQUIRED if hasattr(kind, "action_dim") else (*REQUIRED, "action_dim")
    return [figure for figure in required if not hasattr(task, figure)]


def _base(task: Any) -> str:
    return "Task" if hasattr(task, "spec") else "FunctionalTask"


def _where(thing: Any) -> Any:
    """A class or function by where it is written, so that a module loaded anew has the same, one without a name by its
    code too; an array by its numbers; anything else itself."""
    if inspect.isclass(thing) or inspect.isfunction(thing):
        code = getattr(thing, "__code__", None) if thing.__name__ == "<lambda>" else None
        return f"{thing.__module__}:{thing.__qualname__}", code
    if hasattr(thing, "tobytes"):
        return str(thing.dtype), thing.shape, thing.tobytes()
    return thing
