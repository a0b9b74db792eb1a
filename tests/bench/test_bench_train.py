"""bench/train.py end to end at a tiny size, the rivals beside deepres's own learner, and what is made of the clocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import train_report
from bench.published import crl_jax
from bench.published.crl import EagerLearner
from bench.published.crl_jax import JaxLearner
from bench.train import report
from deepres.config import Config
from deepres.data.batch import Batch, Sizes
from deepres.training.learner import Learner
from helpers.benches import bench

pytest.importorskip("mujoco.mjx")

TINY = (
    "--env", "point_u_maze", "--depth", "4", "--steps", "8", "--seconds", "1", "--batch", "16", "--width", "32",
    "--num-envs", "4", "--eval-envs", "4", "--threads", "1",
)  # fmt: skip


def test_rivals_compute_the_same_algorithm(monkeypatch):
    """From the same weights on the same batches the learners stay together, losses and actions."""
    config = Config(depth=8, actor_depth=4, width=32, feature_dim=8, batch_size=32, impl="reference")

    def learner() -> Learner:
        return Learner(config, Sizes(6, 2, 3), generator=torch.Generator().manual_seed(1))

    monkeypatch.setattr(
        crl_jax, "UNROLLED", 4
    )  # phi and psi by a scan over blocks, as beyond depth 64; the actor not
    learners = [
        learner(),
        EagerLearner(learner()),
        EagerLearner(learner(), strong=True),
        JaxLearner(learner()),
    ]
    random = torch.Generator().manual_seed(2)
    for _ in range(12):
        state, goal, noise = (torch.randn(32, n, generator=random) for n in (6, 3, 2))
        batch = Batch(state, torch.tanh(torch.randn(32, 2, generator=random)), goal)
        ours, *rivals = [one.update(batch, noise) for one in learners]
        for rival in rivals:
            for name, value in rival.items():
                assert float(value) == pytest.approx(float(ours[name]), rel=1e-4, abs=1e-5), name
    obs, noise = torch.randn(7, 9, generator=random), torch.randn(7, 2, generator=random)
    for rival in learners[1:]:
        for asked in (None, noise):
            torch.testing.assert_close(
                rival.act(obs, asked), learners[0].act(obs, asked), rtol=1e-3, atol=1e-4
            )


def test_a_run_leaves_rates_curves_and_the_split(tmp_path: Path):
    process = bench("train.py", *TINY, "--contestant", "eager", "deepres", "--out", tmp_path, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    (path,) = tmp_path.glob("*.json")
    results = report.load(path)
    assert results["complete"] and results["environment"]["commit"]
    rows = {row["contestant"]: row for row in results["rows"]}
    assert list(rows) == ["eager", "deepres"]
    for row in rows.values():
        assert row["status"] == "measured" and row["interleaved"] and row["steps_per_s"] > 0
        assert len(row["losses"]) == 8
        assert set(row["us"]) == {"collect", "sample", "actor", "critic", "optimiser", "log", "evaluate"}
        assert all(value >= 0 for value in row["us"].values())
        assert row["speed_up"]["eager"]["median"] > 0 and row["whole_speed_up"]["eager"]["median"] > 0
    assert (
        rows["eager"]["speed_up"]["eager"]["median"] == 1 and rows["eager"]["loss_difference"]["eager"] == 0
    )
    assert (
        0 < rows["deepres"]["loss_difference"]["eager"] < 1e-3
    )  # the same learning curve, another order of sums
    assert "**point_u_maze, depth 4** (in turns)" in process.stdout and "| evaluate |" in process.stdout
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert train_report.main([str(path)]) == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--depth", "6"], "--depth must be multiples of 4 (four layers to a block), got 6"),
        (["--steps", "2"], "--steps must be at least 4, got 2"),
        (["--num-envs", "0"], "--num-envs must be greater than 0, got 0"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, capsys):
    from bench.train import command

    with pytest.raises(SystemExit) as stop:
        command.parse(arguments)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_curves_are_compared_smoothed():
    flat, bent = [2.0] * 40, [2.0] * 39 + [4.0]
    assert report.difference(flat, flat) == 0
    assert report.difference(bent, flat) == pytest.approx(0.1)  # one step of SMOOTH is twice as large
    assert report.smoothed([1.0, 3.0] * 4) == [2.0] * 7  # a quarter of so few
