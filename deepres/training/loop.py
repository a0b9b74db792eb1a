"""Training, in reading order: evaluate, then collect, learn, log and save until the steps are done."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from deepres import algorithms
from deepres.config import Config
from deepres.machine import plain_torch
from deepres.ranks import Ranks, join
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint, CheckpointError
from deepres.runs.folder import RunFolder, new_folder, require_same
from deepres.runs.lock import Lock
from deepres.runs.logs import RunLog, require_packages
from deepres.runs.streams import lasting_output
from deepres.training.evaluate import Abandoned, Evaluation
from deepres.training.progress import Progress
from deepres.training.recorded import open_run
from deepres.training.run import Run
from deepres.training.stability import Diverged
from deepres.training.stopping import Stopped, StopRequest, exit_status

FINISHED = ("total_steps", "stop_at_success", "callback")
Callback = Callable[[str, dict[str, float]], object]


@dataclass(frozen=True)
class Result:
    """What `deepres.train` leaves: the run's folder, and the figures of the untrained and the trained policy.

    ended: why: "total_steps", "stop_at_success" or "callback", or the name of the signal that stopped it, "SIGINT"
    (Ctrl-C) say.
    """

    run_dir: Path
    before: Evaluation
    after: Evaluation
    env_steps: int
    ended: str

    @property
    def interrupted(self) -> bool:
        return self.ended not in FINISHED

    @property
    def status(self) -> int:
        """What the process of the command ends with: 0, or 128 and the signal's number."""
        return exit_status(self.ended) if self.interrupted else 0


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    callback: Callback | None = None,
) -> Result:
    """Train one agent; see `Config` for everything that can be chosen.

        result = deepres.train(deepres.Config("crl", env="point_u_maze", depth=16))

    run_dir: where logs and checkpoints go; default `runs/<env>-<algorithm>-d<depth>-s<seed>`, numbered if taken.
    resume: go on from run_dir's newest checkpoint, or from the start if the run was killed before its first; only
    options that say so may differ.
    progress: show a progress bar on a terminal, elsewhere a line per evaluation and one a minute between them.
    callback: called as callback("train", row) after every round and callback("eval", row) after every evaluation, with
    the row that the logs get, numbers by name; if it returns True after a round, the run ends there, with a checkpoint
    and an evaluation, and can be resumed. What it raises ends the run at once. Of several processes rank 0's is called.
    Under torchrun all processes train together (see deepres.ranks): rank 0 evaluates, logs, saves and raises.
    Ctrl-C, SIGTERM or SIGHUP end the run after the round under way, with a checkpoint; a second one at once. Raises
    ValueError, FileExistsError, MemoryError (before anything large is allocated), CheckpointError, TrainingError,
    InUse (another process trains there), LostRank, each with one sentence.
    """
    if not isinstance(config, Config):
        raise TypeError(
            f'config must be a deepres.Config, got {type(config).__name__}; pass deepres.Config("crl", env=...)'
        )
    for name, flag in (("resume", resume), ("progress", progress)):
        if not isinstance(flag, bool):
            raise ValueError(f"{name} must be True or False, got {flag!r}")
    if resume and run_dir is None:
        raise ValueError("resume needs the run's folder; pass run_dir")
    require_packages()
    with plain_torch(), lasting_output(), join(config) as ranks, ExitStack() as held:
        locks: list[Lock] = []

        def take(folder: RunFolder) -> RunFolder:
            locks.append(folder.take(resume=resume))
            held.callback(locks[-1].give_back)
            return folder

        restored = None
        if resume:
            folder = RunFolder(Path(run_dir or ""))
            ranks.first(lambda: take(folder) if folder.path.is_dir() else folder)
            restored = find_state_or_start(folder, config, ranks)
        if restored is None:
            _require_begun(config)
        with ranks.together():
            run = open_run(config, ranks=ranks, restored=restored)
        if not resume:
            folder = ranks.first(
                lambda: take(new_folder(config) if run_dir is None else RunFolder(Path(run_dir)))
            )
        ranks.first(lambda: folder.claim(config, resume=resume))
        training = _Training(run, folder, locks, progress and ranks.rank == 0, callback)
        saved = restored is not None
        del restored  # as large as the run's weights and their moments
        return training.go(saved=saved)


