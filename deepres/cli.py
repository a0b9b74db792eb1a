"""The command line: `deepres train`, `eval`, `sweep`, `compare`, `doctor` and more, each a thin call of the Python API.

What is wrong with the input is one sentence on stderr and exit status 2; a run that cannot go on is status 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from deepres.config import Config

Folder = tyro.conf.Positional[Path]


def main(argv: list[str] | None = None) -> None:
    """Run one command. argv: the arguments, by default the process's own."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        commands = _commands(arguments)
        tyro.extras.subcommand_cli_from_dict(commands, prog="deepres", description=_ABOUT, args=arguments)
    except (ValueError, TypeError, OSError) as error:
        _fail(_sentence(error), 2)
    except (RuntimeError, ImportError, MemoryError) as error:
        _fail(_sentence(error), 1)


_ABOUT = "Very deep residual networks for self-supervised reinforcement learning."


def _commands(arguments: list[str]) -> dict[str, Callable[..., None]]:
    default = _defaults(arguments)

    def train(
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        preset: str | None = None,
        config_file: Path | None = None,
        run_dir: Path | None = None,
        resume: Path | None = None,
    ) -> None:
        """Train one agent. The memory that it takes is told first; what does not fit is refused.

        Args:
            preset: A published run (`deepres presets`) whose options are the defaults.
            config_file: A config.json whose fields are the defaults.
            run_dir: New folder for logs and checkpoints; by default one under runs/.
            resume: Folder of a run to go on with, from its newest checkpoint; its options are the defaults.
        """
        from deepres.distributed import is_first
        from deepres.doctor import print_plan
        from deepres.logs import require_wandb
        from deepres.training import train as run

        if run_dir and resume:
            raise ValueError("pass --run-dir for a new run or --resume for one to go on with, not both")
        if config.wandb:
            require_wandb()
        print_plan(config)
        result = run(config, resume or run_dir, resume=resume is not None)
        if is_first():
            print(f"untrained: {_figures(result.before)}\ntrained:   {_figures(result.after)}")

    def evaluate(
        run: Folder, episodes: int | None = None, device: str = "auto", seed: int | None = None
    ) -> None:
        """Evaluate a run's newest checkpoint.

        Args:
            run: Folder of the run.
            episodes: Episodes to run side by side; by default as many as during training.
            device: auto, cpu, cuda or cuda:1.
            seed: Draws other starts and goals than the evaluations during training.
        """
        from deepres.run import load_run

        changes: dict[str, Any] = {"device": device}
        if episodes is not None:
            changes["eval_envs"] = episodes
        loaded = load_run(run, **changes)
        print(f"{run} at {loaded.env_steps:,} env steps: {_figures(loaded.evaluate(seed)[0])}")

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
        from deepres.run import load_run
        from deepres.show import show_policy

        loaded = load_run(run, device=device)
        _, pictures = show_policy(loaded, out or run, episodes=episodes, format=format, seed=seed)
        for picture in pictures:
            print(picture)

    def demo(run_dir: Path | None = None, seed: int = 0) -> None:
        """Train a 16-layer agent in a maze for a few minutes on a CPU, then show what it learned.

        Args:
            run_dir: New folder for everything it leaves; by default one under runs/.
            seed: Of the run.
        """
        from deepres.demo import main as run

        run(run_dir, seed)

    def envs() -> None:
        """List the tasks: sizes of state, goal and action, success threshold, control period."""
        from deepres.doctor import print_envs

        print_envs()

    def sweep(
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        preset: str | None = None,
        config_file: Path | None = None,
        depths: tuple[int, ...] = (4, 16, 64),
        seeds: tuple[int, ...] = (0, 1, 2),
        out: Path | None = None,
        jobs: int = 0,
    ) -> None:
        """Train a grid of depths and seeds; asked for again, it goes on where it stopped.

        Args:
            preset: A published run (`deepres presets`) whose options are the defaults.
            config_file: A config.json whose fields are the defaults.
            depths: Of the critic; the actor has the same up to 512.
            seeds: Of the runs.
            out: Folder of the sweep; by default runs/sweep-<env>.
            jobs: Runs at a time; 0 is one to each GPU, or one where there is none.
        """
        from deepres.sweep import sweep as run

        result = run(config, depths, seeds, out or Path("runs") / f"sweep-{config.env}", jobs=jobs)
        if result.failed:
            raise RuntimeError(
                f"{len(result.failed)} of {len(result.cells)} runs failed: {', '.join(result.failed)}"
            )

    def compare(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("compare.png")) -> None:
        """Put runs side by side: a table, and learning curves with the seeds' spread.

        Args:
            runs: Folders of runs, or of sweeps.
            out: The picture.
        """
        from deepres.compare import compare as run

        run(runs, out)

    def presets() -> None:
        """List the paper's runs with their scores and hours: `deepres train --preset NAME`."""
        from deepres.presets import print_presets

        print_presets()

    def doctor(
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        preset: str | None = None,
        memory_gb: float | None = None,
    ) -> None:
        """Tell what this machine has: devices, backends, versions, the memory a run would take and each choice's cost.

        Args:
            preset: A published run (`deepres presets`) whose options are the defaults.
            memory_gb: Plan for a GPU with so many GB (with --device cpu, for a machine) instead of this one.
        """
        from deepres.doctor import print_report

        print_report(config, memory_gb)

    return {
        "train": train, "eval": evaluate, "render": render, "sweep": sweep, "compare": compare, "demo": demo,
        "envs": envs, "presets": presets, "doctor": doctor,
    }  # fmt: skip


def _defaults(arguments: list[str]) -> Config:
    """The options that stand where none is typed: a run's own, a preset's, a file's, or the published ones."""
    sources = [
        (name, value)
        for name in ("--config-file", "--resume", "--preset")
        if (value := _option(arguments, name))
    ]
    if not sources:
        return Config()
    name, value = sources[0]
    if len(sources) > 1 and (name, sources[1][0]) != ("--config-file", "--resume"):
        raise ValueError(f"pass {name} or {sources[1][0]}, not both: each is where the defaults come from")
    if name == "--preset":
        from deepres.presets import preset

        return preset(value)
    return Config.from_file(Path(value) / "config.json" if name == "--resume" else Path(value))


def _figures(evaluation: Any) -> str:
    return (
        f"time at goal {evaluation.time_at_goal:.1f} steps, goals reached {evaluation.success_any:.1%}, "
        f"final distance {evaluation.final_distance:.2f}"
    )


def _option(arguments: list[str], name: str) -> str | None:
    """The value of an option wherever it stands, "--name value" or "--name=value"."""
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :]
    return None


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(sentence: str, status: int) -> None:
    print(f"deepres: {sentence}", file=sys.stderr)
    raise SystemExit(status)
