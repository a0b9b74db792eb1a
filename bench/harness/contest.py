"""Runs the cases: builds each contestant in its own process, checks it, weighs it, times it in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.harness import memory, turns
from bench.harness.contestants import BASELINE, CEILING, SINGLE, SLOW_TO_BUILD, Case, Implementation, Op
from bench.harness.results import Row
from bench.harness.workers import Crew, Failed, Worker

DESK = "bench.harness.desk:Desk"


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

    def __init__(self, op: Op, precision: str, settings: Settings, crew: Crew, say: Callable[[str], None]):
        self.op, self.precision, self.settings, self.crew, self.say = op, precision, settings, crew, say
        self.workers: dict[str, Worker] = {}
        self.reasons: dict[str, tuple[str, str]] = {}  # contestant -> (status, why it is not timed)
        self.checks: list[Row] = []

    def case(self, size: int, mode: str) -> Case:
        """The case of `size` along the op's axis."""
        s = self.settings
        along_batch = self.op.axis == "batch"
        depth, batch = (1, size) if along_batch else (size, s.batch)
        return Case(self.op.name, mode, depth, batch, s.width, self.precision, s.device)

    def enter(self, names: list[str], *, asked_for: bool = True) -> None:
        """Starts the contestants at once, then lets each prove its results.

        asked_for: keep those that are unavailable here, with their reasons.
        """
        for name in names:
            self.workers[name] = self.crew.get(name)
        order = list(self.op.implementations)
        self.workers = dict(sorted(self.workers.items(), key=lambda item: order.index(item[0])))
        for name in names:
            if not self.op.truth or name == CEILING:
                continue
            self.say(f"checking {self._entry(name).label} against float64")
            outcome: Row = {"worst_error": None, "served_by": ""}
            try:
                small = self.case(96 if self.op.axis == "batch" else 8, list(self.op.modes)[-1])
                limit_s = self.settings.limit_s
                outcome = self.workers[name].ask(
                    "check", small, self._entry(name), self.op.truth, limit_s=limit_s
                )
            except Failed as failure:
                if failure.status == "unavailable" and not asked_for:
                    del self.workers[name]
                    continue
                self.reasons[name] = (failure.status, failure.reason)
            self.checks.append(
                {"op": self.op.name, "precision": self.precision, "implementation": name, **outcome}
            )

    def served_by(self, name: str) -> str:
        return next((check["served_by"] for check in self.checks if check["implementation"] == name), "")

    def measure(self, case: Case) -> Iterator[list[Row]]:
        """The rows of the case so far, timed or with the reason why not; the last has one for every contestant.

        On a CPU all are built, then timed in turns: it has neighbours. On a GPU one is built, timed and gone before the
        next, and those that take minutes to build come last.
        """
        reasons = dict(self.reasons)
        built: dict[str, Row] = {}
        seconds: dict[str, list[list[float]]] = {}
        groups = [list(self.workers)]
        if case.device == "cuda":
            slow = {name for name in self.workers if self._entry(name).option in SLOW_TO_BUILD}
            groups = [[name] for name in sorted(self.workers, key=lambda name: name in slow)]
        for group in groups:
            fresh = {name: facts for name in group if (facts := self._build(case, name, reasons)) is not None}
            built |= fresh
            seconds |= self._time(case, fresh, reasons)
            for name in fresh:
                if not self.workers[name].dead:
                    self.workers[name].ask("drop")
            yield [
                self._row(case, name, built, seconds, reasons)
                for name in self.workers
                if name in reasons or name in seconds
            ]

    def _build(self, case: Case, name: str, reasons: dict[str, tuple[str, str]]) -> Row | None:
        """What is known of the contestant once it is ready to be timed; None, and the reason, where it is not."""
        if name in reasons:
            return None
        if short := self._too_large(case, name, len(self.workers) - len(reasons)):
            reasons[name] = ("failed", short)
            return None
        self.say(f"{self._words(case)}: building {self._entry(name).label}")
        worker, limit_s = self.workers[name], self.settings.limit_s
        try:
            facts = worker.ask("build", case, self._entry(name), limit_s=limit_s)
            peak = None if name == CEILING else worker.ask("memory", case, limit_s=limit_s)
        except Failed as failure:
            self._leave(name, failure, reasons)
            return None
        return facts | {"peak_bytes": peak}

    def _row(
        self,
        case: Case,
        name: str,
        built: dict[str, Row],
        seconds: dict[str, list[list[float]]],
        reasons: dict[str, tuple[str, str]],
    ) -> Row:
        row = self._blank_row(case, name)
        if name not in seconds:
            return row | dict(zip(("status", "reason"), reasons[name], strict=True))
        own = seconds[name]
        base, single, ceiling = (seconds.get(other) for other in (BASELINE, SINGLE, CEILING))
        median = statistics.median(s for turn in own for s in turn)
        return row | {
            "served_by": built[name]["served_by"],
            "ms": turns.spread([s * 1e3 for turn in own for s in turn]),
            "speed_up": turns.ratio(base, own) if base else None,
            "speed_up_fp32": turns.ratio(single, own) if single else None,
            "speed_up_over": {n: turns.ratio(other, own)["median"] for n, other in seconds.items()},
            "share_of_products": turns.ratio(ceiling, own)["median"] if ceiling else None,
            "gflops_per_s": self.op.flops(case) / median / 1e9,
            "gbytes_per_s": self.op.bytes(case) / median / 1e9,
            "peak_bytes": built[name]["peak_bytes"],
            "compile_s": built[name]["compile_s"],
        }

    def _time(
        self, case: Case, built: dict[str, Row], reasons: dict[str, tuple[str, str]]
    ) -> dict[str, list[list[float]]]:
        """Seconds of every call, turn by turn; a contestant that breaks leaves, the others go on."""
        if not built:
            return {}
        rounds = turns.rounds_for([facts["call_s"] for facts in built.values()], self.settings.budget_s)
        seconds: dict[str, list[list[float]]] = {name: [] for name in built}

        def leave(name: str, failure: Failed) -> None:
            self._leave(name, failure, reasons)
            del seconds[name]

        def asker(worker: Worker) -> Callable[[], list[float]]:
            return lambda: worker.ask("turn", limit_s=self.settings.limit_s)

        askers = {name: asker(self.workers[name]) for name in built}
        for name, r, turn in turns.interleave(askers, rounds, self.settings.budget_s, leave):
            seconds[name].append(turn)
            self.say(f"{self._words(case)}: timing, round {r + 1} of {rounds}")
        return seconds

    def _leave(self, name: str, failure: Failed, reasons: dict[str, tuple[str, str]]) -> None:
        """Out of this case; out of all the rest too when its process is gone."""
        reasons[name] = (failure.status, failure.reason)
        if failure.dead:
            self.reasons[name] = reasons[name]

    def _entry(self, name: str) -> Implementation:
        return self.op.implementations[name]

    def _words(self, case: Case) -> str:
        size = f"{self.op.axis} {getattr(case, self.op.axis)}"
        return f"{case.op} {case.precision}, {size}, {self.op.modes[case.mode]}"

    def _too_large(self, case: Case, name: str, contestants: int) -> str | None:
        """Why the contestant would not fit in memory, parameters held by all others."""
        free = memory.machine_bytes("MemAvailable") if case.device == "cpu" else None
        own = self._entry(name).memory or self.op.memory
        needed = own(case) + self.op.resident(case) * max(0, contestants - 1)
        if free is None or needed < 0.9 * free:
            return None
        gib = 2**30
        return f"needs about {needed / gib:.1f} GiB, {free / gib:.1f} are free; use a smaller depth or batch"

    def _blank_row(self, case: Case, name: str) -> Row:
        op = self.op
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
            "speed_up_over": None,
            "share_of_products": None,
            "gflops_per_s": None,
            "gbytes_per_s": None,
            "peak_bytes": None,
            "compile_s": None,
        }
