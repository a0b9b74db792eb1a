"""Two checkouts side by side: here this one and itself, which must come out the same."""

from __future__ import annotations

import json

from helpers.benches import ROOT, bench


def test_a_checkout_beside_itself_computes_the_same_bits(tmp_path):
    options = ("--rounds", 2, "--threads", 1, "--only", "stack", "--out", tmp_path)
    process = bench("compare_checkouts.py", ROOT, ROOT, *options)
    assert process.returncode == 0, process.stderr
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    assert results["complete"] and results["commits"]["old"] == results["commits"]["new"]
    assert [row["case"].split(", depth ")[1] for row in results["rows"]] == ["16", "64"]
    for row in results["rows"]:
        assert row["same_bits"] and row["new_over_old"]["p10"] > 0 and row["old_ms"]["runs"] >= 2
    assert "new / old (p10-p90)" in process.stdout


def test_a_folder_without_deepres_is_said(tmp_path):
    process = bench("compare_checkouts.py", tmp_path, tmp_path, "--only", "stack")
    assert process.returncode == 2 and "deepres came from" in process.stderr
