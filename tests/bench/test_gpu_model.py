"""bench/model.py against what others have measured of an H100, and against sense."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench.gpu import model
from bench.harness.results import KEPT

H100 = model.MACHINES["h100"]
SIZE = model.Size(64, 512, 256, "bf16")


def test_launched_layers_cost_what_others_measured() -> None:
    """Microseconds a layer at width 256, batch 512: about 15 eager, 5 to 7 and 2.5 to 3 from a CUDA graph."""
    rivals = {name: us / SIZE.depth for name, us in model.rivals(H100, SIZE).items()}
    assert rivals["eager, 3 kernels a layer at 5 us"] == pytest.approx(15, rel=0.1)
    assert 5 < rivals["graph, 3 kernels a layer"] < 7
    assert 2.5 < rivals["graph, 1 kernel a layer"] < 3
    assert 0.08 < rivals["arithmetic alone"] < 0.12


def test_cost_grows_with_depth_and_no_faster() -> None:
    deep = dataclasses.replace(SIZE, depth=1024)
    for cluster in model.CLUSTERS.values():
        assert model.forward(H100, deep, cluster) < 16 * model.forward(H100, SIZE, cluster)


def test_blocks_past_one_to_an_sm_wait_for_their_turn() -> None:
    full = dataclasses.replace(SIZE, batch=16 * H100.sms)
    more = dataclasses.replace(SIZE, batch=16 * H100.sms + 1)
    assert model.layer(H100, more) == pytest.approx(2 * model.layer(H100, full))


def test_a_measured_figure_takes_the_place_of_an_assumed_one() -> None:
    """An exchange is waited for twice a layer, less what is done meanwhile."""
    slower = model.measured(H100, exchange=2 * H100.exchange)
    gained = model.layer(slower, SIZE, 4) - model.layer(H100, SIZE, 4)
    assert 0 <= gained <= 2 * H100.exchange * 1e-3 / H100.clock
    assert model.layer(slower, SIZE, 1) == model.layer(H100, SIZE, 1)


def test_the_kept_predictions_are_this_models(tmp_path) -> None:
    kept = KEPT / "model.json"
    model.write(tmp_path / "model.json")
    fresh = json.loads((tmp_path / "model.json").read_text())
    assert json.loads(kept.read_text()) == fresh | {
        "command": "python bench/model.py --all bench/results/model.json"
    }
