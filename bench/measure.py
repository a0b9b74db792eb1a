"""Runs the cases: builds each contestant in its own process, checks it, weighs it, times it in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench import environment, timing
from bench.registry import BASELINE, CEILING, OPS, SINGLE, Case, Implementation
from bench.worker import Crew, Failed, Worker

Row = dict[str, Any]
RATE_DEPTH = 16  # layers' worth of products for the machine's own rate: weights from cache, as in a stack


@dataclass(frozen=True)
class Settings:
    """The same for every case. budget_s: timed seconds aimed at; limit_s: longest wait for an answer."""

    batch: int
    width: int
    device: str
    budget_s: float
    limit_s: float


class Contest:
    """The contestants of one op in one precision: checked once, then timed case by case."""

    def __init__(self, op: str, precision: str, settings: Settings, crew: Crew, say: Callable[[str], None]):
        self.op, self.precision, self.settings, self.crew, self.say = op, precision, settings, crew, say
        self.workers: dict[str, Worker] = {}
        self.reasons: dict[str, tuple[str, str]] = {}  # contestant -> (status, why it is not timed)
        self.checks: list[Row] = []

    def case(self, depth: int, mode: str) -> Case:
        s = self.settings
        return Case(self.op, mode, depth, s.batch, s.width, self.precision, s.device)

    def enter(self, names: list[str], *, asked_for: bool = True) -> None:
        """Starts the contestants at once, then lets each prove its results.

        asked_for: keep those that are unavailable here, with their reasons.
        """
        for name in names:
            self.workers[name] = self.crew.get(name, self._entry(name).environment)
        order = list(OPS[self.op].implementations)
        self.workers = dict(sorted(self.workers.items(), key=lambda item: order.index(item[0])))
        for name in names:
            if not OPS[self.op].truth or name == CEILING:
                continue
            self.say(f"checking {self._entry(name).label} against float64")
            outcome: Row = {"worst_error": None, "served_by": ""}
            try:
                case = self.case(8, list(OPS[self.op].modes)[-1])
                outcome = self.workers[name].ask(
                    "check", case, self._entry(name), limit_s=self.settings.limit_s
                )
            except Failed as failure:
                if failure.status == "unavailable" and not asked_for:
                    del self.workers[name]
                    continue
                self.reasons[name] = (failure.status, failure.reason)
            self.checks.append(
                {"op": self.op, "precision": self.precision, "implementation": name, **outcome}
            )

    def served_by(self, name: str) -> str:
        return next((check["served_by"] for check in self.checks if check["implementation"] == name), "")

    def measure(self, case: Case) -> Iterator[Row]:
        """A row for every contestant of the case, timed or with the reason why not."""
        op = OPS[case.op]
        reasons = dict(self.reasons)
        short = _too_large(case, len(self.workers) - len(reasons))
        built: dict[str, Row] = {}
        for name, worker in self.workers.items():
            if name in reasons:
                continue
            if short:
                reasons[name] = ("failed", short)
                continue
            self.say(f"{_words(case)}: building {self._entry(name).label}")
            try:
                limit_s = self.settings.limit_s
                facts = worker.ask("build", case, self._entry(name), limit_s=limit_s)
                peak = None if name == CEILING else worker.ask("memory", case, limit_s=limit_s)
                built[name] = facts | {"peak_bytes": peak}
            except Failed as failure:
                self._leave(name, failure, reasons)
        turns = self._time(case, built, reasons)
        base, single, ceiling = turns.get(BASELINE), turns.get(SINGLE), turns.get(CEILING)
        for name in self.workers:
            row = _blank_row(case, name)
            if name not in turns:
                yield row | dict(zip(("status", "reason"), reasons[name], strict=True))
                continue
            seconds = [s for turn in turns[name] for s in turn]
            median = statistics.median(seconds)
            yield row | {
                "served_by": built[name]["served_by"],
                "ms": {k: v if k == "runs" else v * 1e3 for k, v in timing.spread(seconds).items()},
                "speed_up": timing.ratio(base, turns[name]) if base else None,
                "speed_up_fp32": timing.ratio(single, turns[name]) if single else None,
                "share_of_products": timing.ratio(ceiling, turns[name])["median"] if ceiling else None,
                "gflops_per_s": op.flops(case) / median / 1e9,
                "gbytes_per_s": op.bytes(case) / median / 1e9,
                "peak_bytes": built[name]["peak_bytes"],
                "compile_s": built[name]["compile_s"],
            }
        for name in built:
            if not self.workers[name].dead:
                self.workers[name].ask("drop")

    def _time(
        self, case: Case, built: dict[str, Row], reasons: dict[str, tuple[str, str]]
    ) -> dict[str, list[list[float]]]:
        """Seconds of every call, turn by turn; a contestant that breaks leaves, the others go on."""
        if not built:
            return {}
        rounds = timing.rounds_for([facts["call_s"] for facts in built.values()], self.settings.budget_s)
        turns: dict[str, list[list[float]]] = {name: [] for name in built}

        def asker(name: str) -> Callable[[], list[float]]:
            def ask() -> list[float]:
                if name not in turns:
                    return []
                try:
                    return self.workers[name].ask("turn", limit_s=self.settings.limit_s)
                except Failed as failure:
                    self._leave(name, failure, reasons)
                    del turns[name]
                    return []

            return ask

        askers = {name: asker(name) for name in built}
        for name, r, seconds in timing.interleave(askers, rounds, self.settings.budget_s):
            if name in turns:
                turns[name].append(seconds)
            self.say(f"{_words(case)}: timing, round {r + 1} of {rounds}")
        return turns

    def _leave(self, name: str, failure: Failed, reasons: dict[str, tuple[str, str]]) -> None:
        """Out of this case; out of all the rest too when its process is gone."""
        reasons[name] = (failure.status, failure.reason)
        if failure.dead:
            self.reasons[name] = reasons[name]

    def _entry(self, name: str) -> Implementation:
        return OPS[self.op].implementations[name]


def _words(case: Case) -> str:
    return f"{case.op} {case.precision}, depth {case.depth}, {OPS[case.op].modes[case.mode]}"


def _blank_row(case: Case, name: str) -> Row:
    op = OPS[case.op]
    return {
        "op": case.op,
        "mode": case.mode,
        "depth": case.depth,
        "batch": case.batch,
        "width": case.width,
        "precision": case.precision,
        "implementation": name,
        "label": op.implementations[name].label,
        "status": "measured",
        "reason": None,
        "served_by": "",
        "flops": op.flops(case),
        "bytes": op.bytes(case),
        "gradient_bytes": op.gradients(case),
        "ms": None,
        "speed_up": None,
        "speed_up_fp32": None,
        "share_of_products": None,
        "gflops_per_s": None,
        "gbytes_per_s": None,
        "peak_bytes": None,
        "compile_s": None,
    }


def _too_large(case: Case, contestants: int) -> str | None:
    """Why the case would not fit in memory, parameters held by each contestant and one of them running."""
    free = environment.memory_bytes("MemAvailable") if case.device == "cpu" else None
    idle = OPS[case.op].resident(case) * max(0, contestants - 1)
    needed = OPS[case.op].memory(case) + idle
    if free is None or needed < 0.9 * free:
        return None
    gib = 2**30
    return f"needs about {needed / gib:.1f} GiB, {free / gib:.1f} are free; use a smaller depth or batch"
