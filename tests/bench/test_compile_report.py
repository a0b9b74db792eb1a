"""Kernels compiled with no GPU, for two of the targets of `bench/compile_report.py`: those with the fewest registers to
spare must not spill."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is Linux only")

from bench import compile_report
from bench.gpu import usage

TIGHT = [
    {"kernel": "dgrad", "width": "512", "precision": "bf16"},
    {"kernel": "info_nce", "width": "64", "energy": "norm", "form": "forward", "phase": "gradients"},
    {"kernel": "info_nce_general", "width": "256", "energy": "norm", "form": "binary", "phase": "gradients"},
    {"kernel": "hazard_nll", "width": "128"},
    {"kernel": "policy_gaussian_backward", "width": "16"},
    {"kernel": "stem_backward", "width": "256"},
]
TARGETS = ["90", "120"]  # what is there to measure on, and the least shared memory


@pytest.mark.parametrize("only", TIGHT, ids=lambda only: only["kernel"])
def test_nothing_spills_and_everything_fits(only, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = [row for target in TARGETS for row in compile_report.report("triton", {**only, "target": target})]
    assert [str(row["target"]) for row in rows] == TARGETS
    for row in rows:
        assert row["spill_stores"] == row["spill_loads"] == row["loop_spills"] == 0, row
        assert row["shared"] <= row["shared_limit"], row
        assert row["registers"] * row["threads"] <= 65536, row


def test_fields_that_no_row_has_leave_no_file(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["compile_report.py", "--only", "op=softmax", "--out", str(out)])
    assert compile_report.main() == 2 and not out.exists()
    assert "no row has op=softmax; leave --only out to see their fields" in capsys.readouterr().err


def test_what_is_wrong_is_named() -> None:
    own = {"threads": 256, "registers": 255, "spill_stores": 8, "loop_spills": 0, "shared": 9}
    fits = {"kernel": "dgrad", "target": 90, **own, "shared_limit": 9}
    spills = {**fits, "loop_spills": 1}
    anywhere = {name: value for name, value in fits.items() if name != "loop_spills"}
    large = {**fits, "target": 120, "threads": 512, "shared": 10}
    assert usage.complaints([fits, spills, anywhere, large]) == [
        "kernel=dgrad target=90: spills 8 bytes",
        "kernel=dgrad target=90: spills 8 bytes",
        "kernel=dgrad target=120: takes 10 bytes of shared memory, 9 are there; "
        "takes 255 registers for each of 512 threads",
    ]


def test_loop_spills_are_those_between_products() -> None:
    listing = "STL [R1], R2 ;\n.L_x_1:\nLDL R2, [R1] ;\nHMMA.1688 R4 ;\n@P0 BRA `(.L_x_1) ;\nLDL R2, [R1] ;\n"
    assert usage.loop_spills(listing) == 1
