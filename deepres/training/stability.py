"""What a run does when it diverges: count what was skipped, then stop, or return to a checkpoint and learn slower.

The paper saw the actor's loss explode at 1024 layers (arXiv 2503.14858, section 4). A gradient step that is not finite
is skipped on the device (learner.py); here a round's count of them is judged.
"""

from __future__ import annotations

import math

from deepres.config import Schedule

MOST_ROLLBACKS = 5  # to one checkpoint, before a run that diverges again and again is given up


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class Diverged(TrainingError):
    """A round with more skipped gradient steps than the schedule allows."""


def check_round(metrics: dict[str, float], schedule: Schedule, number: int) -> None:
    """Raise Diverged, in one sentence, if round `number` with these `metrics` went wrong."""
    skipped = int(metrics["skipped_steps"])
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if skipped <= schedule.max_skipped * schedule.gradient_steps and not bad:
        return
    what = (
        f"loss or gradient is not finite in {skipped} of {schedule.gradient_steps} gradient steps "
        f"(max_skipped={schedule.max_skipped:g})"
        if skipped
        else f"{', '.join(bad)} is not finite"
    )
    raise Diverged(
        f"training diverged in round {number}: {what}; the last checkpoint is from before. Resume it with smaller "
        "learning rates, on_divergence=rollback, max_grad_norm or warmup_steps, or start again with a shallower actor"
    )


class Rollbacks:
    """Counts how often a run went back to a checkpoint: one that diverges whatever its learning rates ends."""

    def __init__(self) -> None:
        self._last = -1
        self._times = 0

    def count(self, env_steps: int, reason: Diverged) -> None:
        """Note one more return to the checkpoint at `env_steps`; raises Diverged at the one that is too many."""
        self._times = self._times + 1 if env_steps == self._last else 1
        self._last = env_steps
        if self._times > MOST_ROLLBACKS:
            raise Diverged(
                f"gone back {MOST_ROLLBACKS} times to {env_steps:,} env steps: {reason}"
            ) from reason
