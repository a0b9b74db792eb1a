"""The command line: `deepres train`, `eval`, `sweep`, `compare`, `doctor` and more, each a thin call of the Python API.

What is wrong with the input is one sentence on stderr and exit status 2; a run that cannot go on is status 1.
"""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import tyro

from deepres._version import __version__
from deepres.commands import configured, data, distill, experiments, listing, prune, runs
from deepres.commands.arguments import Defaults, import_modules
from deepres.runs.streams import lasting_output
from deepres.training.stopping import Stopped, exit_status

ABOUT = (
    "Very deep residual networks for self-supervised reinforcement learning. With --import MODULE, before or after any "
    "command, a module of yours is imported first: it registers environments and algorithms. deepres --version tells "
    "the version."
)

PLAIN: dict[str, Callable[..., None]] = {
    "eval": runs.evaluate,
    "render": runs.render,
    "export": runs.export,
    "grow": runs.grow,
    "distill": distill.distill,
    "report": runs.report,
    "analyse": prune.analyse,
    "prune": prune.prune,
    "compare": runs.compare,
    "demo": runs.demo,
    "experiment": experiments.experiment,
    "envs": listing.envs,
    "algorithms": listing.algorithms,
    "presets": listing.presets,
}
"""Commands whose options are their own."""

CONFIGURED: dict[str, Callable[[list[str], Defaults], None]] = {
    one.__name__: one for one in configured.COMMANDS
}
"""Commands that take a run's options: `deepres train sac --env reacher`; without an algorithm's name it is crl."""


NESTED: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": ("Make data sets of episodes, and look at them: make, info.", data.COMMANDS),
}
"""Commands that have commands of their own."""


def main(argv: list[str] | None = None) -> None:
    """Run one command. argv: the arguments, by default the process's own."""
    words = list(sys.argv[1:] if argv is None else argv)
    with lasting_output():
        _run(words)


def _run(words: list[str]) -> None:
    if words == ["--version"]:
        print(f"deepres {__version__}")
        return
    try:
        words, imported = import_modules(words)
        if words and words[0] in CONFIGURED:
            given = Defaults.read(words[1:], imported)
            CONFIGURED[words[0]](given.rest, given)
        elif words and words[0] in NESTED:
            about, commands = NESTED[words[0]]
            tyro.extras.subcommand_cli_from_dict(
                commands, prog=f"deepres {words[0]}", description=about, args=words[1:]
            )
        else:
            parsed_elsewhere = [*CONFIGURED.items(), *((name, _group(*one)) for name, one in NESTED.items())]
            commands = {**{name: _listed(one) for name, one in parsed_elsewhere}, **PLAIN}
            if words and not words[0].startswith("-") and words[0] not in commands:
                near = difflib.get_close_matches(words[0], commands, n=1)
                remedy = f"did you mean {near[0]}?" if near else "`deepres --help` lists them"
                raise ValueError(f"there is no command {words[0]!r}; {remedy}")
            tyro.extras.subcommand_cli_from_dict(commands, prog="deepres", description=ABOUT, args=words)
    except (ValueError, TypeError, OSError) as error:
        _fail(_sentence(error), 2)
    except Stopped as error:
        _fail(_sentence(error), error.status)
    except (RuntimeError, ImportError, MemoryError) as error:
        _fail(_sentence(error), 1)
    except KeyboardInterrupt:
        _fail("stopped at once by Ctrl-C; what was saved before is whole", exit_status("SIGINT"))


def _group(about: str, _: Any) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = about
    return command


def _listed(command: Any) -> Callable[[], None]:
    """`command` as `deepres --help` lists it; it is parsed elsewhere."""

    @wraps(command, assigned=("__name__", "__doc__"), updated=())
    def stand_in() -> None: ...

    del stand_in.__wrapped__
    return stand_in


WRONG_PLACES = {
    errno.ENOTDIR: "is a file or lies in one, where a folder is wanted; pass another path",
    errno.EEXIST: "is there already; pass another path",
    errno.EISDIR: "is a folder, where a file is wanted; pass the path of a file",
    errno.ENOENT: "is not there; pass another path",
    errno.EACCES: "is not for this user to read or write; pass another path",
    errno.EPERM: "is not for this user to read or write; pass another path",
    errno.EROFS: "is on a disk that cannot be written; pass another path",
}
"""What the operating system says of a path, and the remedy."""


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.errno in WRONG_PLACES:
        return f"{error.filename} {WRONG_PLACES[error.errno]}"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(sentence: str, status: int) -> None:
    print(f"deepres: {sentence}", file=sys.stderr)
    raise SystemExit(status)
