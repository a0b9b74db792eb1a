"""Training, in reading order: evaluate, then collect, learn, log and save until the steps are done."""

from __future__ import annotations

import signal
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepres.config import Config
from deepres.ranks import Ranks, join
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint, CheckpointError
from deepres.runs.folder import RunFolder, new_folder, require_same
from deepres.training.evaluate import Evaluation
from deepres.training.recorded import open_run
from deepres.training.run import Run
from deepres.training.stability import Diverged


@dataclass(frozen=True)
class Result:
    """What `deepres.train` leaves: the run's folder, and the figures of the untrained and the trained policy."""

    run_dir: Path
    before: Evaluation
    after: Evaluation
    env_steps: int
    interrupted: bool


def train(
    config: Config, run_dir: str | Path | None = None, *, resume: bool = False, progress: bool = True
) -> Result:
    """Train one agent; see `Config` for everything that can be chosen.

        result = deepres.train(deepres.Config("crl", env="point_u_maze", depth=16))

    run_dir: where logs and checkpoints go; default runs/<env>-<algorithm>-d<depth>-s<seed>, numbered if taken.
    resume: go on from run_dir's newest checkpoint; only options that say so may differ.
    progress: show a progress bar on a terminal, a line per evaluation elsewhere.
    Under torchrun all processes train together (see deepres.ranks): rank 0 evaluates, logs, saves and raises.
    Ctrl-C ends the run after the round under way, with a checkpoint; a second one ends it at once. Raises
    ValueError, FileExistsError, MemoryError (before anything large is allocated), CheckpointError, TrainingError,
    LostRank, each with one sentence.
    """
    from deepres.runs.logs import RunLog
    from deepres.training.progress import Progress

    if resume and run_dir is None:
        raise ValueError("resume needs the run's folder; pass run_dir")
    schedule, wandb = config.schedule, config.system.wandb
    with join(config) as ranks:
        folder = ranks.first(lambda: new_folder(config) if run_dir is None else RunFolder(Path(run_dir)))
        restored = find_state(folder, config, ranks) if resume else None
        with ranks.together():
            run = open_run(config, ranks=ranks, restored=restored)
        ranks.first(lambda: folder.claim(config, resume=resume))
        log = RunLog(folder, run.env_steps, wandb=wandb) if ranks.rank == 0 else None
        show = progress and ranks.rank == 0
        headline = run.learner.algorithm.headline
        unit = "env steps" if schedule.data is None else "gradient steps"
        with (
            Progress(schedule.total_steps, folder.path, headline, unit=unit, show=show) as bar,
            _Interrupt(tell=ranks.rank == 0) as interrupt,
        ):
            if show and run.dealt_from != ranks.size:
                print(_DEALT.format(run.dealt_from, ranks.size))

            def examine() -> Evaluation:
                figures = ranks.first(lambda: run.evaluate()[0])
                if log:
                    log.write("eval", {"env_steps": run.env_steps, "seconds": run.seconds, **asdict(figures)})
                bar.evaluation(run.env_steps, figures)
                return figures

            if run.before is None:
                run.before = examine()
            figures = run.before
            reached, stopping = False, ranks.any(interrupt.asked)
            if run.rounds and (run.done or stopping):  # a resumed run that does not go on: the figures it has
                figures = ranks.first(lambda: run.evaluate()[0])
                if show and run.done:
                    print(_DONE.format(run.env_steps, schedule.total_steps))
            while not (run.done or reached or stopping):
                try:
                    row = run.round()
                except Diverged as reason:
                    if schedule.on_divergence != "rollback":
                        raise
                    roll_back(run, folder, reason)
                    if log:
                        _tell_rollback(run, reason)
                        log.close()
                        # drops the rows past the checkpoint
                        log = RunLog(folder, run.env_steps, wandb=wandb)
                    continue
                if log:
                    log.write("train", row)
                bar.round(row)
                stopping = ranks.any(interrupt.asked)
                if stopping:  # save before the evaluation: torchrun kills 30 seconds after it was interrupted
                    _save(run, folder, last=True)
                if run.done or stopping or run.rounds % schedule.eval_every == 0:
                    figures = examine()
                    goal = schedule.stop_at_success
                    reached = goal is not None and figures.success_any >= goal
                last = run.done or reached
                if not stopping and (last or run.rounds % schedule.checkpoint_every == 0):
                    _save(run, folder, last)
            if log:
                log.close()
        return Result(folder.path, run.before, figures, run.env_steps, interrupted=stopping)


