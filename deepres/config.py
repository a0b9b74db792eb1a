"""A run's configuration: options in groups, each stated once with its unit, default, bounds and source.

Defaults are the published ones (arXiv 2503.14858, section 4 and its training script) unless a comment says ours.

    Config("crl", env="ant", depth=64, gamma=0.995)     # every option by its flat name, as on the command line
    config.schedule.total_steps, config.algorithm.gamma  # and in groups
"""

from __future__ import annotations

import json
import warnings
from dataclasses import Field, asdict, dataclass, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from deepres import algorithms
from deepres.env_options import EnvOptions
from deepres.kernels.dispatch import BACKENDS
from deepres.networks import NetworkOptions
from deepres.options import check, flags, hints, option, plain, refuse_unread

FORMAT = 3


@dataclass(frozen=True)
class Schedule:
    """How much of what is done, and when."""

    total_steps: int = option(100_000_000, least=1, resume=True)
    """Environment steps of the whole run, all environments together; of a run from `data`, gradient steps, 1,000,000
    unless said."""
    data: str | None = option(None)
    """Learn from what is recorded, without acting: a data set of episodes (.npz, `deepres data make`), or the folder
    of a finished run, whose ring is read. `env_steps` in its logs then counts gradient steps."""
    record: Literal["needed", "all"] = option("needed")
    """What the ring keeps of each step: what the algorithm asks for, or everything, for others to learn from."""
    unroll_length: int = option(62, least=1)
    """Steps collected in each environment before a round of gradient steps."""
    gradient_steps: int = option(800, least=1)
    """Gradient steps in a round."""
    batch_size: int = option(512, least=2)
    """Rows in a gradient step, in all processes together; for a contrastive loss each is a negative for the others."""
    buffer_steps: int = option(10_000, least=2)
    """Steps of each environment that the replay ring holds."""
    min_buffer_steps: int = option(1_000, least=2)
    """Steps of each environment collected before learning starts."""
    warmup_steps: int = option(0, least=0, resume=True)
    """Gradient steps over which the learning rates grow from 0 to their value (ours)."""
    lr_depth: int | None = option(None, least=1, resume=True)
    """Layers up to which a network's learning rate holds: one of D layers has sqrt(lr_depth / D) of it (ours); None is
    the same for all."""
    max_grad_norm: float | None = option(None, above=0, resume=True)
    """Bound on the Euclidean norm of each network group's gradient (ours); None has none."""
    max_skipped: float = option(0.01, least=0, below=1, share=True, resume=True)
    """Share of a round's gradient steps that may be skipped because loss or gradient is not finite (ours)."""
    on_divergence: Literal["stop", "rollback"] = option("stop", resume=True)
    """What follows a round with more of them (ours): stop, or return to the last checkpoint and learn slower."""
    rollback_lr_factor: float = option(0.5, above=0, most=1, resume=True)
    """Multiplies the learning rates at every return to a checkpoint (ours)."""
    eval_every: int = option(50, least=1, resume=True)
    """Rounds between evaluations (ours); one also runs before the first round and after the last."""
    eval_envs: int = option(128, least=1, resume=True)
    """Episodes in an evaluation, one for each environment."""
    stop_at_success: float | None = option(None, above=0, most=1, share=True, resume=True)
    """End the run at an evaluation in which this share of the episodes reached their goal (ours); None never does."""
    checkpoint_every: int = option(50, least=1, resume=True, aside=True)
    """Rounds between checkpoints (ours); one is also written at the end."""
    keep_checkpoints: int = option(2, least=1, resume=True, aside=True)
    """Newest checkpoints kept (ours)."""
    instruments_every: int = option(0, least=0, resume=True, aside=True)
    """Rounds between measurements of every block (ours; `deepres report`); 0 has none."""
    save_buffer: bool = option(True, resume=True, aside=True)
    """Write the replay buffer into checkpoints (ours): a resumed run then repeats the one not stopped, bit for bit."""
    seed: int = option(0, least=0, most=2**63 - 1, aside=True)
    """Seeds the networks, the environments and every draw of the run."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("min_buffer_steps", "unroll_length"):
            if getattr(self, name) > self.buffer_steps:
                raise ValueError(
                    f"{name} must not exceed buffer_steps={self.buffer_steps}, got {getattr(self, name)}"
                )

    @property
    def unit(self) -> str:
        """What `env_steps` counts."""
        return "env steps" if self.data is None else "gradient steps"


@dataclass(frozen=True)
class System:
    """How and where it is computed."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = option("fp32", resume=True)
    """Operands of the stack's products; sums, statistics and weights stay in fp32."""
    recompute: str | int = option("none", resume=True, aside=True)
    """Activations recomputed in backward: none, "auto", or a number of blocks between those kept."""
    impl: str = option("auto", resume=True, aside=True)
    """Kernels: auto, reference, or a backend that `deepres doctor` lists."""
    threads: int = option(0, least=0, resume=True, aside=True)
    """CPU threads of PyTorch and the CPU kernels; 0 leaves PyTorch's choice, under torchrun this process's share of
    the cores. The same number, the same bits."""
    device: str = option("auto", resume=True, aside=True)
    """Where networks and buffer live: auto (CUDA if there is one), cpu, cuda, cuda:1."""
    buffer_dtype: Literal["fp32", "bf16", "fp16"] = option("fp32", resume=True)
    """What the replay ring keeps states and actions in (ours): up to 2^-8 (bf16) or 2^-11 of a number is lost."""
    buffer_device: Literal["auto", "cpu", "cuda"] = option("auto", resume=True, aside=True)
    """Where the replay ring lies (ours): auto is beside the networks, cpu is pinned host memory."""
    cuda_graph: bool = option(True, resume=True, aside=True)
    """Replay a gradient step as a CUDA graph on a GPU (ours); False launches every kernel from Python."""
    overlap: bool = option(False, resume=True)
    """Collect the next round while this one learns (ours): actions are then those of a policy one round old."""
    rank_timeout: int = option(1800, least=1, resume=True, aside=True)
    """Seconds that a process waits for another under torchrun before it ends with a sentence (ours)."""
    wandb: bool = option(False, resume=True, aside=True)
    """Log to Weights & Biases too (ours); WANDB_MODE=offline keeps it on this machine."""

    def __post_init__(self) -> None:
        check(self)
        kernels = ("auto", *BACKENDS["residual_stack"])
        if self.impl not in kernels:
            raise ValueError(f"impl must be one of {', '.join(kernels)}, got {self.impl!r}")
        blocks = str(self.recompute)
        if blocks not in ("none", "auto") and not (_is_number(blocks) and blocks.strip("0")):
            raise ValueError(
                f"recompute must be none, auto or a number of blocks >= 1, got {self.recompute!r}"
            )

    @property
    def stack(self) -> dict[str, Any]:
        """Keyword arguments of every `deepres.residual_stack` of the run."""
        blocks = int(self.recompute) if _is_number(str(self.recompute)) else self.recompute
        return {"precision": self.precision, "recompute": blocks, "impl": self.impl}


