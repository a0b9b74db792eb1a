"""Commands about runs that are there."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import tyro

Folder = tyro.conf.Positional[Path]


def evaluate(run: Folder, episodes: int | None = None, device: str = "auto", seed: int | None = None) -> None:
    """Evaluate a run's newest checkpoint.

    Args:
        run: Folder of the run.
        episodes: Episodes to run side by side; by default as many as during training.
        device: auto, cpu, cuda or cuda:1.
        seed: Draws other starts and goals than the evaluations during training.
    """
    from deepres.policy import Policy

    changes: dict[str, Any] = {"device": device}
    if episodes is not None:
        changes["eval_envs"] = episodes
    policy = Policy.load(run, **changes)
    unit = policy.config.schedule.unit
    print(f"{run} at {policy.env_steps:,} {unit}: {figures(policy.evaluate(seed)[0])}")


def render(
    run: Folder,
    out: Path | None = None,
    episodes: int = 3,
    device: str = "auto",
    format: str = "mp4",
    seed: int | None = None,
) -> None:
    """Show what a run learned: a video of the policy, and a picture of the paths it walks.

    Args:
        run: Folder of the run.
        out: Folder for the pictures; by default the run's own.
        episodes: Episodes in the video, one after another.
        device: auto, cpu, cuda or cuda:1.
        format: mp4 or gif.
        seed: Draws other starts and goals than the evaluations during training.
    """
    from deepres.policy import Policy
    from deepres.report.show import show_policy

    policy = Policy.load(run, device=device)
    _, pictures = show_policy(policy, out or run, episodes=episodes, format=format, seed=seed)
    for picture in pictures:
        print(picture)


def report(run: Folder, out: Path | None = None) -> None:
    """Show what every block of a run did as it was trained (--instruments-every): a table and a picture.

    Args:
        run: Folder of the run.
        out: The picture, a PDF beside it; by default RUN/instruments.png.
    """
    from deepres.report import instruments
    from deepres.report.tables import console, table

    columns = (
        "network", "blocks", "stream", "varying", "last / first gradient", "dormant", "effective rank", "saturated",
    )  # fmt: skip
    rows = instruments.summary(run)
    console().print(table(f"{run}: every network at its last measurement", columns, rows))
    print(instruments.report(run, out))


def export(run: Folder, out: Path | None = None, format: str | None = None) -> None:
    """Write what a run learned into a file that acts without deepres: ONNX, or a program of torch.export.

    Args:
        run: Folder of the run.
        out: The file; by default one of the run's name here.
        format: onnx or pt2; by default as the file's suffix says, or onnx where no file is named.
    """
    from deepres.policy import Policy

    path = out or Path(f"{run.resolve().name}.{format or 'onnx'}")
    print(Policy.load(run, device="cpu").export(path, format))


def grow(
    run: Folder, depth: int, out: Path | None = None, actor_depth: int | None = None, seed: int = 0
) -> None:
    """Make a deeper run of a trained one: blocks are appended that change nothing yet, and learn from there.

    Args:
        run: Folder of the run.
        depth: Layers that its networks are to have.
        out: New folder for the deeper run; by default RUN-dDEPTH.
        actor_depth: The actor's, where it has a depth of its own.
        seed: Draws the new blocks' weights.
    """
    from deepres.training.grow import grow as run_deeper

    beside = (run if run.name else run.resolve()).with_name(f"{run.resolve().name}-d{depth}")
    made = run_deeper(run, depth, out or beside, actor_depth=actor_depth, seed=seed)
    print(f"go on with it: deepres train --resume {quote(str(made))}")


def compare(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("compare.png")) -> None:
    """Put runs side by side: a table, and learning curves with the seeds' spread.

    Args:
        runs: Folders of runs, or of sweeps.
        out: The picture; a PDF is written beside it.
    """
    from deepres.report.compare import compare as run

    run(runs, out)


def demo(run_dir: Path | None = None, seed: int = 0) -> None:
    """Train a 16-layer agent in a maze for a few minutes on a CPU, then show what it learned.

    Args:
        run_dir: New folder for everything it leaves; by default one under runs/.
        seed: Of the run.
    """
    from deepres.experiments.demo import main as run

    run(run_dir, seed)


def figures(evaluation: Any) -> str:
    """An evaluation on one line."""
    return (
        f"time at goal {evaluation.time_at_goal:.1f} steps, goals reached {evaluation.success_any:.1%}, "
        f"final distance {evaluation.final_distance:.2f}"
    )