class _Training:
    """A run under way in its folder: what is logged, shown and saved of it."""

    def __init__(
        self, run: Run, folder: RunFolder, locks: list[Lock], show: bool, callback: Callback | None = None
    ):
        self.run, self.folder, self.ranks, self.show = run, folder, run.ranks, show
        self._callback, self._enough = callback, False
        self._locks = locks
        self._schedule = run.config.schedule
        self._log = self._open_log(begun=run.before is not None)

    def go(self, *, saved: bool) -> Result:
        """Train until the run ends. saved: whether the folder holds a checkpoint of the run as it is."""
        run, schedule = self.run, self._schedule
        headline = run.learner.algorithm.headline
        with (
            Progress(
                schedule.total_steps, self.folder.path, headline, unit=schedule.unit, show=self.show
            ) as self._bar,
            StopRequest(tell=_STOPPING if self.ranks.rank == 0 else "") as self._stop,
        ):
            if self.show and run.dealt_from != self.ranks.size:
                print(_DEALT.format(run.dealt_from, self.ranks.size))
            if self.show and run.moved:
                print(_MOVED.format(run.device.type))
            if self.show and not run.rounds and run.config.first_round > schedule.total_steps:
                print(_FIRST.format(run.config.first_round, schedule.total_steps))
            if run.due:
                saved = not self._examine() and saved
            ended = self._ended()
            if ended in FINISHED and self.show:
                print(_DONE[ended].format(run.env_steps, schedule))
            if ended and not saved:
                self._save(last=True)
            while not ended:
                try:
                    row = run.round()
                except Diverged as reason:
                    self._go_back(reason)
                    continue
                if self._log:
                    self._log.write("train", row)
                    self._log.measured(run.env_steps, run.measured)
                self._bar.round(row)
                self._enough = self._tell("train", row) is True
                # asked to end, it saves before it evaluates: batch systems kill some seconds later
                if run.due and not self._asked():
                    self._examine()
                ended = self._ended()
                if ended or run.rounds % schedule.checkpoint_every == 0:
                    self._save(last=bool(ended))
            result = self._result(ended)
            self._bar.ended(_told(result, schedule))
        if self._log:
            self._log.close()
        return result

    def _asked(self) -> str | None:
        """The signal that asked some process to end."""
        return next(filter(None, self.ranks.gather(self._stop.asked)), None)

    def _ended(self) -> str | None:
        """Why the run ends here, as Result has it; None if it goes on."""
        signal = self._asked()
        if self.run.done and not self.run.due:
            return "total_steps"
        return "stop_at_success" if self.run.reached else "callback" if self._enough else signal

    def _tell(self, what: str, row: dict[str, float]) -> object:
        """What the callback returns, in every process; None without one."""
        callback = self._callback
        return None if callback is None else self.ranks.first(lambda: callback(what, dict(row)))

    def _examine(self, *, abandon: bool = True) -> bool:
        """Evaluate, log and show; given up, to be done when the run is resumed, if it is asked to end meanwhile.
        Returns whether it was done."""

        def look() -> Evaluation | None:
            try:
                return self.run.evaluate(abandon=lambda: abandon and self._stop.asked is not None)[0]
            except Abandoned:
                return None

        run, figures = self.run, self.ranks.first(look)
        if figures is None:
            return False
        run.note(figures)
        row = {"env_steps": run.env_steps, "seconds": run.seconds, **figures.as_dict()}
        if self._log:
            self._log.write("eval", row)
        self._bar.evaluation(run.env_steps, figures)
        self._tell("eval", row)
        return True

    def _result(self, ended: str) -> Result:
        run = self.run
        # a person, who wants to know, or the caller
        if ended in ("SIGINT", "callback") and run.rounds and run.evaluated != run.env_steps:
            self._examine(abandon=False)
        if run.latest is None and run.before is not None:  # a checkpoint of version 0.1
            run.latest = self.ranks.first(lambda: run.evaluate()[0])
        if run.before is None or run.latest is None:
            raise self.ranks.agreed(
                Stopped(
                    f"{ended}: stopped before the first evaluation was done; begin with "
                    f"deepres train --resume {quote(str(self.folder.path))}",
                    exit_status(ended),
                )
            )
        return Result(self.folder.path, run.before, run.latest, run.env_steps, ended)

    def _go_back(self, reason: Diverged) -> None:
        if self._schedule.on_divergence != "rollback":
            raise reason
        roll_back(self.run, self.folder, reason)
        if self._log:
            _tell_rollback(self.run, reason)
            self._log.close()
            self._log = self._open_log(begun=True)  # drops the rows past the checkpoint

    def _open_log(self, *, begun: bool) -> RunLog | None:
        """begun: whether what the logs hold so far is the run's."""
        if self.ranks.rank:
            return None
        run = self.run
        return RunLog(
            self.folder,
            run.env_steps if begun else -1,
            evaluated=run.evaluated,
            wandb=run.config.system.wandb,
        )

    def _save(self, last: bool) -> None:
        """A checkpoint that cannot be written is told; it ends the run only when there is no later one to come."""

        def require() -> None:
            for lock in self._locks:
                lock.require()

        self.ranks.first(require)
        try:
            save(self.run, self.folder)
        except CheckpointError as error:
            if last:
                raise self.ranks.agreed(error) from None
            if self.ranks.rank == 0:
                warnings.warn(f"{error}; training goes on and tries again", RuntimeWarning, stacklevel=4)


