"""Training, in reading order: evaluate, then collect, learn, log and save until the steps are done."""

from __future__ import annotations

import signal
import threading
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepres.checkpoint import CheckpointError
from deepres.config import Config
from deepres.distributed import join
from deepres.evaluate import Evaluation
from deepres.run import Run
from deepres.stability import Diverged


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

        result = deepres.train(deepres.Config(env="point_u_maze", critic_depth=16, actor_depth=16))

    run_dir: where logs and checkpoints go; default runs/<env>-d<critic depth>-s<seed>, numbered if taken.
    resume: go on from run_dir's newest checkpoint; only the fields in `deepres.config.CHANGEABLE` may differ.
    progress: show a progress bar on a terminal, a line per evaluation elsewhere.
    Under torchrun all processes train together (see deepres.distributed): rank 0 evaluates, logs, saves and raises.
    Ctrl-C ends the run after the round under way, with a checkpoint; a second one ends it at once. Raises
    ValueError, FileExistsError, MemoryError (before anything large is allocated), CheckpointError, TrainingError,
    LostRank, each with one sentence.
    """
    from deepres.logs import RunLog
    from deepres.progress import Progress

    if resume and run_dir is None:
        raise ValueError("resume needs the run's folder; pass run_dir")
    with join(config) as ranks:
        folder = ranks.first(lambda: _new_run_dir(config) if run_dir is None else Path(run_dir))
        run = Run(config, folder, resume=resume, ranks=ranks)
        log = RunLog(folder, run.env_steps, wandb=config.wandb) if ranks.rank == 0 else None
        show = progress and ranks.rank == 0
        with (
            Progress(config.total_steps, folder, show=show) as bar,
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
            while not (run.done or reached or stopping):
                try:
                    row = run.round()
                except Diverged as reason:
                    if config.on_divergence != "rollback":
                        raise
                    run.roll_back(reason)
                    if log:
                        _tell_return(run, reason)
                        log.close()
                        # drops the rows past the checkpoint
                        log = RunLog(folder, run.env_steps, wandb=config.wandb)
                    continue
                if log:
                    log.write("train", row)
                bar.round(row)
                stopping = ranks.any(interrupt.asked)
                if stopping:  # save before the evaluation: torchrun kills 30 seconds after it was interrupted
                    _save(run, last=True)
                if run.done or stopping or run.rounds % config.eval_every == 0:
                    figures = examine()
                    goal = config.stop_at_success
                    reached = goal is not None and figures.success_any >= goal
                last = run.done or reached
                if not stopping and (last or run.rounds % config.checkpoint_every == 0):
                    _save(run, last)
            if log:
                log.close()
        return Result(folder, run.before, figures, run.env_steps, interrupted=stopping)


_DEALT = (
    "the checkpoint was made by {} processes and goes on with {}: environments and buffers are dealt anew, "
    "and random streams begin anew"
)


def _tell_return(run: Run, reason: Diverged) -> None:
    warnings.warn(
        f"{reason} -- going on from {run.env_steps:,} env steps with learning rates x {run.learner.lr_scale:g}",
        RuntimeWarning,
        stacklevel=3,
    )


def _save(run: Run, last: bool) -> None:
    """A checkpoint that cannot be written is told; it ends the run only when there is no later one to come."""
    try:
        run.save()
    except CheckpointError as error:
        if last:
            raise run.ranks.agreed(error) from None
        if run.ranks.rank == 0:
            warnings.warn(f"{error}; training goes on and tries again", RuntimeWarning, stacklevel=3)


def _new_run_dir(config: Config) -> Path:
    name = f"{config.env}-d{config.critic_depth}-s{config.seed}"
    folder, n = Path("runs") / name, 1
    while folder.exists():
        n += 1
        folder = Path("runs") / f"{name}-{n}"
    return folder


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
