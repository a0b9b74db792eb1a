"""A task's own options and a sampler of goals, given to a run: learned in, saved, resumed with, evaluated in."""

from __future__ import annotations

from dataclasses import asdict

import jax.numpy as jnp
import pytest
import torch

import deepres
from deepres.commands.main import main
from deepres.config import Config
from deepres.experiments.grid import _cells
from deepres.runs import checkpoint as checkpoints
from deepres.runs.files import read_run
from deepres.training.environments import open_for
from deepres.training.loop import load_run, train
from helpers.tiny_runs import TINY, different, rows, words

SHORT = TINY.replace(total_steps=80, eval_every=99)
CPU = torch.device("cpu")
GOALS = "helpers.own_environments:"


def opened(**options):
    """The environments that such a run learns in, and those that it is evaluated in."""
    config = Config("crl", **options)
    return [open_for(one, 3, seed=0, device=CPU) for one in (config.env, config.env.evaluated)]


def test_a_layout_by_option_is_the_layout_by_name(tmp_path):
    named, run = tmp_path / "named", tmp_path / "run"
    train(SHORT.replace(env="point_big_maze"), named, progress=False)
    asked = SHORT.replace(env="point_maze", env_options={"layout": "big_maze"})
    main(["train", *words(asked), "--run-dir", str(run)])
    _, a, _ = checkpoints.load_newest(named / "checkpoints")
    _, b, _ = checkpoints.load_newest(run / "checkpoints")
    assert read_run(run).config == asked and different(a, b) == []
    assert rows(named / "evaluations.csv") == rows(run / "evaluations.csv")

    with pytest.raises(ValueError, match=r"^env_options cannot change when a run is resumed: .*big_maze"):
        train(asked.replace(env_options={"layout": "u_maze"}), run, resume=True, progress=False)
    policy = deepres.Policy.load(run)
    rows_of = [
        env.task.maze.rows for env in (policy.environments(2), load_run(run).env, load_run(run).eval_env)
    ]
    assert rows_of == [opened(env="point_big_maze")[0].task.maze.rows] * 3
    found = asdict(policy.evaluate()[0]).items()
    assert {(name, value) for name, value in found if value is not None} <= policy.evaluation.items()
    with pytest.raises(ValueError, match="env_options belongs to what was learned and cannot change"):
        deepres.Policy.load(run, env_options={"layout": "u_maze"})


def test_the_task_to_evaluate_on_has_options_of_its_own():
    learned, evaluated = opened(env="ant", env_options=["goal_distance=3"])
    assert learned.task.goal_distance == 3 and evaluated is not None and evaluated.task.goal_distance == 3
    learned, evaluated = opened(
        env="ant", env_options=["goal_distance=3"], eval_env_options=["goal_distance=7"]
    )
    assert (learned.task.goal_distance, evaluated.task.goal_distance) == (3, 7)
    learned, evaluated = opened(env="ant", env_options=["goal_distance=3"], eval_env="ant")
    assert (learned.task.goal_distance, evaluated.task.goal_distance) == (3, 10)


def test_options_go_with_the_task_that_they_were_given_for(tmp_path):
    """Those of one maze, left to another, would be evaluated on in silence under the other's name."""
    config = Config(
        "crl", env="point_maze", env_options={"layout": "big_maze"}, eval_env="point_maze",
        eval_env_options={"layout": "u_maze_eval"},
    )  # fmt: skip
    assert config.replace(eval_env="point_big_maze_eval").env.eval_options == ()
    assert config.replace(eval_env="point_maze", seed=1).env.eval_options == ("layout=u_maze_eval",)
    other = config.replace(eval_env="ant", eval_env_options={"goal_distance": 7})
    assert other.env.evaluated.options == ("goal_distance=7",)
    grid = {"env_options": [{"layout": "u_maze"}, {"layout": "big_maze"}]}
    cells = _cells(config, grid, tmp_path)
    assert [cell.name for cell in cells] == ["env_options_layout=u_maze", "env_options_layout=big_maze"]
    assert [cell.varied for cell in cells] == [{"env_options": f"layout={x}"} for x in ("u_maze", "big_maze")]


def test_a_sampler_that_is_defined_anew_is_taken(monkeypatch):
    from helpers import own_environments

    for place in (1.0, 2.0):
        monkeypatch.setattr(own_environments, "corner", lambda key, place=place: jnp.full(2, place))
        learned, _ = opened(env="point_u_maze", goal_sampler=GOALS + "corner")
        assert learned.reset().obs[0, 4:].tolist() == [place] * 2


def test_goals_are_drawn_by_the_function_that_is_named():
    learned, evaluated = opened(env="point_u_maze", goal_sampler=GOALS + "corner")
    assert learned.reset().obs[:, 4:].tolist() == evaluated.reset().obs[:, 4:].tolist() == [[1.5, 2.5]] * 3
    learned, evaluated = opened(
        env="point_u_maze", goal_sampler=GOALS + "corner",
        eval_env="point_maze", eval_env_options={"layout": "u_maze_single_eval"},
    )  # fmt: skip
    assert learned.reset().obs[0, 4:].tolist() == [1.5, 2.5]
    assert evaluated.reset().obs[:, 4:].tolist() == [[12.0, 4.0]] * 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"env": "point_maze", "env_options": {"walls": 3}}, "point_maze has no option 'walls', its options: layout"),
        ({"env": "point_maze", "env_options": {"layout": "u9"}}, r"layout must be one of .*, or rows, got 'u9'"),
        ({"env": "ant", "env_options": "goal_distance=far"}, "ant cannot be made with goal_distance='far'"),
        ({"env_options": {"device": "cpu"}}, "env_options must hold the task's own options alone, got device"),
        ({"goal_sampler": "not_there_at_all:f"}, r"goal_sampler=not_there_at_all:f cannot be imported \(Module"),
        ({"goal_sampler": GOALS + "XML"}, "goal_sampler must name a function, as my_module:my_goals, got helpers"),
        ({"goal_sampler": GOALS + "gone"}, r"got helpers\.own_environments:gone, which is None"),
        ({"goal_sampler": GOALS + "too_many"}, r"goal_sampler must return a goal \[2\], got \[3\]"),
        ({"goal_sampler": GOALS + "Flat.reset"}, "goal_sampler must name a function, as my_module:my_goals"),
    ],
)  # fmt: skip
def test_what_a_task_does_not_take_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        opened(**options)
    assert "\n" not in str(error.value)