def _require_begun(config: Config) -> None:
    """Raise ValueError for a run that starts from more than its options say, and has nothing to start from."""
    name = config.algorithm_name
    if command := algorithms.find(name).begun_by:
        raise ValueError(
            f"a run of {name} begins with `{command}`, which `train` goes on with, and there is none here; type that"
        )


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


def find_state_or_start(folder: RunFolder, config: Config, ranks: Ranks) -> Checkpoint | None:
    """`find_state`; None, which is told, for a run that was killed before its first checkpoint."""

    def unsaved() -> bool:
        if checkpoints.there_is_one(folder.checkpoints) or not folder.config.exists():
            return False
        require_same(folder.read_config(), config)
        print(f"{folder.path} holds no checkpoint: the run ended before its first, and begins anew")
        return True

    return None if ranks.first(unsaved) else find_state(folder, config, ranks)


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


_STOPPING = "stopping after this round, with a checkpoint"

_DEALT = (
    "the checkpoint was made by {} processes and goes on with {}: environments and buffers are dealt anew, "
    "and random streams begin anew"
)

_MOVED = "the checkpoint was made on another kind of device and goes on with {}: random streams begin anew"

_FIRST = (
    "the first round takes {0:,} env steps, more than total_steps={1:,}, and the run ends with it: a round is num_envs "
    "times unroll_length, the first one min_buffer_steps of each if that is more; make them less for a shorter run"
)

_DONE = {
    "total_steps": "the run is finished, at {0:,} of {1.total_steps:,} steps; ask for more total_steps to go on",
    "stop_at_success": "the run is finished, at {0:,} steps: it reached stop_at_success={1.stop_at_success:g}; ask "
    "for more to go on",
}


def _told(result: Result, schedule: Any) -> str:
    """Why the run ended, for its user."""
    if result.ended == "callback":
        return f"ended by its callback: {result.env_steps:,} of {schedule.total_steps:,} steps, with a checkpoint"
    if result.ended == "total_steps":
        return f"finished: {result.env_steps:,} steps"
    if result.ended == "stop_at_success":
        return (
            f"finished: {result.after.success_any:.1%} of the episodes reach their goal, "
            f"stop_at_success={schedule.stop_at_success:g}"
        )
    return (
        f"stopped by {result.ended} at {result.env_steps:,} of {schedule.total_steps:,} steps, with a checkpoint; "
        f"go on with deepres train --resume {quote(str(result.run_dir))}"
    )


def _tell_rollback(run: Run, reason: Diverged) -> None:
    warnings.warn(
        f"{reason} -- going on from {run.env_steps:,} {run.config.schedule.unit} with learning rates x "
        f"{run.learner.lr_scale:g}",
        RuntimeWarning,
        stacklevel=4,
    )
