"""The GPU's harness where there is no GPU: children that break, rivals' precision, sources that compile, no CUDA."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from bench import gpu_micro, gpu_smoke
from bench.gpu import check, children, micro, model
from bench.harness import desk
from bench.harness.contestants import Case, Implementation, Prepared
from deepres.kernels import cuda_program, dispatch
from deepres.kernels.residual_stack import cuda
from helpers import cuda_on_host
from helpers.benches import bench

DESK = "helpers.gpu_desks:Desk"


def test_what_breaks_in_one_child_leaves_the_others_their_answers() -> None:
    tasks = [("answers", 1), ("wrong", 2), ("dies", 3), ("answers", 4)]
    found = dict(children.each(DESK, "ask", tasks, limit_s=60, at_once=2))
    assert found["answers", 1] == (2, "measured", None) and found["answers", 4] == (8, "measured", None)
    assert found["wrong", 2].status == "refused" and "y is off by" in found["wrong", 2].reason
    assert found["dies", 3].status == "failed" and "exit code 7" in found["dies", 3].reason


def test_a_child_that_hangs_is_ended() -> None:
    ((_, outcome),) = children.each(DESK, "ask", [("hangs", 1)], limit_s=3)
    assert outcome == (None, "failed", "took longer than 3 s to ask")


def test_smoke_keeps_a_row_for_each_and_fails_with_one(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(children, "without_gpu", lambda script: None)
    monkeypatch.setattr(gpu_smoke, "DESK", DESK)
    asked = [
        "--width",
        "64",
        "256",
        "--precision",
        "bf16",
        "--swapped-rows",
        "0",
        "16",
        "--out",
        str(tmp_path),
    ]
    assert gpu_smoke.main(asked) == 1
    result = json.loads((tmp_path / "gpu_smoke.json").read_text())
    rows = {(row["width"], row["cluster"], row["swapped_rows"]): row["status"] for row in result["rows"]}
    wrong = {(256, 4, 0): "refused", (256, 4, 16): "refused"}
    right = [(64, 1, 0), (64, 1, 16), (256, 1, 0), (256, 2, 0)]
    assert rows == dict.fromkeys(right, "measured") | wrong
    assert result["complete"] and "4 of 6 are right" in capsys.readouterr().out


@pytest.fixture
def on_host(monkeypatch):
    """The kernels over CPU tensors, by their sources' stand-in on the host; gives the clusters that were asked for."""
    asked = []

    def load_program(program, device):
        asked.append(dict(program.macros)["DEEPRES_CLUSTER"])
        return cuda_on_host.load_program(program, device)

    for owner, name, value in (
        (cuda_program, "load_program", load_program),
        (cuda_program, "device_facts", lambda _: cuda_on_host.SMALL),
        (cuda, "unavailable", lambda: None),
        (cuda, "unsupported", lambda *_: None),
    ):
        monkeypatch.setattr(owner, name, value)
    dispatch._reason.cache_clear()
    yield asked
    dispatch._reason.cache_clear()


def test_smoke_asks_the_kernels_with_the_cluster_that_it_names(on_host, monkeypatch) -> None:
    monkeypatch.setattr(gpu_smoke, "DEVICE", "cpu")
    found = gpu_smoke.Desk(None).check(128, 2, "bf16", 0)
    assert found["served_by"] == "cuda" and found["worst_error"] < 0.1
    assert set(on_host) == {2}


@pytest.mark.parametrize("script", ["gpu_smoke.py", "gpu_micro.py", "gpu/check.py"])
def test_without_a_gpu_each_says_one_sentence_and_writes_nothing(script, tmp_path) -> None:
    done = bench(script, "--out", tmp_path)
    assert done.returncode == 2 and not list(tmp_path.iterdir()), done.stderr
    assert done.stdout.count("\n") == 1 and "PyTorch sees none" in done.stdout


@pytest.mark.parametrize(("precision", "products"), [("tf32", "high"), ("bf16", "highest")])
def test_rivals_compute_in_the_precision_they_are_compared_in(precision, products, monkeypatch) -> None:
    monkeypatch.setattr(check, "DEVICE", "cpu")
    before = torch.get_float32_matmul_precision()
    network, parameters, x = check.plain(model.Size(4, 3, 8, precision))
    assert torch.get_float32_matmul_precision() == products
    torch.set_float32_matmul_precision(before)
    assert network(x).shape == (3, 8) and len(parameters) == 4 * 4


