"""What a data set holds: a table, and a picture of where it has been."""

from __future__ import annotations

from pathlib import Path

from deepres.data.datasets import Dataset
from deepres.report.figures import save


def rows(data: Dataset) -> list[tuple[str, str]]:
    """What it holds, a line each."""
    import numpy as np

    low, high = data.observations.min(axis=0), data.observations.max(axis=0)
    ranges = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in list(zip(low, high, strict=True))[:6])
    acted = data.actions.reshape(data.episodes, data.rows, -1)[:, :-1]
    return [
        ("episodes", f"{data.episodes:,}"),
        ("transitions of an episode", f"{data.rows - 1:,}"),
        ("transitions", f"{data.transitions:,}"),
        ("numbers of a state, an action", f"{data.observations.shape[1]}, {data.actions.shape[1]}"),
        ("first numbers of a state", ranges),
        ("actions at their bounds", f"{float(np.mean(np.abs(acted) >= 1)):.1%}"),
        ("bytes in memory", f"{data.observations.nbytes + data.actions.nbytes:,}"),
    ]


def draw(data: Dataset, path: Path, paths: int = 20) -> Path:
    """Where the first two coordinates have been: how often, and the ways of some episodes, into `path` and a PDF."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    places = data.observations[:, :2]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    often, ways = figure.subplots(1, 2)
    style = {"cmap": "Blues", "norm": LogNorm(), "rasterized": True}
    *_, image = often.hist2d(places[:, 0], places[:, 1], bins=100, **style)
    figure.colorbar(image, ax=often, label="rows")
    for episode in range(min(paths, data.episodes)):
        way = places[episode * data.rows : (episode + 1) * data.rows]
        ways.plot(way[:, 0], way[:, 1], linewidth=0.8, alpha=0.8)
        ways.plot(*way[0], "o", color="black", ms=3)
    for axis, title in (
        (often, "how often"),
        (ways, f"{min(paths, data.episodes)} episodes from their starts"),
    ):
        axis.set(xlabel="x (m)", ylabel="y (m)", title=title, aspect="equal")
    save(figure, path)
    return path
