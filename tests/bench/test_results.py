"""Where a bench writes: to a folder that git ignores, unless it is told to keep the result; and what old files say."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.harness import results
from bench.harness.table import load, markdown
from bench.train import report
from helpers.benches import ROOT, bench


def untracked() -> set[str]:
    """What git would show of bench/ after a bench."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=all", "bench"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.mark.checkout
def test_a_documented_run_leaves_git_status_as_it_was():
    before, there = untracked(), set(results.NEW.glob("*"))
    process = bench("memory.py", "--depth", 4, "--actor-depth", 4, "--batch", 8, "--width", 64)
    assert process.returncode == 0, process.stderr
    written = set(results.NEW.glob("*")) - there
    assert f"wrote {results.NEW}" in process.stdout
    assert untracked() == before
    for path in written:
        path.unlink()


@pytest.mark.checkout
def test_every_bench_asks_the_same_place_where_to_write():
    def asked(*arguments: str) -> Path:
        parser = argparse.ArgumentParser()
        results.add_options(parser)
        return results.path(parser.parse_args(arguments), "x.json")

    assert asked() == results.NEW / "x.json" and asked("--keep") == results.KEPT / "x.json"
    assert asked("--out", "there") == Path("there/x.json") and asked("--out", "y.json") == Path("y.json")
    ignored = ["git", "-C", str(ROOT), "check-ignore", "-q", str(results.NEW / "x.json")]
    assert subprocess.run(ignored).returncode == 0


def test_a_result_is_written_with_a_row_to_a_line(tmp_path):
    made = results.begin("throughput", {"batch": [3], "out": "there"}, {"date": "now"}, modes={})
    assert made["command"] == "python bench/throughput.py" and made["arguments"] == {"batch": [3]}
    made["rows"] = [{"ms": 1.5, "label": "a"}, {"ms": 2.5, "label": "b"}]
    results.save(made, tmp_path / "new" / "x.json")
    assert results.load(tmp_path / "new" / "x.json", "throughput") == made
    text = (tmp_path / "new" / "x.json").read_text()
    assert '\n  {"ms": 2.5, "label": "b"}\n' in text and len(list((tmp_path / "new").iterdir())) == 1
    empty = results.begin("throughput", {}, {})
    assert json.loads(results.text(empty)) == empty
    with pytest.raises(ValueError, match=r"is no result of bench/train.py; give a file from bench/results/"):
        results.load(tmp_path / "new" / "x.json", "train")


def test_kept_results_are_still_read(tmp_path):
    """The README quotes them."""
    titles = {
        "residual_stack": "**residual_stack, forward + backward, fp32**, batch {batch}, width {width}",
        "twins": "**twins, forward + backward of two stacks, fp32**, batch {batch}, width {width}",
        "hazard": "**hazard, forward + backward of loss and value, fp32**, width {width}",
    }
    kept = sorted(results.KEPT.glob("throughput_*.json"))
    assert kept
    for path in kept:
        result = load(path)
        firsts = {row["op"]: row for row in reversed(result["rows"])}
        wanted = [title.format(**firsts[op]) for op, title in titles.items() if op in firsts]
        assert wanted
        for full in (False, True):
            text = markdown(str(path), result, full=full)
            assert all(title in text for title in wanted)
    for path in sorted(results.KEPT.glob("train_*.json")):
        assert ", depth 64** (in turns)" in report.markdown(report.load(path)), path
    copy = shutil.copy(kept[0], tmp_path)
    process = bench("plot.py", copy)
    assert process.returncode == 0, process.stderr
    assert Path(copy).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
