"""Commands that look into a trained policy's blocks, and leave some out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

Folder = tyro.conf.Positional[Path]


def analyse(
    run: Folder, states: int = 10_000, out: Path | None = None, seed: int = 0, device: str | None = None
) -> None:
    """Tell what each residual block of a policy does: a table, a CSV file and a picture.

    Args:
        run: Folder of the run, or a file of Policy.save.
        states: Visited states that are measured on, or what is there.
        out: Folder for blocks.csv, .png and .pdf; by default the run's own.
        seed: Draws the states.
        device: auto, cpu, cuda or cuda:1; by default the run's own.
    """
    from deepres.compress.analyse import analyse as measure
    from deepres.compress.analyse import visited
    from deepres.compress.blocks import Blocks
    from deepres.policy import Policy
    from deepres.report import blocks as told
    from deepres.report.tables import console, table

    policy = Policy.load(run, **({} if device is None else {"device": device}))
    blocks = Blocks(policy.network)
    found = measure(blocks, visited(policy, states, seed), seed)
    title = f"{run}: {blocks.count} blocks of {blocks.size} layers on {found.states:,} visited states"
    columns = ("block", "left out", "its mean kept", "first order", "angle / pi", "branch / stream")
    console().print(table(title, columns, told.rows(found)))
    ranks = ", ".join(f"{name} {value:.2f}" for name, value in told.agreement(found).items())
    print(f"rank agreement with the error of leaving a block out: {ranks}")
    for path in told.write(found, out or (run if run.is_dir() else run.parent), title):
        print(path)


def prune(
    run: Folder,
    depth: int,
    out: Path,
    score: Literal["exact", "ablated", "gradient", "angular", "norm"] = "exact",
    heal: int = 0,
    rounds: int | None = None,
    states: int = 10_000,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Leave residual blocks out of a trained policy by their scores, in rounds, with healing between them.

    Interrupted, the same command goes on. What it leaves evaluates, renders, exports and distils as any run.

    Args:
        run: Folder of the run, or a file of Policy.save.
        depth: Layers of the actor that are left.
        out: New folder of the pruned policy.
        score: What blocks are dropped by, the least first (docs/deployment.md).
        heal: Gradient steps of distillation from the unpruned policy after each round.
        rounds: Rounds over which the removal is spread; by default an eighth of the blocks goes in each, and 1 drops
            all at once.
        states: Visited states that are scored on.
        seed: Draws them, and is that of healing.
        device: auto, cpu, cuda or cuda:1; by default the run's own.
    """
    from deepres.compress.prune import prune as leave_out

    leave_out(
        run,
        depth,
        out,
        score=score,
        heal=heal,
        rounds=rounds,
        states=states,
        seed=seed,
        device=device,
        tell=print,
    )
    print(out)