def test_the_check_runs_each_mechanism_and_keeps_its_rows(on_host, monkeypatch, tmp_path) -> None:
    """Everything but CUDA itself: kernels on the host, calls for graphs, a count of layers for a clock."""

    def each(desk, question, tasks, **_):
        for task in tasks:
            yield task, children.Outcome(getattr(check.Desk(None), question)(*task))

    def microseconds(run, *, cold=False):
        run()
        return {"median": 10.0 + len(graphs)}

    def captured(run):
        graphs.append(run())
        return lambda: graphs[-1]

    graphs: list[object] = []
    ours = {name: check.MECHANISMS[name] for name in ("deepres cuda, B", "eager in a graph", "eager")}
    for owner, name, value in (
        (children, "each", each),
        (children, "without_gpu", lambda script: None),
        (check, "microseconds", microseconds),
        (check, "captured", captured),
        (check, "ceilings", lambda: {"copy_gb_s": 1.0}),
        (check.environment, "describe", lambda device: {"device": {"name": "NVIDIA H100 80GB HBM3"}}),
        (check, "MECHANISMS", ours),
        (check, "DEPTHS", (4, 8)),
        (check, "DEVICE", "cpu"),
        (
            sys,
            "argv",
            ["check.py", "--width", "256", "--batch", "7", "--precision", "bf16", "--out", str(tmp_path)],
        ),
    ):
        monkeypatch.setattr(owner, name, value)
    assert check.main() == 0
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert result["complete"] and result["ceilings"] == {"copy_gb_s": 1.0}
    assert [row["mechanism"] for row in result["rows"]] == list(ours)
    for row in result["rows"]:
        assert set(row["measured"]) == {
            f"{mode}, {what}"
            for mode in ("forward", "forward_backward")
            for what in ("depth 4", "depth 8", "us a layer")
        }
        assert row["status"] == "measured" and row["predicted_us"]["C/layer"] > 0
    h100 = check.machine_of("NVIDIA H100 80GB HBM3")
    assert "layer_cycles.json has no forward of width 96" in check._predicted(
        h100, model.Size(4, 7, 96, "bf16")
    )
    assert len(graphs) == 2 * 2 * 2  # forward and backward of two depths, ours and eager in a graph
    assert set(on_host) == {2}


def test_a_graph_is_timed_and_the_plain_call_is_weighed(monkeypatch) -> None:
    ran = []
    prepared = Prepared(lambda: ran.append("plain"), lambda result: {}, lambda: None)
    own = replace(prepared, timed=lambda: ran.append("own"))
    case = Case("residual_stack", "forward", 4, 7, 64, "bf16", "cuda")
    monkeypatch.setattr(desk.cuda_graph, "captured", lambda run: lambda: ran.append("graph"))
    monkeypatch.setattr(desk.memory, "peak_bytes", lambda run, device: run())
    monkeypatch.setattr(desk.Desk, "_settle", lambda self, device: None)
    for given, timed in ((prepared, "graph"), (own, "own")):
        monkeypatch.setattr(desk, "named_function", lambda name, given=given: lambda case, variant: given)
        worker = desk.Desk(None)
        worker.build(case, Implementation("", ""))
        assert ran[0] == "plain" and set(ran[1:]) == {timed}
        ran.clear()
        worker.memory(case)
        assert ran == ["plain"]
        worker.turn()
        assert set(ran[1:]) == {timed}
        ran.clear()


def test_mechanisms_of_ours_come_before_rivals() -> None:
    names = list(check.MECHANISMS)
    assert [name.startswith("deepres cuda") for name in names] == [True] * 5 + [False] * 4
    assert names[5] == "deepres triton" and names[-1].startswith("torch.compile")


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_microbenchmarks_compile_for_an_h100(cluster) -> None:
    program = micro.program(cluster, words=4, warpgroup=cluster == 1)
    code, log = cuda_program.compile_program(program.source, dict(program.macros), "sm_90a")
    assert code[:4] == b"\x7fELF"
    assert set(re.findall(r"entry function '(\w+)'", log)) == set(program.kernels)
    assert set(re.findall(r"(\d+) bytes spill stores", log)) == {"0"}


def test_a_change_of_a_source_outside_csrc_is_a_program_of_its_own(tmp_path) -> None:
    source = tmp_path / "own.cu"
    source.write_text("// one")
    first = cuda_program._key(str(source), {}, "sm_90a")
    source.write_text("// two")
    assert cuda_program._key(str(source), {}, "sm_90a") != first


def test_the_driver_can_be_asked_about_clusters() -> None:
    config = micro.launch_of(4, 1024)
    assert config.numAttrs == 1 and config.attrs[0].value.clusterDim.x == 4
    assert set(gpu_micro.GROUPS) == set(micro.BENCHMARKS)