def _is_number(word: str) -> bool:
    return word.isdecimal() and word.isascii()


RECORDED_STEPS = 1_000_000
"""Gradient steps of a run from recorded data, OGBench's number; published runs that act count 100 times as many."""

GROUPS: dict[str, type] = {
    "env": EnvOptions, "network": NetworkOptions, "schedule": Schedule, "system": System,
}  # fmt: skip


@dataclass(frozen=True, init=False)
class Config:
    """One training run.

        Config("sac", env="reacher", hindsight=0.8, depth=4)

    algorithm: a name of deepres.algorithms, or its Options. options: any option of any group by its flat name, or a
    whole group (env=EnvOptions(...), network=, schedule=, system=). Raises ValueError, naming the option, for one that
    is unknown, does not apply to the algorithm, or has a value that cannot be meant.
    """

    env: EnvOptions
    network: NetworkOptions
    algorithm: Any
    schedule: Schedule
    system: System
    algorithm_name: str

    def __init__(self, algorithm: Any = algorithms.DEFAULT, **options: Any):
        """options: by flat name, as `deepres train ALGORITHM --help` lists them, or whole groups."""
        if not isinstance(algorithm, str) and (isinstance(algorithm, type) or not is_dataclass(algorithm)):
            raise ValueError(
                f'algorithm must be a name, as in Config("crl"), or Options of an algorithm, got {algorithm!r}'
            )
        named = algorithm if isinstance(algorithm, str) else algorithms.name_of(type(algorithm))
        groups: dict[str, Any] = {name: cls() for name, cls in GROUPS.items()}
        kind = algorithms.find(named)
        groups["algorithm"] = kind.Options() if isinstance(algorithm, str) else algorithm
        for name, cls in GROUPS.items():
            if isinstance(options.get(name), cls):
                groups[name] = options.pop(name)
        options = _renamed(options, "Config")
        if options.get("data") is not None:
            options.setdefault("total_steps", RECORDED_STEPS)
        for group, values in _sorted_out(options, groups, named).items():
            groups[group] = replace(groups[group], **values)
        for name, value in {**groups, "algorithm_name": named}.items():
            object.__setattr__(self, name, value)
        self._refuse_unread()
        if kind.on_policy:
            for name, value in (("overlap", self.system.overlap), ("data", self.schedule.data)):
                if value:
                    raise ValueError(
                        f"{named} learns from what its policy as it is has just done and takes no {name}, got "
                        f"{name}={value}; leave it out"
                    )

    def _refuse_unread(self) -> None:
        """Raise ValueError for an option that another group's leaves nothing to do."""
        data = self.schedule.data or ""
        if self.network.trunk == "plain":
            refuse_unread(self.schedule, ("lr_depth",), "trunk=plain")
            refuse_unread(self.system, ("precision", "recompute"), "trunk=plain")
        if data:
            refuse_unread(self.system, ("overlap",), "data, from which nothing is collected")
        if data.endswith(".npz"):
            refuse_unread(self.system, ("buffer_dtype",), "data of a file, which is read as it is")

    # --- flat names ---

    def replace(self, **options: Any) -> Config:
        """A copy with some options, by their flat names, or whole groups set otherwise."""
        options = _renamed(options, "Config.replace")
        own = options.pop("algorithm", self.algorithm)
        if own == self.algorithm_name:
            own = self.algorithm
        if type(own) is not type(self.algorithm):
            raise ValueError(f"algorithm cannot be replaced, got {own!r}; make a new Config")
        kept = {name: getattr(own, one.name) for name, one in flags(own).items()}
        if options.get("eval_env", self.env.eval_env) != self.env.eval_env:
            options = {"eval_env_options": ()} | options  # those were the other task's
        for group, cls in GROUPS.items():
            if not isinstance(options.get(group), cls):
                values = getattr(self, group)
                kept |= {name: getattr(values, one.name) for name, one in flags(values).items()}
        return Config(self.algorithm_name, **{**kept, **options})

    @property
    def first_round(self) -> int:
        """Environment steps of the first round, which fills the buffer to its minimum; 0 of a run of recorded data."""
        steps = max(self.schedule.unroll_length, self.schedule.min_buffer_steps)
        return 0 if self.schedule.data is not None else self.env.num_envs * steps

    def flat(self) -> dict[str, Any]:
        """Every option by its flat name, the algorithm's name first."""
        values = {"algorithm": self.algorithm_name}
        for name, one in self.fields().items():
            values[name] = getattr(self._group_of(name), one.name)
        return values

    def get(self, name: str) -> Any:
        """An option by its flat name."""
        return self.flat()[name]

    def fields(self) -> dict[str, Field[Any]]:
        """Every option's field, with all that it says about itself, by its flat name."""
        return {name: one for group in self._groups() for name, one in flags(group).items()}

    def _groups(self) -> list[Any]:
        return [self.env, self.network, self.algorithm, self.schedule, self.system]

    def _group_of(self, name: str) -> Any:
        return next(group for group in self._groups() if name in flags(group))

    # --- files ---

    def to_dict(self) -> dict[str, Any]:
        groups = {name: asdict(getattr(self, name)) for name in GROUPS}
        own = {"name": self.algorithm_name, "options": asdict(self.algorithm)}
        return {"format": FORMAT, "algorithm": own, **groups}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> Config:
        """The config that `values` holds, also as version 0.1 wrote it. Raises ValueError, which names `source`, for
        what is damaged or unknown."""
        _must_be_object(values, "it", source)
        if "format" not in values and "env" not in values:
            raise ValueError(f"{source} was not written by `deepres train`; pass the folder of a run")
        if "format" not in values:  # 0.1: one algorithm, all fields flat
            return _known(lambda: cls(**_renamed(values, None)), source)
        if values["format"] != FORMAT:
            raise ValueError(
                f"{source} has config format {values['format']!r}, this version reads up to {FORMAT}; "
                "use the version of deepres that wrote it"
            )
        lacks = [name for name in ("algorithm", *GROUPS) if name not in values]
        if lacks:
            raise ValueError(f"{source} lacks {', '.join(lacks)}; restore it from a copy")
        for name in ("algorithm", *GROUPS):
            _must_be_object(values[name], name, source)
        own = values["algorithm"]
        _must_be_object(own.get("options"), "options of algorithm", source)
        return _known(lambda: cls(own.get("name"), **_flat(own, values, source)), source)

    @classmethod
    def from_file(cls, path: Path) -> Config:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no run at {path.parent}: {path.name} is not there; pass a folder that `deepres train` wrote"
            ) from None
        except NotADirectoryError:
            raise FileNotFoundError(
                f"no run at {path.parent}: it is a file or lies in one; pass a folder that `deepres train` wrote, or "
                "recorded data as a file that ends in .npz"
            ) from None
        except IsADirectoryError:
            raise ValueError(f"{path} is a folder; pass a file such as its config.json") from None
        except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
            raise _damaged(path, f"it is not readable as JSON ({error})") from None
        return cls.from_dict(values, str(path))


