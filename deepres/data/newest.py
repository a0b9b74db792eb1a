"""The newest steps alone, judged once a round: what an on-policy method learns from.

The policy that a round begins with is the one that has just acted, so what it thought of its actions need not be
recorded: it is asked again, before the round's first gradient step. Source: GAE is arXiv 1506.02438.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deepres.data.batch import Batch
from deepres.data.relabel import Draw, Sampler
from deepres.data.replay import ReplayBuffer

Judge = Callable[[Batch], tuple[Tensor, Tensor, Tensor]]
"""A batch with next_state -> (log_prob, value, next_value), [B] each: the action's log-density, and the values of state
and next state under the batch's goal, by the networks as they are."""

_JUDGED = 4096  # rows at once


def advantages(delta: Tensor, goes_on: Tensor, decay: float) -> Tensor:
    """A_t = delta_t + decay * goes_on_t * A_{t+1}, with A_T = delta_T: delta [T, N] -> [T, N].

    goes_on: [T - 1, N] bool, whether the step after is of the same trajectory. decay: gamma * lambda.
    """
    result = delta.clone()
    for t in reversed(range(len(delta) - 1)):
        result[t] += torch.where(goes_on[t], decay * result[t + 1], 0.0)
    return result


class NewestSteps(Sampler):
    """The newest `window` steps of every environment under their commanded goals, dealt pass after pass without
    replacement; a pass is an epoch.

        delta_t = r_t + gamma (1 - terminal_t) V(s'_t, g_t) - V(s_t, g_t)

    s' of an episode's last step is the state before the reset, and a time limit is no terminal: there the value goes
    on, though the advantages' sum ends with the trajectory. The newest steps end in value too.

    judge: asked when a round's rows are drawn, that is before its first gradient step. decay: lambda. dense: the
    environment's own reward in place of 1 at the goal. values: whether rows have "value".

    Beside state, action and goal a batch has in `extra`, [B] float32 each: "log_prob", of the action; "advantage";
    "target", advantage + value; and "value", of the state.
    """

    def __init__(
        self, judge: Judge, gamma: float, decay: float, *, dense: bool = False, values: bool = False
    ):
        self.judge, self.gamma, self.decay, self.values = judge, gamma, decay, values
        self._reward = "rewards" if dense else "successes"
        self.columns = ("goals", "next_states", self._reward, "terminals")

    def draw_rows(
        self, ring: ReplayBuffer, need: int, window: int, generator: torch.Generator
    ) -> Iterator[Draw]:
        rows = {name: column.flatten() for name, column in self._judged(ring, ring.newest(window)).items()}
        while need:
            dealt = torch.randperm(len(rows["now"]), generator=generator, device=ring.device)[:need]
            yield {name: column[dealt] for name, column in rows.items()}
            need -= len(dealt)

    def _judged(self, ring: ReplayBuffer, now: Tensor) -> Draw:
        """What the steps at `now` [T, N] are learned with, [T, N] each."""
        told = [self.judge(self._transitions(ring, at)) for at in now.flatten().split(_JUDGED)]
        log_prob, value, after = (
            torch.cat(each).to(ring.device).view_as(now) for each in zip(*told, strict=True)
        )
        reward, terminal = (
            ring.take(name, now.flatten()).view_as(now) for name in (self._reward, "terminals")
        )
        ids = ring.rings["traj_ids"].flatten()[now]
        delta = reward + self.gamma * (1 - terminal) * after - value
        advantage = advantages(delta, ids[1:] == ids[:-1], self.gamma * self.decay)
        judged = {"now": now, "log_prob": log_prob, "advantage": advantage, "target": advantage + value}
        return judged | ({"value": value} if self.values else {})

    def _transitions(self, ring: ReplayBuffer, at: Tensor) -> Batch:
        state, action, goal, after = (
            ring.take(name, at) for name in ("states", "actions", "goals", "next_states")
        )
        return Batch(state, action, goal, after)

    def batch(self, ring: ReplayBuffer, draw: Draw) -> Batch:
        now = draw["now"]
        state, action, goal = (ring.take(name, now) for name in ("states", "actions", "goals"))
        return Batch(state, action, goal, extra={name: t for name, t in draw.items() if name != "now"})
