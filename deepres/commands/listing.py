"""Commands that list what there is."""

from __future__ import annotations


def envs() -> None:
    """List the tasks: sizes of state, goal and action, success threshold, control period."""
    from deepres.envs.listing import COLUMNS, rows
    from deepres.report.tables import console, table

    console().print(table("tasks", COLUMNS, [row.cells() for row in rows()]))


def presets() -> None:
    """List the paper's runs with their scores and hours: `deepres train --preset NAME`."""
    from deepres.experiments.presets import print_presets

    print_presets()


def algorithms() -> None:
    """List the algorithms: their losses, what the actor reads, dependent layers, what the ring keeps."""
    from deepres import algorithms
    from deepres.data.batch import Sizes
    from deepres.networks import NetworkOptions, Networks
    from deepres.report.tables import console, table

    rows: list[tuple[str, ...]] = []
    for name in algorithms.names():
        try:
            found = algorithms.find(name)
        except (ImportError, TypeError, ValueError) as error:
            rows.append((name, str(error), "", "", "", "", ""))
            continue
        networks = Networks(NetworkOptions(depth=4, width=8))
        columns = found(found.Options(), Sizes(1, 1, 1), networks).sampler.columns
        what = (found.__doc__ or "").strip().partition("\n")[0]
        about, extra = found.about, ", ".join(columns) or "-"
        told = (about.losses, about.actor_reads, about.layers)
        rows.append((name, what, *(word or "-" for word in told), extra, about.source or "-"))
    heads = ("name", "what it is", "losses", "actor reads", "layers", "extra ring columns", "source")
    console().print(table("algorithms: deepres train NAME", heads, rows))
    console().print("actor reads: what judges its actions as it was before the step, or updated by it")
    console().print("layers: those of a gradient step that wait for one another, in networks of depth D")
