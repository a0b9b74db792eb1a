"""What is read from the arguments before a command parses them: modules to import, the algorithm, where defaults come
from, and the words of version 0.1."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from deepres import algorithms
from deepres.config import RECORDED_STEPS, Config
from deepres.runs.folder import RunFolder

imported: list[str] = []
"""What `--import` of the command under way has named: processes of its own import the same."""


def import_modules(words: list[str]) -> tuple[list[str], list[str]]:
    """`words` without its `--import MODULE`, and the modules, imported: they register environments and algorithms.
    From here on modules of the working folder are found, a sampler of goals among them.

    Raises ValueError in one sentence for what names no module, ImportError for one that cannot be imported.
    """
    rest: list[str] = []
    modules: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name != "--import":
            rest.append(word)
            continue
        module = value if equals else next(waiting, "")
        if not module:
            raise ValueError("--import wants the name of a module, e.g. --import my_package.my_module")
        if "/" in module or "\\" in module or module.startswith(".") or module.endswith(".py"):
            raise ValueError(
                f"--import wants a module's name, as my_package.my_module, no path, got {module!r}"
            )
        modules.append(module)
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the working folder, as `python -m` has it
    for module in modules:
        _import(module)
    imported[:] = dict.fromkeys(modules)
    return rest, modules


def _import(module: str) -> None:
    try:
        import_module(module)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])
        if absent:
            raise ValueError(
                f"--import {module}: there is no such module; run the command beside it, or set PYTHONPATH"
            ) from None
        raise ImportError(f"--import {module}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Defaults:
    """config: the options that stand where none is typed: a run's own, a preset's, a file's, or the published ones.
    rest: the options that are typed. imported: modules that were imported first."""

    config: Config
    rest: list[str]
    imported: list[str]

    @classmethod
    def read(cls, words: list[str], imported: list[str]) -> Defaults:
        """Raises ValueError in one sentence for an unknown algorithm, for two sources at once, or for an option of
        another algorithm."""
        algorithm, rest = None, words
        if words and not words[0].startswith("-"):
            algorithm, rest = words[0], words[1:]
            algorithms.find(algorithm)
        for before, word in pairwise(rest):
            if algorithm is None and word in algorithms.names() and not before.startswith("--"):
                raise ValueError(f"the algorithm comes before its options: deepres ... {word} --...")
        rest = [_renamed(word) for word in rest]
        config = _config(rest, algorithm)
        for word in rest:
            _refuse_another_algorithms(word, config)
        return cls(config, rest, imported)


def _config(words: list[str], algorithm: str | None) -> Config:
    names = ("--config-file", "--resume", "--preset")
    sources = [(name, value) for name in names if (value := _typed(words, name))]
    if not sources:
        return Config(algorithm or algorithms.DEFAULT, data=_typed(words, "--data"))
    name, value = sources[0]
    if len(sources) > 1 and (name, sources[1][0]) != ("--config-file", "--resume"):
        raise ValueError(f"pass {name} or {sources[1][0]}, not both: each is where the defaults come from")
    if name == "--preset":
        from deepres.experiments.presets import preset

        config = preset(value)
        if data := _typed(words, "--data"):  # the paper's steps are those of a run that acts
            config = config.replace(data=data, total_steps=RECORDED_STEPS)
    else:
        if name == "--config-file" and not Path(value).exists():
            raise FileNotFoundError(
                f"there is no file {value}; pass a config.json that `deepres train` wrote"
            )
        config = RunFolder(Path(value)).read_config() if name == "--resume" else Config.from_file(Path(value))
    if algorithm not in (None, config.algorithm_name):
        raise ValueError(
            f"{name} {value} is of {config.algorithm_name}, got {algorithm}; leave the algorithm out"
        )
    return config


def _renamed(word: str) -> str:
    """An option with hyphens in its name; one of version 0.1 under its name of today, which is told."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    old = name.removeprefix("--").replace("-", "_")
    if old not in algorithms.OLD_WORDS:
        return name.replace("_", "-") + equals + value
    new = "--" + algorithms.OLD_WORDS[old].replace("_", "-")
    print(f"deepres: {name} is called {new} now", file=sys.stderr)
    return new + equals + value


def _refuse_another_algorithms(word: str, config: Config) -> None:
    name = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    if not word.startswith("--") or name in config.fields():
        return
    others = algorithms.having(name)
    if others:
        raise ValueError(
            f"--{name.replace('_', '-')} does not apply to {config.algorithm_name}: it is an option of "
            f"{', '.join(others)}; leave it out"
        )


def _typed(words: list[str], name: str) -> str | None:
    """The value of an option wherever it stands, "--name value" or "--name=value"."""
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
    return None
