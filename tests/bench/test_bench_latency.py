"""The latency of policies: what a row promises is in it, and a wrong contestant is not timed."""

from __future__ import annotations

import json

import pytest
import torch

from bench import latency as bench

TINY = ["--depths", "4", "--width", "16", "--calls", "6", "--warm", "2", "--rounds", "2"]


def test_rows_have_percentiles_throughput_and_the_time_of_reading(tmp_path, capsys):
    only = ["--only", "compiled", "read", "--precisions", "bf16", "--batches", "1", "8"]
    assert bench.main([*TINY, *only, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["complete"] and result["kind"] == "deepres latency"
    compiled, read, batched, _ = result["rows"]
    for row in (compiled, read):
        assert row["status"] == "measured" and row["s"]["n"] == 6 and row["weight_bytes"] > 4 * 16 * 16
        assert 0 < row["s"]["min"] <= row["s"]["p50"] <= row["s"]["p99"]
    assert compiled["observations_per_s"] == pytest.approx(1 / compiled["s"]["p50"])
    assert batched["status"] == "unavailable" and "s" not in batched
    table = capsys.readouterr().out
    assert "one observation at a time" in table and "GB/s" in table


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_contestant_is_judged_and_acts(precision):
    case = {"depth": 4, "width": 16, "precision": precision, "batch": 3}
    obs = torch.randn(3, bench.INPUTS)
    for name in ("modules", "eager", "deepres", "onnxruntime"):
        if (name, precision) == ("onnxruntime", "bf16"):
            with pytest.raises(bench.Unavailable, match="no bf16 on a CPU"):
                bench.BUILDERS[name](case, obs)
            continue
        run, row = bench.BUILDERS[name](case, obs)
        assert row["worst_error"] < (1e-5 if precision == "fp32" else 0.1)
        assert torch.as_tensor(run()).shape == (3, bench.OUTPUTS)


def test_a_wrong_contestant_is_refused():
    case = {"depth": 4, "width": 16, "precision": "fp32", "batch": 3}
    with pytest.raises(AssertionError, match="of float64's largest, plain PyTorch by"):
        bench._judged(case, torch.randn(3, bench.INPUTS), lambda: torch.zeros(3, bench.OUTPUTS))


def test_percentiles():
    found = bench.percentiles([float(n) for n in range(1000, 0, -1)])
    assert found == {"p50": 500.0, "p99": 990.0, "min": 1.0, "n": 1000}
    assert bench.percentiles([2.0])["p99"] == 2.0


def test_bad_arguments_are_said_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--calls", "0"])
    assert "--calls must be a number >= 1, got 0" in capsys.readouterr().err
