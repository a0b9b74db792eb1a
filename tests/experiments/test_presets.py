"""Presets: the paper's rows, each a run that can be asked for by name."""

from __future__ import annotations

import pytest

from deepres import envs
from deepres.commands.main import main
from deepres.config import Config
from deepres.experiments import presets


def test_every_row_of_the_papers_tables_is_there():
    papers = [one for one in presets.PRESETS.values() if one.method == "crl"]
    assert len({one.env for one in papers}) == 10
    for one in presets.PRESETS.values():
        assert one.depth in (1, 2, 4, 8, 16, 32, 64, 1024)
    scored = [one for one in papers if one.time_at_goal is not None]
    assert len(scored) == 20
    timed = {name: one.hours for name, one in presets.PRESETS.items() if one.hours is not None}
    assert timed["humanoid-d4"] == 1.48 and timed["humanoid-u-maze-d1024"] == 134.15 and len(timed) == 9


def test_a_preset_is_the_published_run():
    config = presets.preset("humanoid-u-maze-d1024")
    network = config.network
    assert (config.env.name, network.depth, network.actor_depth) == ("humanoid_u_maze", 1024, 512)
    assert config.schedule.total_steps == 400_000_000 and config.env.auto_reset == "first"
    published = Config(
        "crl", env="x", parity=True, depth=1024, actor_depth=512, init="published", total_steps=400_000_000,
        auto_reset="first",
    )  # fmt: skip
    assert config.replace(env="x") == published


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ant-u4-maze-ac-crl-d16", {"horizon": 3, "gradient_steps": 999}),
        ("ant-u4-maze-safe-crl-d16", {"survival_rows": True, "survival_bonus": 1.0}),
        ("ant-u4-maze-cmd-d64", {"energy": "mrn", "form": "backward"}),
    ],
)
def test_a_later_method_is_its_options_on_the_same_run(name, options):
    config = presets.preset(name)
    plain = presets.preset("ant-u4-maze-d64").replace(
        depth=config.network.depth, actor_depth=config.network.depth
    )
    assert config == plain.replace(**options) and config != plain
    assert presets.PRESETS["humanoid-ac-crl-d16"].time_at_goal == 803


def test_survival_presets_are_the_published_defaults_and_humanoids_hold_their_goal():
    for name, algorithm in (("ant-u4-maze-srl-d64", "srl"), ("ant-u4-maze-chrono-d8", "chrono")):
        config = presets.preset(name)
        published = Config(algorithm, env="ant_u4_maze", depth=config.network.depth)
        assert config.algorithm_name == algorithm and config.algorithm == published.algorithm
        assert config.schedule.batch_size == 512 and config.schedule.total_steps == 100_000_000
    humanoid = presets.preset("humanoid-u-maze-chrono-d64")
    assert humanoid.algorithm.goal_sequence == 32 and humanoid.schedule.batch_size == 1024
    later = {
        "humanoid-u-maze-chrono-d64": 187,
        "humanoid-u-maze-srl-d32": 35,
        "humanoid-big-maze-ac-crl-d32": 5,
    }
    assert {name: presets.PRESETS[name].time_at_goal for name in later} == later


def test_every_preset_names_a_task_that_is_there():
    configs = [one.config for one in presets.PRESETS.values()]
    named = {config.env.name for config in configs} | {config.env.eval_env for config in configs} - {None}
    assert "ant_big_maze_eval" in named and named <= set(envs.names())


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(ValueError, match="no preset 'humanoid-d46'; did you mean humanoid-d"):
        presets.preset("humanoid-d46")
    with pytest.raises(ValueError, match="`deepres presets` lists them"):
        presets.preset("zzz")


def test_the_command_lists_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["presets"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in presets.names()) and "134.15" in listed
