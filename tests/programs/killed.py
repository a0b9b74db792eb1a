"""Ends small runs at random moments and resumes them: FOLDER [NUMBER [SEED [short]]], some seconds for each.

Every second one is ended by SIGTERM, the others by kill -9, at a moment drawn uniformly from the time that an
undisturbed run takes; one that came too late is drawn again. Each run is a fork of this process, which has imported
what they need: moments fall into runs, not into imports. Prints a line for each, kept in FOLDER/told.txt, from which
the same command goes on. Ends with 1 if a resumed run differs from the undisturbed one in a tensor of its last
checkpoint or in a row of its logs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from deepres import envs
from deepres.commands.main import main as deepres_command
from deepres.config import Config
from deepres.runs import checkpoint as checkpoints
from deepres.runs.logs import require_packages
from helpers.tiny_runs import TINY, different, listing, rows, words

LONG = TINY.replace(total_steps=40 * 60, checkpoint_every=2, eval_every=5, eval_envs=16)
SHORT = TINY.replace(env="disc", total_steps=40 * 8, eval_every=3)
"""For the tests: an environment that JAX traces in a second."""
NEEDED = (
    "deepres.envs.engines.c_step", "deepres.envs.tasks.point", "deepres.report.doctor", "helpers.own_environments",
    "rich.live", "safetensors.torch", "torch._dynamo", "torch.utils.tensorboard",
)  # fmt: skip
LOGS = ("metrics.csv", "evaluations.csv")


def begin(run: Path, config: Config) -> int:
    """A process that trains in `run`, or goes on there; what it says is added to a file beside. Returns its id."""
    where = (
        ["--resume", str(run)] if (run / "config.json").exists() else [*words(config), "--run-dir", str(run)]
    )
    process = os.fork()
    if process:
        return process
    said = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    status = 99
    try:
        deepres_command(["train", *where])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def wait(process: int) -> int:
    """The status that a process ends with, minus the signal's number if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def stage(run: Path) -> str:
    """How far the run had come, as its folder tells."""
    if not (run / "config.json").exists():
        return "before its options were written"
    if not (run / "evaluations.csv").exists() or not rows(run / "evaluations.csv"):
        return "before the first evaluation was done"
    done = rows(run / "metrics.csv") if (run / "metrics.csv").exists() else []
    saved = [int(step) for step in checkpoints.steps(run / "checkpoints")]
    return f"at {done[-1]['env_steps'] if done else 0} steps, saved {saved[-1] if saved else 'none'}"


def last_words(run: Path) -> str:
    lines = run.with_suffix(".log").read_text().split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


def differences(run: Path, undisturbed: Path) -> list[str]:
    a, b = (checkpoints.load_newest(folder / "checkpoints")[1] for folder in (run, undisturbed))
    logs = [name for name in LOGS if rows(run / name) != rows(undisturbed / name)]
    return [*logs, *different(a, b)]


def disturbed(run: Path, config: Config, number: signal.Signals, moment: float) -> str | None:
    """Where the run was when the signal reached it, its status and last words; None if it had ended before."""
    process, until = begin(run, config), time.monotonic() + moment
    while time.monotonic() < until and not ended(process):
        time.sleep(0.002)
    if ended(process):
        wait(process)
        return None
    where = stage(run)
    os.kill(process, number)
    return f"{where}; status {wait(process)}, {last_words(run)!r}"


def main(folder: Path, number: int = 20, seed: int = 0, config: Config = LONG) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    require_packages()
    envs.register("disc", "helpers.own_environments:Disc")
    for name in NEEDED:
        import_module(name)
    undisturbed, told, took = folder / "undisturbed", folder / "told.txt", folder / "seconds.txt"
    if not took.exists():
        shutil.rmtree(undisturbed, ignore_errors=True)
        since = time.monotonic()
        assert wait(begin(undisturbed, config)) == 0, last_words(undisturbed)
        took.write_text(f"{time.monotonic() - since:.1f}")
    seconds = float(took.read_text())
    print(f"undisturbed: {seconds} s", flush=True)
    lines = told.read_text().splitlines() if told.exists() else []
    for index in range(len(lines), number):
        run, draw = folder / f"run{index}", random.Random(f"{seed} {index} {time.time()}")
        which = (signal.SIGTERM, signal.SIGKILL)[index % 2]
        state = None
        while state is None:
            for name in listing(folder):
                if name.split(".")[0] == run.name:
                    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
            moment = draw.uniform(0, seconds)
            state = disturbed(run, config, which, moment)
        status = wait(begin(run, config))
        differs = differences(run, undisturbed) if status == 0 else [last_words(run)]
        verdict = f"DIFFERS: {differs[:3]}" if differs else "equal to undisturbed"
        lines.append(f"{which.name} after {moment:.1f} s, {state} -> resumed: status {status}, {verdict}")
        told.write_text("".join(f"{line}\n" for line in lines))
        print(lines[-1], flush=True)
        if not differs:
            shutil.rmtree(run)
    return int(any("equal to undisturbed" not in line for line in lines))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:4]), *[SHORT] * (sys.argv[4:] == ["short"])))
