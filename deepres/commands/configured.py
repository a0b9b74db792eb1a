"""Commands that take a run's options: each for one algorithm, whose options it then has beside the common ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from deepres import algorithms
from deepres.commands.arguments import Defaults
from deepres.commands.runs import figures
from deepres.config import GROUPS, Config
from deepres.options import flags, helps, hints


@dataclass(frozen=True)
class Source:
    """Where the defaults come from."""

    preset: str | None = None
    """A published run (`deepres presets`) whose options are the defaults."""
    config_file: Path | None = None
    """A config.json whose options are the defaults."""


@dataclass(frozen=True)
class Place(Source):
    """Where the run is."""

    run_dir: Path | None = None
    """New folder for logs and checkpoints; by default one under runs/."""
    resume: Path | None = None
    """Folder of a run to go on with, from its newest checkpoint; its options are the defaults."""


USUAL: dict[str, list[Any]] = {"depth": [4, 16, 64], "seed": [0, 1, 2]}
"""What a sweep varies of which nothing else is asked."""


@dataclass(frozen=True)
class Sweep(Source):
    """What varies."""

    grid: tuple[str, ...] = ()
    """Options and the values that each takes: depth=4,16,64 seed=0,1,2 gamma=0.99,0.995. Every combination is run;
    where the depth varies, the actor's is the same up to 512 unless --actor-depth says otherwise."""
    depths: tuple[int, ...] = ()
    """Short for --grid depth=..."""
    seeds: tuple[int, ...] = ()
    """Short for --grid seed=..."""
    out: Path | None = None
    """Folder of the sweep; by default runs/sweep-<env>."""
    jobs: int = 0
    """Runs at a time; 0 is one to each GPU, or one where there is none."""


@dataclass(frozen=True)
class Machine(Source):
    """What is planned for."""

    memory_gb: float | None = None
    """Plan for a GPU with so many GB (with --device cpu, for a machine) instead of this one."""


def train(words: list[str], given: Defaults) -> None:
    """Train one agent. The memory that it takes is told first; what does not fit is refused."""
    config, own = _parsed(train, Place, words, given)
    from deepres.ranks import is_first
    from deepres.report.doctor import print_plan
    from deepres.runs.logs import require_wandb
    from deepres.training.loop import train as run

    if own.run_dir and own.resume:
        raise ValueError("pass --run-dir for a new run or --resume for one to go on with, not both")
    if config.system.wandb:
        require_wandb()
    print_plan(config)
    result = run(config, own.resume or own.run_dir, resume=own.resume is not None)
    if is_first() and (not result.interrupted or result.ended == "SIGINT"):
        print(f"untrained: {figures(result.before)}\ntrained:   {figures(result.after)}")
    if result.status:
        raise SystemExit(result.status)


def sweep(words: list[str], given: Defaults) -> None:
    """Train a grid of runs over any options; asked for again, it goes on where it stopped."""
    config, own = _parsed(sweep, Sweep, words, given)
    from deepres.experiments.grid import sweep as run
    from deepres.training.stopping import exit_status

    grid = _grid(own, config, given.rest)
    if "depth" in grid and not any(word.startswith("--actor-depth") for word in words):
        config = config.replace(actor_depth=None)  # a preset's is that of its own depth
    out = own.out or Path("runs") / f"sweep-{config.env.name}"
    result = run(config, grid, out, jobs=own.jobs, imports=given.imported)
    if result.failed:
        raise RuntimeError(
            f"{len(result.failed)} of {len(result.cells)} runs failed: {', '.join(result.failed)}"
        )
    if result.signal:
        raise SystemExit(exit_status(result.signal))


def doctor(words: list[str], given: Defaults) -> None:
    """Tell what this machine has: devices, backends, versions, the memory a run would take and each choice's cost."""
    config, own = _parsed(doctor, Machine, words, given)
    from deepres.report.doctor import print_report

    print_report(config, own.memory_gb)


