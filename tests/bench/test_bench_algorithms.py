"""The cost of every algorithm's step: what a row promises is in it, and one whose forms differ is not timed."""

from __future__ import annotations

import json

import pytest

from bench import algorithms as bench

TINY = ["--depths", "4", "--width", "8", "--batch", "8", "--rounds", "1"]


def test_rows_have_the_cost_beside_crls_and_beside_plain_pytorch(tmp_path, capsys):
    assert bench.main([*TINY, "--algorithms", "crl", "srl", "ppo", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert result["complete"] and result["kind"] == "deepres algorithms"
    assert [(row["algorithm"], row["status"]) for row in result["rows"]] == [
        (name, "measured") for name in ("crl", "srl", "ppo")
    ]
    for row in result["rows"]:
        assert row["apart"] <= bench.TOLERANCE and row["draw_s"] > 0 and row["parameters"] > 0
        assert row["of_crl"]["median"] > 0 and row["plain_over_ours"]["median"] > 0
        assert row["ours_s"]["median"] > 0 and row["plain_s"]["median"] > 0
    assert "plain / ours (p10-p90)" in capsys.readouterr().out


def test_an_algorithm_whose_forms_differ_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "TOLERANCE", -1.0)
    assert bench.main([*TINY, "--algorithms", "gcbc", "--out", str(tmp_path)]) == 1
    assert "of the first step is" in capsys.readouterr().out


def test_an_unknown_algorithm_is_said(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--algorithms", "crl2"])
    assert "invalid choice: 'crl2'" in capsys.readouterr().err
