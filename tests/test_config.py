"""Options: where each goes, what each refuses, and what is read back from a file, today's and version 0.1's."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

from deepres import Config, algorithms
from deepres.algorithms.sac import SACOptions
from deepres.config import FORMAT, GROUPS, Schedule, System
from deepres.env_options import EnvOptions, values
from deepres.networks import NetworkOptions
from deepres.options import flags, helps

OPTIONS = [*GROUPS.values(), *(algorithms.find(name).Options for name in algorithms.names())]

# config.json as version 0.1 wrote it, with its defaults
VERSION_01 = {
    "env": "ant", "eval_env": None, "physics": "auto", "parity": False, "num_envs": 512, "episode_length": 1000,
    "auto_reset": "fresh",
    "critic_depth": 64, "actor_depth": 64, "width": 256, "feature_dim": 64, "skip_every": 4, "activation": "swish",
    "norm": True,
    "energy": "norm", "form": "forward", "logsumexp_penalty": 0.1, "gamma": 0.99, "batch_size": 512,
    "actor_lr": 3e-4, "critic_lr": 3e-4, "alpha_lr": 3e-4, "target_entropy_per_action": -0.5,
    "total_steps": 100_000_000, "unroll_length": 62, "gradient_steps": 800, "buffer_steps": 10_000,
    "min_buffer_steps": 1_000,
    "eval_every": 50, "eval_envs": 128, "stop_at_success": None, "checkpoint_every": 50, "keep_checkpoints": 2,
    "save_buffer": True,
    "seed": 0, "precision": "fp32", "checkpoint": "none", "impl": "auto", "threads": 0, "device": "auto",
    "buffer_dtype": "fp32", "buffer_device": "auto", "cuda_graph": True, "overlap": False, "warmup_steps": 0,
    "max_grad_norm": None, "max_skipped": 0.01, "on_divergence": "stop", "rollback_lr_factor": 0.5,
    "gather_negatives": False, "rank_timeout": 1800, "wandb": False,
}  # fmt: skip


# --- where each goes ---


def test_flat_names_reach_their_groups():
    config = Config("crl", env="reacher", num_envs=4, depth=8, gamma=0.9, batch_size=16, precision="bf16")
    assert (config.env.name, config.env.num_envs) == ("reacher", 4)
    assert (config.network.depth, config.algorithm.gamma) == (8, 0.9)
    assert (config.schedule.batch_size, config.system.precision) == (16, "bf16")
    assert config.algorithm_name == "crl" and config.get("env") == "reacher" and config.get("gamma") == 0.9
    rest = Config()
    assert config.schedule == replace(rest.schedule, batch_size=16)
    assert config.system == replace(rest.system, precision="bf16")


def test_whole_groups_and_an_algorithms_options_are_taken():
    env, network = EnvOptions(name="reacher"), NetworkOptions(depth=8)
    schedule, system = Schedule(seed=3), System(threads=1)
    own = SACOptions(tau=0.1)
    config = Config(own, env=env, network=network, schedule=schedule, system=system, num_envs=4, gamma=0.9)
    assert config.algorithm_name == "sac" and config.algorithm == replace(own, gamma=0.9)
    assert config.env == replace(env, num_envs=4) and config.env is not env
    assert (config.network, config.schedule, config.system) == (network, schedule, system)
    flat = dict(env="reacher", depth=8, seed=3, threads=1, tau=0.1, num_envs=4, gamma=0.9)
    assert config == Config("sac", **flat) and hash(config) == hash(Config("sac", **flat))


@pytest.mark.parametrize("name", algorithms.names())
def test_flat_is_every_option_once_and_makes_the_same_config(name):
    config = Config(name, env="reacher", seed=7)
    flat = config.flat()
    assert list(flat)[:2] == ["algorithm", "env"] and flat["algorithm"] == name and flat["seed"] == 7
    groups = (config.env, config.network, config.algorithm, config.schedule, config.system)
    assert len(flat) == 1 + sum(len(fields(group)) for group in groups)  # so no name is in two groups
    assert config.fields().keys() == flat.keys() - {"algorithm"}
    assert Config(**flat) == config


def test_a_run_from_recorded_data_counts_gradient_steps():
    assert Config("crl", data="a.npz").schedule.total_steps == 1_000_000
    assert Config("crl", data="a.npz", total_steps=7).schedule.total_steps == 7
    assert Config("crl", data=None).schedule.total_steps == 100_000_000
    assert [Config("crl", data=data).schedule.unit for data in ("a.npz", None)] == [
        "gradient steps",
        "env steps",
    ]


def test_replace_is_a_copy_with_some_options_set_otherwise():
    config = Config("sac", depth=8, gamma=0.9, seed=2)
    changed = config.replace(num_envs=4, gamma=0.5)
    assert (changed.env.num_envs, changed.algorithm.gamma) == (4, 0.5)
    assert (config.env.num_envs, config.algorithm.gamma) == (512, 0.9)
    differs = {name for name, value in changed.flat().items() if config.get(name) != value}
    assert differs == {"num_envs", "gamma"} and changed.algorithm_name == "sac"
    assert config.replace() == config
    with pytest.raises(ValueError, match="gamma must lie strictly between 0 and 1, got 2"):
        config.replace(gamma=2)
    other = config.replace(algorithm=SACOptions(tau=0.1), gamma=0.5)
    assert other.algorithm == SACOptions(tau=0.1, gamma=0.5) and other.network == config.network
    assert config.replace(**config.flat()) == config
    for algorithm in ("crl", algorithms.find("crl").Options(), None):
        with pytest.raises(ValueError, match=r"^algorithm cannot be replaced, got .*; make a new Config$"):
            config.replace(algorithm=algorithm)


# --- files ---


@pytest.mark.parametrize("name", algorithms.names())
def test_json_holds_every_option(name, tmp_path):
    config = Config(
        name, env="reacher", num_envs=4, depth=8, actor_lr=1e-3, eval_env="ant", recompute="2", seed=9
    )
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    assert Config.from_file(file) == config
    assert json.loads(config.to_json())["algorithm"]["name"] == name


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({}, {}),
        (
            {
                "env": "reacher",
                "critic_depth": 8,
                "actor_depth": 4,
                "physics": "c",
                "checkpoint": "2",
                "gamma": 0.9,
            },
            {"env": "reacher", "depth": 8, "actor_depth": 4, "engine": "c", "recompute": "2", "gamma": 0.9},
        ),
    ],
)
def test_a_config_of_version_01_is_read_without_a_warning(changes, now):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = Config.from_dict({**VERSION_01, **changes}, "config.json")
    assert config == Config("crl", **{"actor_depth": 64, **now})
    assert Config.from_dict(json.loads(config.to_json()), "config.json") == config


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [("critic_depth", "depth", 8), ("physics", "engine", "c"), ("checkpoint", "recompute", "2")],
)
def test_words_of_version_01_are_taken_with_a_warning(old, new, value):
    with pytest.warns(FutureWarning, match=f"Config: {old} is called {new} now") as told:
        config = Config(**{old: value})
    assert config == Config(**{new: value})
    assert [one.filename for one in told] == [__file__]  # where the old word stands
    with pytest.raises(ValueError, match=f"^{old} is called {new} now; pass {new} alone$"):
        Config(**{old: value, new: value})


def test_what_a_file_holds_and_nobody_knows_is_refused(tmp_path):
    whole = json.loads(Config("sac").to_json())
    source = "old/config.json"
    with pytest.raises(
        ValueError,
        match=f"^{source} has config format {FORMAT + 1}, this version reads up to {FORMAT}",
    ):
        Config.from_dict({**whole, "format": FORMAT + 1}, source)
    unknown = f"^{source} has fields this version does not know: there is no option 'warp'"
    with pytest.raises(ValueError, match=unknown):
        Config.from_dict({**whole, "env": {**whole["env"], "warp": 9}}, source)
    with pytest.raises(ValueError, match=unknown):
        Config.from_dict({**VERSION_01, "warp": 9}, source)
    with pytest.raises(ValueError, match=r"algorithm must be one of .*, got 'sacc'; did you mean sac"):
        Config.from_dict({**whole, "algorithm": {**whole["algorithm"], "name": "sacc"}}, source)
    with pytest.raises(ValueError, match=f"^{source} lacks schedule, system; restore it from a copy$"):
        Config.from_dict({k: v for k, v in whole.items() if k not in ("schedule", "system")}, source)
    with pytest.raises(
        FileNotFoundError, match=r"config\.json is not there; pass a folder that `deepres train` wrote"
    ):
        Config.from_file(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable as JSON"):
        Config.from_file(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda whole: [whole], "is damaged: it must be an object, got list; restore it from a copy"),
        (lambda whole: None, "is damaged: it must be an object, got null; restore it from a copy"),
        (lambda whole: {**whole, "env": None}, "is damaged: env must be an object, got null; restore"),
        (lambda whole: {**whole, "system": "fp32"}, "is damaged: system must be an object, got str; restore"),
        (
            lambda whole: {**whole, "schedule": []},
            "is damaged: schedule must be an object, got list; restore",
        ),
        (lambda whole: {**whole, "algorithm": "sac"}, "is damaged: algorithm must be an object, got str"),
        (
            lambda whole: {**whole, "algorithm": {"name": "sac"}},
            "is damaged: options of algorithm must be an object",
        ),
        (lambda whole: {**whole, "algorithm": {"options": {}}}, ": algorithm must be one of"),
        (
            lambda whole: {**whole, "env": {"depth": 4}},
            "is damaged: depth stands under env, it belongs to network",
        ),
        (
            lambda whole: {**whole, "network": {"tau": 1}},
            "is damaged: tau stands under network, it belongs to algo",
        ),
        (lambda whole: {**whole, "env": {"env": "ant"}}, "is damaged: env stands under env"),
        (
            lambda whole: {**whole, "network": {"depth": 6}},
            ": depth must be a multiple of skip_every=4, got 6",
        ),
        (lambda whole: {}, "was not written by `deepres train`"),
        (lambda whole: {**whole, "format": "3"}, "has config format '3', this version reads up to 3"),
        (lambda whole: {**whole, "format": None}, "has config format None, this version reads"),
        (lambda whole: {**whole, "format": 2}, "has config format 2, this version reads"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(change, sentence, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(change(json.loads(Config("sac").to_json()))))
    with pytest.raises(ValueError) as error:
        Config.from_file(file)
    said = str(error.value)
    assert said.startswith(str(file)) and said.removeprefix(str(file)).lstrip().startswith(sentence)


def test_what_is_no_text_is_one_sentence_that_names_it(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(
        ValueError, match=r"config\.json is damaged: it is not readable as JSON \('utf-8'.*; restore"
    ):
        Config.from_file(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r" is a folder; pass a file such as its config\.json$"):
        Config.from_file(tmp_path)


# --- what each refuses ---


def test_single_numbers_of_array_libraries_are_taken():
    config = Config(
        "crl", depth=np.int64(4), gamma=np.float32(0.5), norm=np.bool_(False), seed=torch.tensor(3)
    )
    assert config == Config("crl", depth=4, gamma=0.5, norm=False, seed=3)
    assert json.loads(config.to_json())["network"]["depth"] == 4
    with pytest.raises(ValueError, match="depth must be a whole number >= 1, got array"):
        Config(depth=np.array([4]))


@pytest.mark.parametrize("algorithm", [None, 3, SACOptions, ["crl"]])
def test_what_is_no_algorithm_is_refused(algorithm):
    with pytest.raises(
        ValueError, match=r"^algorithm must be a name, as in .*, or Options of an algorithm, got "
    ):
        Config(algorithm)


def test_recompute_is_a_number_or_a_word():
    assert Config(recompute=4).system.recompute == 4
    for value, blocks in ((4, 4), ("4", 4), ("auto", "auto")):
        config = Config(recompute=value)
        assert config.system.stack["recompute"] == blocks
        assert Config.from_dict(json.loads(config.to_json()), "here") == config
    for bad in (0, -1, "0", "\u00b2", "\u0664", "-1", "2.5"):
        with pytest.raises(
            ValueError, match=r"^recompute must be none, auto or a number of blocks >= 1, got "
        ):
            Config(recompute=bad)


def owners(option: str) -> str:
    return ", ".join(algorithms.having(option))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("sac", {"energy": "dot"}, f"energy does not apply to sac: it is an option of {owners('energy')}"),
        (
            "gcbc",
            {"critic_lr": 1e-3},
            f"critic_lr does not apply to gcbc: it is an option of {owners('critic_lr')}; leave",
        ),
        ("crl", {"batchsize": 4}, "there is no option 'batchsize'; did you mean batch_size?"),
        ("crl", {"name": "ant"}, "there is no option 'name'"),
        ("crl", {"zzz": 1}, "there is no option 'zzz'"),
        (
            "sac",
            {"reward": "dense", "hindsight": 0.8},
            "reward=dense is that of the commanded goal and hindsight must then be 0, got 0.8; leave one of them out",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_refused(name, options, sentence):
    with pytest.raises(ValueError) as error:
        Config(name, **options)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("group", OPTIONS, ids=lambda group: group.__name__)
def test_every_option_has_a_help_and_every_group_a_line(group):
    told = helps(group)
    assert told.keys() == {one.name for one in fields(group)}
    assert all(text.endswith(".") and len(text) > 5 for text in told.values())
    assert group.__doc__ and not group.__doc__.startswith(group.__name__)


def _outside(kind: Any, facts: Any) -> list[Any]:
    """Values that a field of type `kind` with these facts must refuse."""
    kinds = (
        [k for k in get_args(kind) if k is not type(None)]
        if get_origin(kind) not in (None, Literal)
        else [kind]
    )
    bad: list[Any] = [] if type(None) in get_args(kind) else [None]
    if kinds == [str, int]:
        return [*bad, 2.5, True, ["a"]]
    if get_origin(kind) is tuple:
        mappings = [{"a": math.nan}, {2: 1}, {"a": object()}, {"seed": 1}]
        return [*bad, 3, "a", ["a=1", 2], ["a=1", "a=2"], *mappings]
    (kind,) = kinds
    step = 1 if kind is int else 1e-6
    for name, away in (("least", -step), ("above", 0), ("below", 0), ("most", step)):
        if name in facts:
            bad.append(facts[name] + away)
    if kind is bool:
        return [*bad, 1, "yes"]
    if kind is int:
        return [*bad, 2.5, True, "4", math.nan]
    if kind is float:
        return [*bad, math.nan, math.inf, True, "0.5"]
    return [*bad, 3, ["a"]] if kind is str else [*bad, "none of these", 3]


def test_a_tasks_own_options_have_one_form():
    """However they are given: a mapping, words, or what a file has of either."""
    given = {"rows": ["##", "R "], "hard": True, "far": 2.5, "layout": "u4_maze", "label": "3", "none": None}
    config = Config(env_options=given, eval_env_options="hard=True")
    words = (
        "far=2.5", "hard=true", 'label="3"', "layout=u4_maze", "none=null", 'rows=["##", "R "]',
    )  # fmt: skip
    assert (config.env.options, config.env.eval_options) == (words, ("hard=true",))
    assert values(config.env.options) == given
    assert Config(env_options=list(reversed(words)), eval_env_options={"hard": True}) == config
    assert Config.from_dict(json.loads(config.to_json()), "config.json") == config and hash(config)


@pytest.mark.parametrize("group", OPTIONS, ids=lambda group: group.__name__)
def test_every_options_type_and_bounds_are_checked(group):
    kinds = get_type_hints(group)
    for name, one in flags(group).items():
        for value in _outside(kinds[one.name], one.metadata):
            with pytest.raises(ValueError, match=f"^{name} (must|has) "):
                group(**{one.name: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth": 6}, "depth must be a multiple of skip_every=4, got 6; use 4 or 8"),
        ({"actor_lr": float("nan")}, "actor_lr must be a finite number >= 0, got nan"),
        ({"critic_lr": -1.0}, "critic_lr must be a finite number >= 0, got -1.0"),
        ({"gamma": 1.0}, "gamma must lie strictly between 0 and 1, got 1.0"),
        ({"gamma": float("nan")}, "gamma must lie strictly between 0 and 1, got nan"),
        ({"batch_size": 1}, "batch_size must be a whole number >= 2, got 1"),
        ({"num_envs": 2.5}, "num_envs must be a whole number >= 1, got 2.5"),
        ({"energy": "manhattan"}, "energy must be one of norm, l2, dot, cosine, mrn, got 'manhattan'"),
        ({"precision": "int8"}, "precision must be one of fp32, tf32, bf16, fp16, got 'int8'"),
        ({"min_buffer_steps": 20_000}, "min_buffer_steps must not exceed buffer_steps=10000, got 20000"),
        ({"recompute": "0"}, "recompute must be none, auto or a number of blocks >= 1, got '0'"),
        ({"logsumexp_penalty": float("inf")}, "logsumexp_penalty must be a finite number >= 0, got inf"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a finite number above 0, got 0.0"),
        ({"rollback_lr_factor": 2}, "rollback_lr_factor must be a finite number above 0 and up to 1, got 2"),
        ({"max_skipped": 1}, "max_skipped must be a share from 0 to below 1, got 1"),
        ({"buffer_dtype": "int8"}, "buffer_dtype must be one of fp32, bf16, fp16, got 'int8'"),
        ({"on_divergence": "pray"}, "on_divergence must be one of stop, rollback, got 'pray'"),
        ({"actor_lr": 10**400}, "actor_lr must be a finite number >= 0, got a whole number of 1329 bits"),
        ({"gamma": 10**5000}, "gamma must lie strictly between 0 and 1, got a whole number of 16610 bits"),
        ({"depth": 2**63}, f"depth must be a whole number >= 1 that 64 bits hold, got {2**63}"),
        (
            {"env_options": {"layout": "u_maze", "seed": 3}},
            "env_options must hold the task's own options alone, got seed; leave it out, or pass it as the run's",
        ),
        (
            {"goal_sampler": "my_goals"},
            "goal_sampler must name a function, as my_module:my_goals, got 'my_goals'",
        ),
        ({"seed": 2**63}, f"seed must be a whole number from 0 to {2**63 - 1}, got {2**63}"),
        ({"seed": -1}, f"seed must be a whole number from 0 to {2**63 - 1}, got -1"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number >= 0, got -1"),
    ],
)
def test_config_refuses_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError) as error:
        Config(**changes)
    assert str(error.value) == sentence