def _parsed(command: Any, own: type, words: list[str], given: Defaults) -> tuple[Config, Any]:
    """The config that the words ask for, and the command's own options."""
    default = given.config
    parts: list[tuple[str, Any, Any]] = [("command", own, field(default_factory=own))]
    for group in ("env", "network", "algorithm", "schedule", "system"):
        made = _arguments(group, getattr(default, group))
        parts.append((group, made, field(default_factory=made)))
    everything = make_dataclass("Options", parts, frozen=True)
    known = ", ".join(algorithms.names())
    about = (
        f"{command.__doc__} These are the options of {default.algorithm_name}; the word after {command.__name__} names "
        f"another algorithm of {known}; --import MODULE brings your own."
    )
    typed: Any = tyro.cli(
        everything,
        prog=f"deepres {command.__name__} {default.algorithm_name}",
        description=about,
        args=words,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values: dict[str, Any] = {}
    for group in (*GROUPS, "algorithm"):
        values |= vars(getattr(typed, group))
    return Config(default.algorithm_name, **values), typed.command


def _arguments(name: str, group: Any) -> type:
    """A dataclass with the options of `group` under their flat names, with their help, and with its values."""
    cls: Any = type(group)
    annotated: Any = Annotated
    told, kinds = helps(cls), hints(cls)
    parts: list[tuple[str, Any, Any]] = []
    for flag, one in flags(group).items():
        kind = annotated[kinds[one.name], tyro.conf.arg(help=told.get(one.name, ""))]
        parts.append((flag, kind, field(default=getattr(group, one.name))))
    made = make_dataclass(name.capitalize(), parts, frozen=True)
    made.__doc__ = cls.__doc__
    return made


def _grid(own: Sweep, config: Config, words: list[str]) -> dict[str, list[Any]]:
    """The options that vary and their values. Raises ValueError in one sentence for what cannot be read."""
    grid: dict[str, list[Any]] = {}
    kinds: dict[str, Any] = {}
    for group in (config.env, config.network, config.algorithm, config.schedule, config.system):
        cls: Any = type(group)
        kinds |= {flag: hints(cls)[one.name] for flag, one in flags(cls).items()}
    for word in own.grid:
        name, equals, values = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in algorithms.OLD_WORDS:
            print(f"deepres: {name} is called {algorithms.OLD_WORDS[name]} now", file=sys.stderr)
            name = algorithms.OLD_WORDS[name]
        if not equals or not values:
            raise ValueError(f"--grid wants option=value,value,..., e.g. depth=4,16,64, got {word!r}")
        if name not in kinds:
            raise ValueError(f"--grid: there is no option {name!r} of {config.algorithm_name}; see --help")
        if name in grid:
            raise ValueError(f"--grid has {name} twice; give all its values at once, {name}=value,value,...")
        grid[name] = [_value(value, kinds[name]) for value in values.split(",")]
    for name, short in (("depth", own.depths), ("seed", own.seeds)):
        if short and name in grid:
            raise ValueError(f"pass --{name}s or --grid {name}=..., not both")
        if short:
            grid[name] = list(short)
    asked = {name: any(w.partition("=")[0] == f"--{name}" for w in words) for name in ("depth", "seed")}
    if not own.grid:
        grid = {name: values for name, values in USUAL.items() if not asked[name]} | grid
    for name, typed in asked.items():
        if typed and name in grid:
            raise ValueError(f"--{name} does not apply where it varies, {name}={grid[name]}; leave it out")
    return grid


def _value(word: str, kind: Any) -> Any:
    """The value of an option of type `kind` that `word` says, or `word`, which the option then refuses."""
    choices = get_args(kind) or (kind,)
    if type(None) in choices and word in ("None", "none"):
        return None
    if str in choices:
        return word
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return {"True": True, "False": False}.get(word, word)


COMMANDS: Sequence[Any] = (train, sweep, doctor)