def _damaged(source: Any, what: str) -> ValueError:
    return ValueError(f"{source} is damaged: {what}; restore it from a copy")


def _must_be_object(value: Any, what: str, source: str) -> None:
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        raise _damaged(source, f"{what} must be an object, got {kind}")


def _flat(own: dict[str, Any], values: dict[str, Any], source: str) -> dict[str, Any]:
    """The options by flat name out of the groups of a file, where they stand by their fields' names."""
    groups = {**GROUPS, "algorithm": algorithms.find(own.get("name", "")).Options}
    names = {group: {one.name: name for name, one in flags(cls).items()} for group, cls in groups.items()}
    found: dict[str, Any] = {}
    for group in groups:
        for name, value in (own["options"] if group == "algorithm" else values[group]).items():
            homes = [one for one in groups if name in names[one] or name in names[one].values()]
            if name not in names[group] and homes:
                raise _damaged(source, f"{name} stands under {group}, it belongs to {homes[0]}")
            found[names[group].get(name, name)] = value
    return found


class UnknownOption(ValueError):
    """An option that no group has, or that is another algorithm's."""


def _sorted_out(options: dict[str, Any], groups: dict[str, Any], algorithm: str) -> dict[str, dict[str, Any]]:
    """The options by group."""
    place: dict[str, tuple[str, str]] = {}
    for group, values in groups.items():
        for name, one in flags(values).items():
            if name in place or name == "algorithm":
                taken = place.get(name, ("config", ""))[0]
                raise ValueError(
                    f"option {name} of {algorithm} is one of the {taken}'s already; call it otherwise"
                )
            place[name] = (group, one.name)
    found: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        if name not in place:
            raise UnknownOption(_why_not(name, list(place), algorithm))
        group, field_name = place[name]
        kinds = hints(cast(Any, type(groups[group])))
        found.setdefault(group, {})[field_name] = plain(kinds[field_name], value)
    return found


def _why_not(name: str, known: list[str], algorithm: str) -> str:
    others = algorithms.having(name)
    if others:
        return f"{name} does not apply to {algorithm}: it is an option of {', '.join(others)}; leave it out"
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"there is no option {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _known(make: Any, source: str) -> Config:
    try:
        return make()
    except UnknownOption as error:
        raise ValueError(f"{source} has fields this version does not know: {error}") from None
    except ValueError as error:
        sentence = str(error)
        raise ValueError(sentence if sentence.startswith(source) else f"{source}: {sentence}") from None


def _renamed(options: dict[str, Any], caller: str | None) -> dict[str, Any]:
    """`options` with the words of version 0.1 replaced by today's, which is told if there is a caller to tell."""
    renamed = dict(options)
    for old, new in algorithms.OLD_WORDS.items():
        if old not in renamed:
            continue
        if new in renamed:
            raise ValueError(f"{old} is called {new} now; pass {new} alone")
        if caller:
            warnings.warn(f"{caller}: {old} is called {new} now", FutureWarning, stacklevel=3)
        renamed[new] = renamed.pop(old)
    return renamed
