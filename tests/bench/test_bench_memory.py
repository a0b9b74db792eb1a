"""The memory plan beside what a process really takes."""

from __future__ import annotations

import json

import pytest

from deepres.kernels import backends
from helpers.benches import bench


@pytest.mark.parametrize("options", [("--precision", "bf16"), ("--recompute", "4")])
def test_the_plan_is_what_a_gradient_step_takes(options, tmp_path):
    assert backends()["residual_stack"]["cpu"] == "available"
    sizes = ("--depth", "128", "--actor-depth", "64", "--out", tmp_path)
    process = bench("memory.py", *sizes, *options, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    (path,) = tmp_path.glob("*.json")
    (result,) = json.loads(path.read_text())["rows"]
    assert 0.9 <= result["predicted_over_peak"] <= 1.1, process.stdout
    grown = result["peak_bytes"] - result["before_bytes"]  # the libraries' own share flatters: leave it out
    assert 0.8 <= (result["predicted_bytes"] - result["before_bytes"]) / grown <= 1.2, process.stdout
