"""What a run learns, and where: the task, its own options, and the task that is evaluated on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from deepres.options import check, option

TAKEN = {
    "name", "num_envs", "seed", "episode_length", "auto_reset", "engine", "impl", "parity", "goal_sampler", "make",
    "device",
}  # fmt: skip
"""What makes environments has these beside a task's own options: each is an option of the run, or none."""


@dataclass(frozen=True)
class EnvOptions:
    """What is learned, and where."""

    name: str = option("ant", flag="env")
    """Task to learn; `deepres envs` lists them."""
    options: tuple[str, ...] = option((), flag="env_options")
    """The task's own options, key=value, a value as JSON has it or a plain word: layout=u4_maze goal_distance=5; in
    Python a mapping, env_options={"layout": "u4_maze"}. What a task takes stands with its class."""
    goal_sampler: str | None = option(None)
    """Function that draws goals in the task's place, my_module:my_goals, key -> goal [G] in JAX; None is the task."""
    eval_env: str | None = option(None, resume=True)
    """Task to evaluate on, e.g. a maze's eval layout; None is the one that is learned."""
    eval_options: tuple[str, ...] = option((), flag="eval_env_options", resume=True)
    """The same as env_options, of the task to evaluate on. Where neither this nor eval_env is given, the task that is
    learned is evaluated on as it is; else env_options and goal_sampler do not go there."""
    engine: Literal["auto", "c", "jax", "warp"] = option("auto", resume=True)
    """What steps the environments: MuJoCo's C engine on threads, or MJX's jax or warp; auto is the fastest here, and
    for arms with parity jax, as C moves these otherwise."""
    parity: bool = option(False)
    """Bring back the quirks of the published tasks that are mended otherwise (see each task's class)."""
    num_envs: int = option(512, least=1)
    """Environments stepped side by side, in all processes together."""
    episode_length: int = option(1000, least=2, most=2**31 - 1)
    """Steps after which an episode is cut (truncated)."""
    auto_reset: Literal["fresh", "first"] = option("fresh")
    """What follows an episode: a new start and goal, or the first ones for ever (the published runs)."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(
                f"env must be the name of a task, got {self.name!r}; register one of your own first "
                "(deepres.envs.register)"
            )
        for name, flag in (("options", "env_options"), ("eval_options", "eval_env_options")):
            object.__setattr__(self, name, _words(flag, getattr(self, name)))
        check(self)
        if self.goal_sampler is not None and not re.fullmatch(r"[\w.]+:\w+", self.goal_sampler):
            raise ValueError(
                f"goal_sampler must name a function, as my_module:my_goals, got {self.goal_sampler!r}"
            )

    @property
    def evaluated(self) -> EnvOptions:
        """Those of the task that is evaluated on, as one to learn."""
        if self.eval_env is None and not self.eval_options:
            return self
        return replace(
            self, name=self.eval_env or self.name, options=self.eval_options, goal_sampler=None, eval_env=None,
            eval_options=(),
        )  # fmt: skip


def values(words: tuple[str, ...]) -> dict[str, Any]:
    """What the words key=value say: arguments of a task's class."""
    return {key: _value(value) for key, _, value in (word.partition("=") for word in words)}


def _value(word: str) -> Any:
    if word in _PYTHONS:
        return _PYTHONS[word]
    try:
        return json.loads(word, parse_constant=_refuse)
    except ValueError:
        return word


_PYTHONS = {"True": True, "False": False, "None": None}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _words(flag: str, given: Any) -> tuple[str, ...]:
    """A mapping, or words key=value, as words in the order of their keys and each in one form. Raises ValueError."""
    wrong = ValueError(
        f"{flag} must be a mapping of JSON values or words such as layout=u4_maze, got {given!r}"
    )
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list | tuple) or not all(isinstance(w, str) and "=" in w for w in listed):
            raise wrong
        pairs = [(key, _value(value)) for key, _, value in (word.partition("=") for word in listed)]
    keys = [key for key, _ in pairs]
    if not all(isinstance(key, str) and key.isidentifier() for key in keys):
        raise wrong
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{flag} has {twice[0]} twice, got {given!r}; leave one of them out")
    if taken := sorted(TAKEN & set(keys)):
        raise ValueError(
            f"{flag} must hold the task's own options alone, got {taken[0]}; leave it out, or pass it as the run's"
        )
    try:
        return tuple(f"{key}={_form(value)}" for key, value in sorted(pairs))
    except (TypeError, ValueError):
        raise wrong from None


def _form(value: Any) -> str:
    plain = isinstance(value, str) and _value(value) == value
    return value if plain else json.dumps(value, allow_nan=False)
