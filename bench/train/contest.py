"""All contestants of bench/train.py at one task and depth, in turns."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from bench.harness import memory, turns
from bench.harness.contestants import Case
from bench.harness.results import Row
from bench.harness.workers import Crew, Failed, Worker
from bench.ops.registry import step_memory, step_parameters
from bench.train import report
from bench.train.race import LABELS, Race

ROUNDS = 3  # of collecting and learning, for each contestant; one where a step takes SLOW_S
SLOW_S = 2.0
TURN_S = 2.0  # of the slowest contestant
ROUND_S = 1.0  # of each half of a round
# as the deepres command sets it for itself: workers sleep after their work, so that XLA's find a core
# (docs/decisions.md); rivals keep their own defaults
VARIABLES = {"OMP_WAIT_POLICY": "passive"}


class Contest:
    """One case: `run` gives its rows."""

    def __init__(self, race: Race, arguments: argparse.Namespace, crew: Crew):
        self.race, self.arguments, self.crew = race, arguments, crew
        self.rows: dict[str, Row] = {
            name: {"env": race.env, "depth": race.depth, "contestant": name, "label": LABELS[name]}
            | {"status": "measured", "reason": None}
            for name in arguments.contestant
        }
        self.built: dict[str, Row] = {}
        self.seconds: dict[str, list[list[float]]] = {}
        self.losses: dict[str, list[float]] = {}
        self.rounds: dict[str, list[dict[str, float]]] = {}

    def run(self) -> list[Row]:
        """The case's rows."""
        self._say("recording batches")
        self._ask("deepres", "record", self.race, min(self.arguments.steps, 200))
        together = self._fits_together()
        groups = [list(self.rows)] if together else [[name] for name in self.rows]
        for group in groups:
            for name in group:
                self._attempt(name, self._build)
            self._steps([name for name in group if name in self.built])
            self._rounds([name for name in group if name in self.built])
            for name in group:
                if name in self.built:
                    self._attempt(name, self._finish)
        return report.finished(self.rows, self.seconds, self.losses, self.rounds, interleaved=together)

    def _ask(self, name: str, question: str, *arguments: Any) -> Any:
        worker: Worker = self.crew.get(name, VARIABLES if name.startswith("deepres") else {})
        return worker.ask(question, *arguments, limit_s=self.arguments.limit)

    def _attempt(self, name: str, step: Callable[[str], None]) -> None:
        """`step(name)`, or the reason why the contestant is out."""
        try:
            step(name)
        except Failed as failure:
            self._leave(name, failure)

    def _leave(self, name: str, failure: Failed) -> None:
        self.rows[name] |= {"status": failure.status, "reason": failure.reason}
        self.built.pop(name, None)

    def _build(self, name: str) -> None:
        self._say(f"{name} gets ready")
        built = self._ask(name, "build", self.race, name)
        self.built[name] = built
        self.losses[name], self.seconds[name] = built.pop("losses"), []
        self.rows[name] |= {"compile_s": max(0.0, built["first_s"] - built["call_s"])}

    def _steps(self, names: list[str]) -> None:
        """Every contestant through the same recorded steps, a stretch at a time."""
        if not names:
            return
        calls = [self.built[name]["call_s"] for name in names]
        budget = self.arguments.seconds * len(names) / len(self.rows)
        last = max(4, min(self.arguments.steps, round(budget / sum(calls))))
        stretch = max(2, min(25, round(TURN_S / max(calls)) + 1))
        starts = range(2, last, stretch)  # `build` took the first two steps

        def asker(name: str) -> Callable[[], tuple[list[float], list[float]]]:
            first = iter(starts)

            def ask() -> tuple[list[float], list[float]]:
                begin = next(first)
                return self._ask(name, "steps", begin, min(begin + stretch, last))

            return ask

        askers = {name: asker(name) for name in names}
        for name, r, (seconds, losses) in turns.interleave(askers, len(starts), leave=self._leave):
            self._say(f"stretch {r + 1} of {len(starts)}, {name}")
            warm = (
                1 if seconds[0] < turns.SLOW_CALL_S and len(seconds) > 1 else 0
            )  # of its own caches and clock
            self.seconds[name].append(seconds[warm:])
            self.losses[name] += losses

    def _rounds(self, names: list[str]) -> None:
        """Rounds of collecting and learning on each contestant's own data, in turns."""
        count = 1 if any(self.built[name]["call_s"] > SLOW_S for name in names) else ROUNDS

        def asker(name: str) -> Callable[[], dict[str, float]]:
            call = self.built[name]["call_s"]
            gradient_steps = max(1, min(20, round(ROUND_S / call)))
            unroll = max(4, min(62, round(ROUND_S / (0.1 * call))))  # acting takes about a tenth of a step

            def ask() -> dict[str, float]:
                if name not in self.rounds:  # what the first one compiles is no round's
                    self._ask(name, "round", unroll, 0)
                return self._ask(name, "round", unroll, gradient_steps)

            return ask

        askers = {name: asker(name) for name in names}
        for name, r, figures in turns.interleave(askers, count, leave=self._leave):
            self._say(f"round {r + 1} of {count}, {name}")
            self.rounds.setdefault(name, []).append(figures)

    def _finish(self, name: str) -> None:
        call = self.built[name]["call_s"]
        # few lengths, as an environment is compiled for its episode's
        eval_steps = 50 if call < 0.5 else 10 if call < SLOW_S else 2
        self.rows[name] |= {
            "overheads": self._ask(name, "overheads", eval_steps),
            "split": self._ask(name, "split"),
        }
        self._ask(name, "drop")

    def _fits_together(self) -> bool:
        """Whether all contestants' networks and the greediest one's step fit the free memory at once."""
        race = self.race
        case = Case("gradient_step", "step", race.depth, race.batch, race.width, "fp32", "cpu")
        # weights, gradients and moments of each, twice for safety
        idle = 2 * 4 * 4 * step_parameters(case) * len(self.rows)
        free = memory.machine_bytes("MemAvailable")
        return free is None or idle + step_memory(case) < 0.8 * free

    def _say(self, text: str) -> None:
        """A line that replaces the last one on a terminal; nothing elsewhere."""
        if sys.stderr.isatty():
            line = f"{self.race.env}, depth {self.race.depth}: {text}"
            print(
                f"\r\033[K{line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]}",
                end="",
                file=sys.stderr,
            )