def load_run(run_dir: str | Path, **changes: Any) -> Run:
    """The whole run that `train` left in run_dir, at its newest checkpoint that reads: buffer, optimisers and all.

    changes: options that may change on resuming, set otherwise, e.g. device="cpu", eval_envs=512. Nothing in the
    folder changes. To act or to evaluate, `deepres.Policy.load` needs less memory.
    """
    folder = RunFolder(Path(run_dir))
    config = folder.read_config().replace(**changes)
    return open_run(config, restored=find_state(folder, config))


def find_state(folder: RunFolder, config: Config, ranks: Ranks | None = None) -> Checkpoint:
    """This rank's part of the newest state in `folder`. Raises ValueError if a run of `config` cannot go on from it."""
    path, restored = checkpoints.find(folder.checkpoints, *([ranks] if ranks else []))
    require_same(Config.from_dict(restored.config, str(path)), config)
    return restored


def roll_back(run: Run, folder: RunFolder, reason: Diverged) -> None:
    """Take `run` back to its newest checkpoint that reads, with all learning rates times `rollback_lr_factor`.

    Otherwise as a resumed run would, with this run's config. Raises Diverged if there is no checkpoint, or if
    this one was gone back to too often; logs are the caller's (rows past `env_steps` are undone).
    """
    scale = run.learner.lr_scale * run.config.schedule.rollback_lr_factor
    try:
        restored = find_state(folder, run.config, run.ranks)
    except CheckpointError as error:
        raise Diverged(f"{reason} -- and nothing to go back to: {error}") from reason
    with run.ranks.together():
        run.load_state(restored)
        run.learner.lr_scale = scale
        run.rollbacks.count(run.env_steps, reason)


def save(run: Run, folder: RunFolder) -> Path:
    """Write a checkpoint; raises CheckpointError if the disk refuses (what was there stays)."""
    keep = run.config.schedule.keep_checkpoints
    return checkpoints.save(folder.checkpoints, run.state(), keep=keep, ranks=run.ranks)


_DEALT = (
    "the checkpoint was made by {} processes and goes on with {}: environments and buffers are dealt anew, "
    "and random streams begin anew"
)


_DONE = "the run is finished, at {:,} of {:,} env steps; ask for more total_steps to go on"


def _tell_rollback(run: Run, reason: Diverged) -> None:
    warnings.warn(
        f"{reason} -- going on from {run.env_steps:,} env steps with learning rates x {run.learner.lr_scale:g}",
        RuntimeWarning,
        stacklevel=3,
    )


def _save(run: Run, folder: RunFolder, last: bool) -> None:
    """A checkpoint that cannot be written is told; it ends the run only when there is no later one to come."""
    try:
        save(run, folder)
    except CheckpointError as error:
        if last:
            raise run.ranks.agreed(error) from None
        if run.ranks.rank == 0:
            warnings.warn(f"{error}; training goes on and tries again", RuntimeWarning, stacklevel=3)


class _Interrupt:
    """Turns the first Ctrl-C into a request to stop at the end of the round; the second is the usual one."""

    def __init__(self, tell: bool):
        self._tell = tell

    def __enter__(self) -> _Interrupt:
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True
        if self._tell:
            print("\nstopping after this round, with a checkpoint; Ctrl-C again to stop at once")
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *_: Any) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)
