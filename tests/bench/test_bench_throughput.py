"""bench/throughput.py end to end at tiny sizes, as a user runs it, and what is made from its file."""

import json
import os

import pytest

from bench import throughput
from bench.harness import contest, plot, table, turns, workers
from bench.harness.contestants import Case, Implementation, Prepared
from bench.ops import registry
from deepres.testing import worst_error
from helpers.benches import bench

# not tinier: the worst of a few hundred errors is luck, and the check before the clock compares worst errors
TINY = ("--batch", "64", "--width", "64", "--seconds", "0.05", "--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run over both ops, from a folder that is not the checkout: (process, path of its JSON)."""
    out = tmp_path_factory.mktemp("results")
    process = bench("throughput.py", "--depth", 8, 4, *TINY, "--out", out, folder=out)
    assert process.returncode == 0, process.stderr
    (path,) = out.glob("*.json")
    return process, path


def test_a_run_leaves_figures_with_their_circumstances(run):
    process, path = run
    results = table.load(path)
    assert results["complete"]
    environment = results["environment"]
    assert environment["threads"] >= 1 and environment["versions"]["torch"] and environment["commit"]
    assert len(environment["load_average_at_start"]) == 3 and environment["cores_busy_at_start"] >= 0
    names = ["eager", "products"]
    if environment["deepres"]["backends"]["residual_stack"].get("cpu") == "available":
        names.append("deepres")
    measured = {
        (row["op"], row["mode"], row["depth"], row["implementation"]): row
        for row in results["rows"]
        if row["status"] == "measured"
    }
    for op, modes in (("residual_stack", ("forward", "forward_backward")), ("gradient_step", ("step",))):
        for mode in modes:
            for depth in (4, 8):
                for name in names:
                    row = measured[op, mode, depth, name]
                    ms = row["ms"]
                    assert 0 < ms["min"] <= ms["p10"] <= ms["median"] <= ms["p90"] and ms["runs"] >= 3
                    rate = row["flops"] / ms["median"] / 1e6
                    assert row["gflops_per_s"] == pytest.approx(rate)
                    assert row["speed_up"]["median"] > 0 and row["share_of_products"] > 0
                assert measured[op, mode, depth, "eager"]["speed_up"]["median"] == 1
    assert len([row for row in results["rows"] if row["op"] == "matrix_product"]) == 3
    checks = {(c["op"], c["implementation"]): c["worst_error"] for c in results["checks"]}
    assert checks["residual_stack", "eager"] < 1e-5 and checks["gradient_step", "eager"] < 1e-5
    assert "eager PyTorch" in process.stdout and str(path) in process.stdout
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_tables_come_from_the_file_and_name_their_command(run):
    _, path = run
    process = bench("table.py", path)
    assert process.returncode == 0
    results = json.loads(path.read_text())
    row = next(r for r in results["rows"] if r["op"] == "residual_stack" and r["implementation"] == "deepres")
    assert "**residual_stack, forward + backward, fp32**, batch 64, width 64" in process.stdout
    assert f"| **{row['speed_up']['median']:.2f}x** |" in process.stdout
    assert " ms" not in process.stdout  # times are for GPUs
    assert f"`python bench/table.py {path}`" in process.stdout
    only = bench("table.py", path, "--full", "--op", "gradient_step").stdout
    assert "one CRL gradient step" in only and "residual_stack," not in only


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--depth", "6"], "--depth must be multiples of 4 (four layers to a block), got 6"),
        (
            ["--op", "softmax"],
            "--op must be of residual_stack, gradient_step, info_nce, hazard, twins, got 'softmax'",
        ),
        (["--precision", "int8"], "--precision must be of fp32, tf32, bf16, got 'int8'"),
        (
            ["--precision", "tf32", "--device", "cpu"],
            "--precision tf32 exists on GPUs only; use fp32 or bf16",
        ),
        (["--seconds", "-1"], "--seconds must be greater than 0, got -1.0"),
        (["--op", "info_nce", "--precision", "bf16"], "--precision must be of fp32 for info_nce, got 'bf16'"),
        (
            ["--batch", "64", "128"],
            "--batch takes one number where the depth varies; ask for --op info_nce or hazard",
        ),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, sentence, tmp_path):
    process = bench("throughput.py", *arguments, "--out", tmp_path)
    assert process.returncode == 2
    assert process.stdout == "" and len(process.stderr.splitlines()) == 1
    assert sentence in process.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_gets_one_sentence(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    process = bench("table.py", tmp_path / "x.json")
    assert process.returncode == 2 and process.stdout == ""
    assert "is no result of bench/throughput.py" in process.stderr


def wrong(case, variant):
    """A contestant whose bias gradient is off by one part in a thousand."""
    from bench.ops.residual_stack import eager

    right = eager(case, "")

    def named(result):
        tensors = right.named(result)
        return tensors | {"dbias": tensors["dbias"] * 1.001}

    return Prepared(right.run, named, right.wait)


def dying(case, variant):
    os._exit(7)


def test_right_contestants_are_weighed_and_wrong_or_dying_ones_get_no_figure(monkeypatch):
    entries = registry.RESIDUAL_STACK.implementations
    for name in ("wrong", "dying"):
        monkeypatch.setitem(entries, name, Implementation(name, f"{__name__}:{name}", worse=8.0))
    settings = contest.Settings(batch=512, width=128, device="cpu", budget_s=0.01, limit_s=100)
    with workers.Crew(1, contest.DESK) as crew:
        own = contest.Contest(registry.RESIDUAL_STACK, "fp32", settings, crew, lambda text: None)
        own.enter(["eager", "wrong", "dying"])
        *_, rows = own.measure(own.case(16, "forward_backward"))
    rows = {row["implementation"]: row for row in rows}
    assert rows["wrong"]["status"] == "refused" and "dbias is off by" in rows["wrong"]["reason"]
    assert rows["dying"]["status"] == "failed" and "exit code 7" in rows["dying"]["reason"]
    assert all(rows[name]["ms"] is None and rows[name]["speed_up"] is None for name in ("wrong", "dying"))
    assert rows["eager"]["status"] == "measured"
    if rows["eager"]["peak_bytes"] is not None:  # Linux
        kept = 3 * 16 * 512 * 128 * 4  # of each layer: its input, the product, the normalised product
        assert kept <= rows["eager"]["peak_bytes"] <= 2.5 * kept


def test_statistics():
    spread = turns.spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert spread == {"median": 3.0, "p10": 1.4, "p90": 4.6, "min": 1.0, "runs": 5}
    assert turns.ratio([[2.0], [8.0], [6.0]], [[1.0], [2.0], [3.0]])["median"] == 2.0
    order = [(name, r) for name, r, _ in turns.interleave({"a": list, "b": list}, 2, 1.0)]
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_on_a_gpu_one_is_built_and_gone_before_the_next_and_slow_ones_come_last(monkeypatch):
    """The order of questions, without a GPU: each contestant is asked for its figures alone, a row at once."""
    asked = []

    class Worker:
        dead = False

        def __init__(self, name):
            self.name = name

        def ask(self, question, *_, **__):
            asked.append((self.name, question))
            return {"build": {"call_s": 1.0, "served_by": "", "compile_s": 0.0}, "turn": [1e-3]}.get(question)

    settings = contest.Settings(batch=512, width=128, device="cuda", budget_s=0.01, limit_s=100)
    own = contest.Contest(registry.RESIDUAL_STACK, "fp32", settings, None, lambda text: None)
    own.workers = {name: Worker(name) for name in ("eager", "compile", "jax", "deepres", "products")}
    told = list(own.measure(own.case(16, "forward")))
    order = list(dict.fromkeys(name for name, _ in asked))
    assert order == ["eager", "deepres", "products", "compile", "jax"]
    assert [name for name, question in asked if question == "drop"] == order
    assert asked.index(("eager", "drop")) < asked.index(("deepres", "build"))
    assert [len(rows) for rows in told] == [1, 2, 3, 4, 5]
    assert told[-1][0]["speed_up_over"].keys() == own.workers.keys()


def test_calls_that_are_waited_for_together_share_the_wait(monkeypatch):
    now, events = [0.0], []

    def run():
        now[0] += 1e-3
        events.append("run")

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    seconds = turns.turn(run, lambda: events.append("wait"), 1e-3, together=5.5e-3)
    assert seconds == pytest.approx([1e-3] * len(seconds)) and len(seconds) > 1
    assert events[-12:] == 2 * [*["run"] * 5, "wait"]


def test_other_precisions_are_also_held_against_fp32():
    arguments = throughput.parse(["--precision", "bf16"])
    assert "eager-fp32" in throughput.contestants("residual_stack", "bf16", arguments)
    assert "eager-fp32" not in throughput.contestants("residual_stack", "fp32", arguments)
    assert "deepres-recompute" not in throughput.contestants("residual_stack", "fp32", arguments)


def test_every_contestant_has_its_line_in_the_plot():
    assert {name for op in registry.OPS.values() for name in op.implementations} <= set(plot.STYLES)


def test_info_nce_is_an_op_whose_batch_varies(tmp_path):
    sizes = ("--batch", 96, 128, "--width", 16, "--seconds", 0.05, "--device", "cpu", "--threads", 1)
    process = bench("throughput.py", "--op", "info_nce", *sizes, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    (path,) = tmp_path.glob("*.json")
    results = table.load(path)
    measured = {(row["batch"], row["implementation"]) for row in results["rows"] if row["ms"]}
    names = {"eager", "eager-matmul", "broadcast", "deepres"}
    assert measured == {(batch, name) for batch in (96, 128) for name in names}
    assert {check["implementation"] for check in results["checks"]} == names
    assert max(check["worst_error"] for check in results["checks"]) < 1e-4
    markdown = bench("table.py", path).stdout
    assert "**info_nce, forward + backward, fp32**, width 16" in markdown and "| 128 |" in markdown


def test_the_hazards_contestants_compute_the_same():
    from bench.ops import hazard

    case = Case("hazard", "forward_backward", 1, 40, 8, "fp32", "cpu")
    exact, plain = hazard.truth(case)
    for prepared in (hazard.eager(case, ""), hazard.fused(case, "cpu"), hazard.fused(case, "reference")):
        for name, result in prepared.named(prepared.run()).items():
            assert worst_error(result, exact[name]) <= 8 * worst_error(plain[name], exact[name]) + 2e-6, name


def test_the_broadcast_form_in_parts_is_the_whole(monkeypatch):
    from bench.ops import info_nce

    phi, psi = info_nce.inputs(Case("info_nce", "forward_backward", 1, 40, 8, "fp32", "cpu"))
    whole = info_nce.in_parts(phi, psi)
    monkeypatch.setattr(info_nce, "BROADCAST_BYTES", 3 * 4 * 40 * 8 * 7)
    assert info_nce.rows_at_a_time(40, 8) == 7
    for part, all_at_once in zip(info_nce.in_parts(phi, psi), whole, strict=True):
        assert (part - all_at_once).abs().max() < 1e-6
