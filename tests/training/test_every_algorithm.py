"""Every algorithm on real physics, through its files: half a run that is resumed ends in the bits of a whole one."""

from __future__ import annotations

import pytest

from deepres import algorithms
from deepres.config import Config
from deepres.runs import checkpoint as checkpoints
from deepres.training.loop import train
from helpers.tiny_runs import SIZES, different, rows

RUN = {**SIZES, "total_steps": 4 * 50, "eval_every": 100, "keep_checkpoints": 1}
OPTIONS: dict[str, dict[str, object]] = {
    "sac": {"hindsight": 0.8, "hindsight_strategy": "published"},
    "td3": {"hindsight": 0.8},
    "hl_gauss": {"hindsight": 0.8, "bins": 11},
    "srl": {"bins": 9, "goal_sequence": 3},
    "chrono": {"bins": 9, "goal_sequence": 3},
    "qrl": {"feature_dim": 16},
    "gcbc": {"commanded": 0.3},
}
ELSEWHERE = {"distill": "tests/algorithms/test_distill.py", "hiql": "tests/training/test_recorded.py"}
"""Those that learn from a teacher, or from recorded data alone."""


@pytest.mark.parametrize("name", [name for name in algorithms.names() if name not in ELSEWHERE])
def test_a_resumed_run_ends_in_the_same_bits(name, tmp_path):
    config = Config(name, **RUN, **OPTIONS.get(name, {}))
    train(config, tmp_path / "whole", progress=False)
    train(config.replace(total_steps=4 * 30), tmp_path / "half", progress=False)
    train(config, tmp_path / "half", resume=True, progress=False)
    whole, half = (checkpoints.load_newest(tmp_path / one / "checkpoints")[1] for one in ("whole", "half"))
    assert whole.counters["env_steps"] == half.counters["env_steps"] == 200
    assert whole.counters["gradient_steps"] > 0 and different(whole, half) == []
    assert rows(tmp_path / "whole" / "metrics.csv") == rows(tmp_path / "half" / "metrics.csv")
