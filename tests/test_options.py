"""Options dataclasses: what a field's type and bounds refuse, what is made of a file's values, and their helps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from deepres import Config, algorithms
from deepres.options import check, helps, option


def test_bounds_say_whether_they_are_within():
    @dataclass(frozen=True)
    class Group:
        share: float = option(0.5, least=0, most=1, share=True)
        open: float | None = option(0.5, above=0, below=1)
        count: int = option(3, least=2)
        way: Literal["up", "down"] = option("up", flag="direction")

        def __post_init__(self) -> None:
            check(self)

    for good in ({"share": 0}, {"share": 1.0}, {"open": None}, {"open": 1e-9}, {"count": 2}, {"way": "down"}):
        Group(**good)
    for bad, sentence in (
        ({"share": 1.1}, "share must be a share from 0 to 1, got 1.1"),
        ({"open": 0}, "open must lie strictly between 0 and 1, got 0"),
        ({"open": 1}, "open must lie strictly between 0 and 1, got 1"),
        ({"count": 1}, "count must be a whole number >= 2, got 1"),
        ({"way": "left"}, "direction must be one of up, down, got 'left'"),
    ):
        with pytest.raises(ValueError) as error:
            Group(**bad)
        assert str(error.value) == sentence


@dataclass(frozen=True)
class Wide:
    """Options of the types that own algorithms have."""

    sizes: tuple[int, ...] = option((4, 8), least=1)
    """Layers."""
    span: tuple[float, float] | None = option(None)
    """From and to."""
    rate: int | float = option(1, least=0)
    """Steps."""
    names: tuple[tuple[str, int], ...] = option(())
    """Nested."""

    def __post_init__(self) -> None:
        check(self)


def test_tuples_and_unions_are_checked():
    Wide((1,), (0.5, 2), 0.5, (("a", 1),))
    for bad, sentence in (
        ({"sizes": 4}, "sizes must be a tuple, got 4"),
        ({"sizes": [4]}, "sizes must be a tuple, got [4]"),
        ({"sizes": (4, 0)}, "sizes must be a tuple of which each must be a whole number >= 1, got (4, 0)"),
        (
            {"sizes": (4, 0.5)},
            "sizes must be a tuple of which each must be a whole number >= 1, got (4, 0.5)",
        ),
        ({"span": (1.0,)}, "span must be a tuple of 2, got (1.0,)"),
        ({"rate": -1}, "rate must be a whole number >= 0 or a finite number >= 0, got -1"),
        ({"rate": "1"}, "rate must be a whole number >= 0 or a finite number >= 0, got '1'"),
        (
            {"names": (("a", "b"),)},
            "names must be a tuple of which each must be a tuple of which each must be a whole",
        ),
    ):
        with pytest.raises(ValueError) as error:
            Wide(**bad)
        assert str(error.value).startswith(sentence)


def test_lists_become_tuples_and_come_back_from_a_file(monkeypatch):
    monkeypatch.setattr(algorithms, "_ALGORITHMS", dict(algorithms._ALGORITHMS))
    algorithms.register("wide", type("WideSAC", (algorithms.find("sac"),), {"Options": Wide}))
    config = Config("wide", sizes=[2, 3], span=[0, 1], names=[["a", 1]])
    assert config.algorithm == Wide((2, 3), (0, 1), 1, (("a", 1),))
    again = Config.from_dict(json.loads(config.to_json()), "here")
    assert again == config and hash(again) == hash(config) and again.flat() == config.flat()
    with pytest.raises(ValueError, match="span must be a tuple of 2, got"):
        Config("wide", span=[1, 2, 3])


def test_helps_are_those_of_the_bases_too_and_none_where_there_is_no_source():
    @dataclass(frozen=True)
    class Wider(Wide):
        more: int = option(1)
        """One more."""

    assert helps(Wider) == {**helps(Wide), "more": "One more."} and "rate" in helps(Wider)
    made: dict[str, Any] = {"dataclass": dataclass, "__name__": "builtins"}  # no file at all
    exec("@dataclass(frozen=True)\nclass Made:\n    lr: float = 1.0\n", made)
    assert helps(made["Made"]) == {}


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("crl", {"candidates": 64}, "candidates does not apply to extraction=entropy, got 64; leave it out"),
        ("crl", {"extraction": "awr", "exact_tanh": True}, "exact_tanh does not apply to extraction=awr"),
        ("qrl", {"extraction": "ddpg_bc", "alpha_lr": 1.0}, "alpha_lr does not apply to extraction=ddpg_bc"),
        ("qrl", {"bc_alpha": 1.0}, "bc_alpha does not apply to extraction=entropy"),
        ("sac", {"hindsight_strategy": "final"}, "hindsight_strategy does not apply to hindsight=0"),
        ("td_infonce", {"log_alpha_bound": 1.0}, "log_alpha_bound does not apply to entropy=False"),
        ("gcivl", {"trunk": "plain", "lr_depth": 16}, "lr_depth does not apply to trunk=plain"),
        (
            "crl",
            {"trunk": "plain", "precision": "bf16"},
            "precision does not apply to trunk=plain, got 'bf16'",
        ),
        ("crl", {"trunk": "plain", "recompute": 4}, "recompute does not apply to trunk=plain, got 4"),
        ("crl", {"data": "one.npz", "overlap": True}, "overlap does not apply to data"),
        ("crl", {"data": "one.npz", "buffer_dtype": "bf16"}, "buffer_dtype does not apply to data of a file"),
    ],
)
def test_an_option_that_another_leaves_nothing_to_do_is_told(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(name, **options)
