"""Every figure is written for screen and print, and leaves the caller's matplotlib as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import get_backend
from matplotlib import pyplot as plt
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure

from bench.harness import plot
from bench.train import report
from deepres.compress.analyse import Analysis
from deepres.config import Config
from deepres.data.datasets import Dataset
from deepres.experiments.curves import plot_curves as plot_study
from deepres.report import blocks, curves, data, instruments, sheet
from deepres.report.figures import save
from deepres.report.groups import group
from deepres.report.lines import Line, Place, plot_lines
from deepres.report.paths import plot_paths
from deepres.runs.files import read_run
from helpers.tiny_runs import ROOT


@pytest.fixture
def callers() -> Iterator[Figure]:
    """A caller who draws with a backend of their own, a figure open; both are there afterwards."""
    before = get_backend()
    plt.switch_backend("svg")
    mine = plt.figure()
    there = plt.get_fignums()  # what others left open, too
    yield mine
    stayed = get_backend(), plt.get_fignums(), plt.gcf() is mine
    plt.close(mine)
    plt.switch_backend(before)
    assert stayed == ("svg", there, True)


def left_run(folder: Path) -> Path:
    """What a run leaves to draw."""
    folder.mkdir()
    (folder / "config.json").write_text(Config("crl", env="point_u_maze").to_json())
    (folder / "evaluations.csv").write_text("env_steps,success_any,time_at_goal\n0,0,0\n10,0.5,3\n")
    (folder / "metrics.csv").write_text("env_steps,critic_loss,actor_loss,entropy,alpha\n10,1,1,1,1\n")
    columns = ["env_steps", "network", "block", *instruments.PANELS, *instruments.AT_THE_END]
    lines = [",".join(map(str, (10, "actor", b, *[1.0] * (len(columns) - 3)))) for b in range(2)]
    (folder / "instruments.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    return folder


def measured(name: str, depth: int, median: float) -> dict[str, object]:
    """A row of bench/throughput.py."""
    spread = {"p10": 0.9 * median, "median": median, "p90": 1.2 * median}
    return {
        "op": "residual_stack", "mode": "forward", "precision": "fp32", "implementation": name, "label": name,
        "depth": depth, "batch": 8, "width": 64, "ms": spread, "speed_up": spread, "peak_bytes": 2_000_000,
    }  # fmt: skip


def throughput(depths: list[int]) -> dict[str, object]:
    kept = report.files.load(next((ROOT / "bench/results").glob("throughput_*.json")), "throughput")
    rows = [measured(*one) for depth in depths for one in (("eager", depth, 1.0), ("products", depth, 2.0))]
    return {**kept, "axes": {}, "modes": {"residual_stack": {"forward": "forward"}}, "rows": rows}


def drawn(folder: Path) -> dict[str, Callable[[Path], object]]:
    """Every function that draws, by the name of what it draws, as a function of the picture's path."""
    run = left_run(folder / "r$x^2$")
    groups = group([read_run(run)])
    rows = np.linspace(0, 1, 12, dtype=np.float32).reshape(6, 2)
    env = SimpleNamespace(name="open", threshold=0.5)
    curve = [{"env_steps": 1.0, "seconds": 1.0, "success": 0.5}]
    found = Analysis([0.1, 0.2], [0.1, 0.2], [0.1, 0.2], {1: [0.3, 0.1]}, [1.0, 2.0], 60)
    line = Line("a", {4: Place([0.5], 0.5, 0.4, 0.6)})
    train = report.load(next((ROOT / "bench/results").glob("train_*.json")))
    return {
        "run": lambda path: curves.plot_curves(run, path),
        "groups": lambda path: curves.plot_groups(groups, path),
        "scores": lambda path: curves.plot_scores("depth", {"crl": {4: groups[0]}}, "t", path),
        "instruments": lambda path: instruments.report(run, path),
        "data": lambda path: data.draw(Dataset(rows, rows, 3), path),
        "paths": lambda path: plot_paths(env, [np.zeros((2, 2))], [np.zeros(2)], path),
        "blocks": lambda path: blocks.write(found, path.parent, "t"),
        "lines": lambda path: plot_lines([line], "depth", "success", "t", path),
        "study": lambda path: plot_study({("4", "0"): curve}, ["depth", "seed"], "depth", "t", path),
        "sheet": lambda path: sheet.contact_sheet(path, ["ant", "reacher"]),
        "throughput": lambda path: plot.draw(throughput([4, 8]), path),
        "train": lambda path: report.draw(train, path),
    }


def test_all_of_them_have_a_pdf_and_change_nothing_of_the_callers(tmp_path, monkeypatch, callers):
    monkeypatch.setattr(sheet, "portrait", lambda name: np.zeros((sheet.HEIGHT, sheet.WIDTH, 3), np.uint8))

    def written(figure: Figure, path: Path, **_: object) -> None:
        assert not is_math_text(figure.get_suptitle())
        path.touch()

    monkeypatch.setattr(Figure, "savefig", written)
    for name, draw in drawn(tmp_path).items():
        draw(tmp_path / "new" / f"{name}.png")
        assert {f"{name}.png", f"{name}.pdf"} <= {file.name for file in (tmp_path / "new").iterdir()}


def test_both_files_are_whole_and_the_same_each_time(tmp_path, callers):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    once, again = (save(figure, tmp_path / folder / "f.png") for folder in "ab")
    assert [file.name for file in once] == ["f.png", "f.pdf"]
    assert [file.read_bytes()[:5] for file in once] == [b"\x89PNG\r", b"%PDF-"]
    assert [file.read_bytes() for file in once] == [file.read_bytes() for file in again]
    assert save(figure, tmp_path / "f.pdf") == [tmp_path / "f.pdf"]
    assert [file.stat().st_size > 0 for file in save(figure, tmp_path / "f.jpg")] == [True, True]


def test_no_other_module_writes_a_figure_or_asks_for_pyplot():
    words = re.compile(r"\.savefig\(|pyplot|matplotlib\.use\(|\bplt\.")
    sources = [
        path for folder in ("deepres", "kernels", "envs", "bench") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {path.relative_to(ROOT).as_posix() for path in sources if words.search(path.read_text())}
    assert found == {"deepres/report/figures.py"}


@pytest.mark.parametrize("depths", [[4], [4, 8]])
def test_a_bench_of_one_size_shows_each_contestant_and_its_spread(monkeypatch, depths):
    """One point has no line and no band."""
    figures: list[Figure] = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    assert plot.draw(throughput(depths), Path("f.png"))
    (figure,) = figures
    speed = figure.axes[0]
    assert len(speed.containers if len(depths) == 1 else speed.collections) == 2
    for name, median in (("eager", 1.0), ("products", 2.0)):
        if len(depths) == 1:
            (shown,) = [one for one in speed.containers if one.get_label() == name]
            line, _, (bar,) = shown
            assert line.get_marker() not in ("None", "")
            left, right = np.log2(speed.get_xlim())
            assert 0.2 < (np.log2(line.get_xdata()[0]) - left) / (right - left) < 0.8
            (low, high), = bar.get_segments()  # fmt: skip
            assert (low[1], high[1]) == pytest.approx((0.9 * median, 1.2 * median))
        else:
            (line,) = [one for one in speed.lines if one.get_label() == name]
        assert list(line.get_ydata()) == [median] * len(depths)
