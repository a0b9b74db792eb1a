"""The paper's claims, and questions of our own, as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from deepres.commands import arguments


def experiment(
    name: tyro.conf.Positional[str] = "list",
    size: Literal["cpu", "paper"] = "cpu",
    seeds: tuple[int, ...] = (),
    jobs: int = 0,
    out: Path | None = None,
    keep: Path | None = None,
    go_on_from: Path | None = None,
    plan: bool = False,
) -> None:
    """Run a study, or go on with it: its trials, a table, a figure and a sentence. Without a name, list them.

    Args:
        name: Name of the study.
        size: cpu, for two cores and some hours; or paper, the published protocol, for GPUs.
        seeds: Seeds to run; by default as many as the study takes.
        jobs: Trials at a time, each with one thread; 0 is one to each GPU, or one where there is none.
        out: Folder of the study; by default runs/studies/NAME.
        keep: Copy the table, its rows and the figure into this folder as well, and write its index and the table in the
            README above it; without a name, these two alone.
        go_on_from: A folder that studies were kept in, on another machine perhaps: a trial whose row is there, or the
            row of another study's trial with the same options, is not run again.
        plan: Tell what its trials would take, and run none.
    """
    from deepres.experiments import kept, runner
    from deepres.experiments.folder import default_folder
    from deepres.training.stopping import Stopped, exit_status

    given = {
        "--seeds": seeds, "--jobs": jobs, "--out": out, "--go-on-from": go_on_from, "--plan": plan, "--keep": keep,
    }  # fmt: skip
    read = {"--keep"} if name == "list" else {"--seeds", "--plan"} if plan else set(given)
    if lost := [option for option, value in given.items() if value and option not in read]:
        where = (
            "without a study's name; name one of those that `deepres experiment` lists"
            if name == "list"
            else "to --plan, which runs nothing; leave it out"
        )
        raise ValueError(f"{', '.join(lost)} does not apply {where}")
    if name == "list" and keep is not None:
        print(*kept.write(keep), sep="\n")
        return
    if name == "list":
        from deepres.experiments import studies
        from deepres.report.tables import console, table

        rows = []
        for known in studies.names():
            one = studies.find(known)
            counts = " / ".join(str(len(one.trials(s, range(one.many(s))))) for s in ("cpu", "paper"))
            rows.append((known, counts, one.source, one.question))
        columns = ("name", "trials, cpu / paper", "source", "question")
        console().print(table("studies: deepres experiment NAME", columns, rows))
        return
    if plan:
        from deepres.experiments import studies
        from deepres.experiments.budget import print_budget

        print_budget(studies.find(name), size, seeds)
        return
    out = out or default_folder(name)
    if go_on_from is not None:
        print(f"taken from {go_on_from}: {len(kept.take_up(name, size, go_on_from, out, seeds))} trials")
    result = runner.run_study(name, size=size, seeds=seeds, out=out, jobs=jobs, imports=arguments.imported)
    print(result.folder)
    if result.failed:
        raise RuntimeError(f"{len(result.failed)} trials failed: {', '.join(result.failed)}")
    if result.signal:
        told = f"stopped by {result.signal}; the same command goes on where it stopped"
        raise Stopped(told, exit_status(result.signal))
    if keep is not None:
        print(kept.keep(result.folder, keep))
