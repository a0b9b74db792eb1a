"""The algorithms by name: one file each, and the user's own beside them.

    deepres.algorithms.register("mine", Mine)             # or "my_package.my_module:Mine"
    deepres.train(deepres.Config("mine", env="ant"))

base.py holds the contract, parts.py what several are put together from.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepres.options import flag, flags

if TYPE_CHECKING:
    from deepres.algorithms.base import Algorithm

DEFAULT = "crl"

OLD_WORDS = {"critic_depth": "depth", "physics": "engine", "checkpoint": "recompute"}
"""Options as version 0.1 called them; its one algorithm, CRL, gave the network's depth a name of its own."""

RESERVED = frozenset(OLD_WORDS) | {
    "algorithm", "env", "network", "schedule", "system",  # of Config
    "preset", "config_file", "run_dir", "resume", "grid", "depths", "seeds", "out", "jobs", "memory_gb",
    "import", "help", "self",
}  # fmt: skip
"""Words of `Config` and of the commands, which no algorithm's option can be called."""

_ALGORITHMS: dict[str, Any] = {  # name -> "module:class", or the class
    "c51": "deepres.algorithms.categorical:C51",
    "c_learning": "deepres.algorithms.c_learning:CLearning",
    "chrono": "deepres.algorithms.chrono:Chrono",
    "crl": "deepres.algorithms.crl:CRL",
    "distill": "deepres.algorithms.distill:Distill",
    "gcbc": "deepres.algorithms.gcbc:GCBC",
    "gciql": "deepres.algorithms.gciql:GCIQL",
    "gcivl": "deepres.algorithms.gcivl:GCIVL",
    "gcsl": "deepres.algorithms.gcsl:GCSL",
    "hl_gauss": "deepres.algorithms.categorical:HLGauss",
    "hiql": "deepres.algorithms.hiql:HIQL",
    "ppo": "deepres.algorithms.ppo:PPO",
    "qrl": "deepres.algorithms.qrl:QRL",
    "sac": "deepres.algorithms.sac:SAC",
    "srl": "deepres.algorithms.srl:SRL",
    "td3": "deepres.algorithms.td3:TD3",
    "td_infonce": "deepres.algorithms.td_infonce:TDInfoNCE",
    "td_mse": "deepres.algorithms.categorical:TDMSE",
    "two_hot": "deepres.algorithms.categorical:TwoHot",
}


def names() -> list[str]:
    """The names that `find` knows, sorted."""
    return sorted(_ALGORITHMS)


def find(name: str) -> type[Algorithm]:
    """The algorithm called `name`. Raises ValueError, naming the near ones, if there is none, and ImportError if the
    module that it is said to be in cannot be imported."""
    if not isinstance(name, str) or name not in _ALGORITHMS:
        near = get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"algorithm must be one of {', '.join(names())}, got {name!r}; {hint}"
            "one of your own is registered first (deepres.algorithms.register, --import on the command line)"
        )
    found = _ALGORITHMS[name]
    if isinstance(found, str):
        found = _ALGORITHMS[name] = _checked(name, _imported(name, found))
    return found


def having(option: str) -> list[str]:
    """The names of the algorithms with this option, by its flat name; one that cannot be imported has none."""
    return [name for name in names() if (one := _sound(name)) and option in flags(one.Options)]


def register(name: str, algorithm: type[Algorithm] | str) -> None:
    """Make `algorithm` known as `name`, to `Config` and to the command line.

    algorithm: a class of deepres.algorithms.base.Algorithm, or where one is: "package.module:Class", imported when it
    is asked for. Raises ValueError for a name that is taken by another or is none, TypeError for a class that lacks
    what the contract asks for.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"an algorithm's name must be letters, digits and underscores, got {name!r}")
    if isinstance(algorithm, str):
        if algorithm.count(":") != 1:
            raise ValueError(f"algorithm must be a class or 'package.module:Class', got {algorithm!r}")
    else:
        _checked(name, algorithm)
    taken = _ALGORITHMS.get(name, algorithm)
    if _place(taken) != _place(algorithm):
        raise ValueError(f"the algorithm {name!r} is there already ({_place(taken)}); choose another name")
    _ALGORITHMS[name] = algorithm


def name_of(algorithm: type) -> str:
    """The name of an algorithm's class, or of its Options. Raises ValueError if it is not registered, or if several
    are that share the class."""
    named = [name for name in names() if _is_of(algorithm, _present(name))]
    if not named:  # Options may stand apart from an algorithm that nobody has asked for yet
        named = [name for name in names() if _is_of(algorithm, _sound(name))]
    if not named:
        raise ValueError(f"{algorithm.__name__} is no algorithm's; register the algorithm first")
    if len(named) > 1:
        raise ValueError(
            f"{algorithm.__name__} is that of {', '.join(named)}; pass the name, and the options one by one"
        )
    return named[0]


def _is_of(kind: type, algorithm: Any) -> bool:
    return algorithm is not None and kind in (algorithm, getattr(algorithm, "Options", None))


def _present(name: str) -> Any:
    """The algorithm called `name`, or None where its module is not imported yet."""
    found = _ALGORITHMS[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    return getattr(sys.modules.get(module), attribute, None)


def _sound(name: str) -> Any:
    """The algorithm called `name`, or None where it cannot be imported or is none."""
    try:
        return find(name)
    except (ImportError, TypeError, ValueError):
        return None


def _imported(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        found = import_module(module)
    except Exception as error:
        raise ImportError(
            f"algorithm {name!r} is registered as {place}, and {module} cannot be imported "
            f"({type(error).__name__}: {error}); mend the module, or register the algorithm where it is"
        ) from error
    if not hasattr(found, attribute):
        raise ValueError(
            f"algorithm {name!r} is registered as {place}, and {module} has no {attribute!r}; "
            "register the algorithm where it is"
        )
    return getattr(found, attribute)


def _place(algorithm: Any) -> str:
    return algorithm if isinstance(algorithm, str) else f"{algorithm.__module__}:{algorithm.__qualname__}"


def _checked(name: str, algorithm: Any) -> Any:
    from deepres.algorithms.base import Algorithm

    if not (isinstance(algorithm, type) and issubclass(algorithm, Algorithm)):
        raise TypeError(
            f"algorithm {name!r} must be a class of deepres.algorithms.base.Algorithm, got {algorithm!r}"
        )
    missing = [what for what in ("Options", "headline", "passes") if not hasattr(algorithm, what)]
    if missing or algorithm.__abstractmethods__:
        lacks = ", ".join([*missing, *sorted(algorithm.__abstractmethods__)])
        raise TypeError(
            f"algorithm {name!r} ({algorithm.__name__}) lacks {lacks}; see deepres.algorithms.base"
        )
    dataclass = getattr(algorithm.Options, "__dataclass_params__", None)
    if dataclass is None or not dataclass.frozen:
        raise TypeError(
            f"Options of algorithm {name!r} must be a frozen dataclass, got {algorithm.Options!r}"
        )
    for one in fields(algorithm.Options):
        if one.default is MISSING and one.default_factory is MISSING:
            raise TypeError(f"option {flag(one)} of algorithm {name!r} has no default; give it one")
        if flag(one) in RESERVED:
            raise ValueError(
                f"option {flag(one)} of algorithm {name!r} is a word of Config or of the commands; call it otherwise"
            )
    return algorithm


__all__ = ["DEFAULT", "OLD_WORDS", "RESERVED", "find", "having", "name_of", "names", "register"]
