"""What a round's skipped steps are judged by."""

from __future__ import annotations

import pytest

from deepres import Config
from deepres.training.stability import MOST_ROLLBACKS, Diverged, Rollbacks, check_round


def test_a_round_is_judged_by_its_skipped_steps():
    schedule = Config(gradient_steps=200, max_skipped=0.01).schedule
    check_round({"critic_loss": 1.0, "skipped_steps": 2.0}, schedule, 7)
    with pytest.raises(
        Diverged, match=r"diverged in round 7: loss or gradient is not finite in 3 of 200 gradient steps"
    ) as diverged:
        check_round({"critic_loss": 1.0, "skipped_steps": 3.0}, schedule, 7)
    rollbacks = Rollbacks()
    for _ in range(MOST_ROLLBACKS):
        rollbacks.count(100, diverged.value)
    rollbacks.count(200, diverged.value)  # a newer checkpoint: a new count
    for _ in range(MOST_ROLLBACKS):
        rollbacks.count(100, diverged.value)
    with pytest.raises(Diverged, match=r"gone back 5 times to 100 env steps: training diverged"):
        rollbacks.count(100, diverged.value)
