"""Options: a group of them is a frozen dataclass whose fields state every fact about themselves, once.

    @dataclass(frozen=True)
    class Options:
        gamma: float = option(0.99, above=0, below=1)
        "Discount: a goal lies d steps ahead with probability proportional to gamma^d."

        def __post_init__(self) -> None:
            check(self)

The string under a field is its help on the command line; its type and its bounds are what `check` holds it to.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import types
from collections.abc import Iterable
from dataclasses import Field, field, fields
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

BOUNDS = ("least", "above", "most", "below")


def option(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    resume: bool = False,
    aside: bool = False,
    share: bool = False,
    flag: str | None = None,
) -> Any:
    """A field of an options dataclass.

    least, above: lower bound, itself allowed or not; most, below: the upper one. resume: may change when a run is
    resumed. aside: says how and where a run is computed and kept, not what it is; runs that differ in nothing else
    are compared as one. share: called "a share" in sentences. flag: its name as an option, by default the field's.
    """
    facts = {
        "least": least, "above": above, "most": most, "below": below,
        "resume": resume, "aside": aside, "share": share, "flag": flag,
    }  # fmt: skip
    return field(
        default=default, metadata={k: v for k, v in facts.items() if v is not None and v is not False}
    )


def flag(one: Field[Any]) -> str:
    """The name of a field as an option."""
    return one.metadata.get("flag", one.name)


def flags(group: Any) -> dict[str, Field[Any]]:
    """The fields of an options dataclass (or an instance of one), by their names as options."""
    return {flag(one): one for one in fields(group)}


def check(group: Any) -> None:
    """Raise ValueError, naming the option, for a value of `group` that cannot be meant."""
    kind: Any = type(group)
    types_of = hints(kind)
    for one in fields(group):
        value = getattr(group, one.name)
        sentence = _wrong(types_of[one.name], one, value)
        if sentence:
            raise ValueError(f"{flag(one)} must {sentence}, got {_shown(value)}")


def refuse_unread(group: Any, names: Iterable[str], where: str) -> None:
    """Raise ValueError for one of the options `names` that is not the default, though nothing reads it at `where`."""
    for one in fields(group):
        if one.name in names and getattr(group, one.name) != one.default:
            raise ValueError(
                f"{flag(one)} does not apply to {where}, got {_shown(getattr(group, one.name))}; leave it out"
            )


def plain(kind: Any, value: Any) -> Any:
    """`value` for a field of type `kind` as Python has it: a list, which is JSON's word for a tuple, becomes one, and
    a single number of an array library (NumPy, PyTorch, JAX) becomes Python's."""
    wanted = next((k for k in _kinds(kind) if _is_tuple(k)), None)
    if wanted is not None and isinstance(value, list | tuple):
        elements = _elements(wanted, len(value))
        return tuple(plain(k, v) for k, v in zip(elements, value, strict=False)) + tuple(
            value[len(elements) :]
        )
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


@cache
def hints(cls: Any) -> dict[str, Any]:
    """The fields' types, resolved."""
    return get_type_hints(cls)


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types that a union is of, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_tuple(kind: Any) -> bool:
    return kind is tuple or get_origin(kind) is tuple


def _elements(kind: Any, count: int) -> tuple[Any, ...]:
    """The types of a tuple's elements; `count` of them where the type leaves it open."""
    named = get_args(kind)
    if kind is tuple or named[-1:] == (...,):
        return (named[0] if named else Any,) * count
    return named


def _wrong(kind: Any, one: Field[Any], value: Any) -> str | None:
    """What the value must do ("be a whole number >= 1"), where it does not."""
    kinds = _kinds(kind)
    optional = type(None) in kinds
    if optional and value is None:
        return None
    wanted = [_wanted(k, one, value) for k in kinds if k is not type(None)]
    if not wanted:
        return "be None"
    sentences = [sentence for sentence in wanted if sentence]
    if len(sentences) < len(wanted):
        return None
    suffix = ", or None" if optional and one.metadata.get("share") else ""
    return " or ".join([sentences[0], *(rest.removeprefix("be ") for rest in sentences[1:])]) + suffix


def _wanted(kind: Any, one: Field[Any], value: Any) -> str | None:
    """The same for a type that is no union."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return None if value in choices else f"be one of {', '.join(map(str, choices))}"
    if _is_tuple(kind):
        return _wanted_tuple(kind, one, value)
    if kind is bool:
        return None if isinstance(value, bool) else "be True or False"
    if kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and not -(2**63) <= value < 2**63 and "most" not in one.metadata:
            return f"be a whole number{_bounds(one)} that 64 bits hold"
        return None if whole and _within(one, value) else f"be a whole number{_bounds(one)}"
    if kind is float:
        return None if _is_finite(value) and _within(one, value) else _number(one)
    if kind is str:
        return None if isinstance(value, str) else "be a string"
    return None


def _wanted_tuple(kind: Any, one: Field[Any], value: Any) -> str | None:
    if not isinstance(value, tuple):
        return "be a tuple"
    elements = _elements(kind, len(value))
    if len(elements) != len(value):
        return f"be a tuple of {len(elements)}"
    sentences = (_wrong(k, one, v) for k, v in zip(elements, value, strict=True))
    sentence = next((each for each in sentences if each), None)
    return f"be a tuple of which each must {sentence}" if sentence else None


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _shown(value: Any) -> str:
    """`value` as a sentence quotes it; Python does not write whole numbers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value)


def _within(one: Field[Any], value: float) -> bool:
    facts = one.metadata
    return (
        value >= facts.get("least", -math.inf)
        and value > facts.get("above", -math.inf)
        and value <= facts.get("most", math.inf)
        and value < facts.get("below", math.inf)
    )


def _number(one: Field[Any]) -> str:
    facts = one.metadata
    if facts.keys() >= {"above", "below"} and not facts.get("share"):
        return f"lie strictly between {_figure(facts['above'])} and {_figure(facts['below'])}"
    if facts.get("share"):
        return f"be a share{_bounds(one)}"
    bounds = _bounds(one)
    return f"be a finite number{bounds}" if bounds else "be finite"


def _bounds(one: Field[Any]) -> str:
    facts = {name: _figure(one.metadata[name]) for name in BOUNDS if name in one.metadata}
    upper = f"below {facts['below']}" if "below" in facts else facts.get("most", "")
    if "least" in facts:
        return f" from {facts['least']} to {upper}" if upper else f" >= {facts['least']}"
    if "above" in facts:
        return f" above {facts['above']} and up to {upper}" if upper else f" above {facts['above']}"
    return f" up to {upper}" if upper else ""


def _figure(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@cache
def helps(cls: Any) -> dict[str, str]:
    """The string that stands under each field of an options dataclass, its bases' too, by the field's name, on one
    line."""
    told: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        told |= _own_helps(each)
    return told


def _own_helps(cls: Any) -> dict[str, str]:
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, SyntaxError, TypeError, ValueError):  # made where there is no source: in a shell, say
        return {}
    told: dict[str, str] = {}
    for one, after in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
        if not (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            told[one.target.id] = " ".join(str(after.value.value).split())
    return told
