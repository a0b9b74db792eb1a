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
    """List the algorithms: what each is, what its losses are called, what it asks the replay ring to keep."""
    from deepres import algorithms
    from deepres.data.batch import Sizes
    from deepres.networks import NetworkOptions, Networks
    from deepres.report.tables import console, table

    rows = []
    for name in algorithms.names():
        try:
            found = algorithms.find(name)
        except (ImportError, TypeError, ValueError) as error:
            rows.append((name, "-", str(error)))
            continue
        networks = Networks(NetworkOptions(depth=4, width=8))
        columns = found(found.Options(), Sizes(1, 1, 1), networks).sampler.columns
        about = (found.__doc__ or "").strip().partition("\n")[0]
        rows.append((name, ", ".join(columns) or "-", about))
    console().print(
        table("algorithms: deepres train NAME", ("name", "extra ring columns", "what it is"), rows)
    )
