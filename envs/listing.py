"""What `deepres envs` lists: every task with its sizes, thresholds and time limit."""

from __future__ import annotations

from dataclasses import dataclass

from deepres.envs import EPISODE_LENGTH, make_task, names
from deepres.envs.registry import find


@dataclass(frozen=True)
class Listed:
    """One task. thresholds: metres, None where the paper has none. episode_length: control periods of dt s.

    own: empty for the package's tasks, "own" for a user's, "own, gymnasium" for one of gymnasium's.
    """

    name: str
    state_dim: int
    goal_dim: int
    action_dim: int
    threshold: float
    threshold_easy: float | None
    threshold_hard: float | None
    episode_length: int
    dt: float
    own: str

    def cells(self) -> tuple[str, ...]:
        """This row under COLUMNS."""
        thresholds = (self.threshold, self.threshold_easy, self.threshold_hard)
        return (
            self.name,
            *(str(size) for size in (self.state_dim, self.goal_dim, self.action_dim)),
            *("-" if threshold is None else f"{threshold:g}" for threshold in thresholds),
            str(self.episode_length),
            f"{self.dt:.3g}",
            self.own,
        )


# sizes; metres; control periods; seconds to a period
COLUMNS = ("task", "state", "goal", "act.", "success", "easy", "hard", "steps", "dt", "")


def rows() -> list[Listed]:
    """Every registered task, sorted by name."""
    return [_listed(name) for name in names()]


def _listed(name: str) -> Listed:
    task, entry = make_task(name), find(name)
    own = "" if not entry.own else "own" if entry.gymnasium is None else "own, gymnasium"
    return Listed(
        name, task.state_dim, task.goal_dim, task.action_dim,
        task.threshold, task.threshold_easy, task.threshold_hard, EPISODE_LENGTH, task.dt,
        own,
    )  # fmt: skip
