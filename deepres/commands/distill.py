"""The command that teaches a small network what a deep one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from deepres.commands.runs import figures


def distill(
    run: tyro.conf.Positional[Path],
    depth: int,
    width: int | None = None,
    steps: int = 20_000,
    out: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    energy_share: float = 0.0,
) -> None:
    """Teach a network of another depth what a trained run does: a run of its own, of the same task.

    Interrupted, it goes on with `deepres train --resume`. It evaluates, renders, exports and grows as any other.

    Args:
        run: Folder of the teacher's run, or a file of Policy.save.
        depth: Layers of the student.
        width: Features of its layers; by default the teacher's, whose blocks it then starts from.
        steps: Gradient steps.
        out: New folder of the student; by default one under runs/.
        device: auto, cpu, cuda or cuda:1.
        seed: Of the student's run.
        energy_share: Share of the steps, the last ones, in which the student also seeks the energy that a teacher of
            crl judges actions by; it may then pass its teacher.
    """
    from deepres.compress.distill import distill as learn

    wide: dict[str, Any] = {} if width is None else {"width": width}
    result = learn(run, depth, out, steps=steps, device=device, seed=seed, energy_share=energy_share, **wide)
    print(f"{result.run_dir} at its start: {figures(result.before)}")
    print(f"{result.run_dir} at its end: {figures(result.after)}")
    if result.status:
        raise SystemExit(result.status)
