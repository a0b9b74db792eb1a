"""What a worker process of bench/throughput.py can be asked."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.harness import cuda_graph, environment, memory, turns
from bench.harness.contestants import Case, Implementation, Prepared
from bench.harness.workers import Unavailable, named_function


class Desk:
    """In this order: `check`, then for each case `build`, `memory`, `turn` again and again, `drop`."""

    def __init__(self, threads: int | None):
        self.threads = threads
        self.prepared: Prepared | None = None
        self.timed: Callable[[], Any] | None = None
        self.call_s = self.together_s = 0.0

    def best_device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def describe(self, device: str) -> dict[str, Any]:
        self._settle(device)
        return environment.describe(device)

    def check(self, case: Case, entry: Implementation, truth: str) -> dict[str, Any]:
        """Runs a small size against float64: the worst error, an AssertionError if too large to be timed."""
        from deepres.testing import worst_error

        small = replace(case, depth=8, batch=min(case.batch, 96))
        self._settle(case.device)
        prepared = named_function(entry.build)(small, entry.variant)
        exact, plain = named_function(truth)(small)
        got = prepared.named(prepared.run())
        assert set(got) == set(exact), f"gives {sorted(got)}, wanted {sorted(exact)}"
        worst = 0.0
        for name, true in exact.items():
            ours, theirs = worst_error(got[name], true), worst_error(plain[name], true)
            assert ours <= entry.worse * theirs + entry.hair, (
                f"{name} is off by {ours:.1e} of float64's largest, plain PyTorch by {theirs:.1e}"
            )
            worst = max(worst, ours)
        return {"worst_error": worst, "served_by": prepared.served_by}

    def build(self, case: Case, entry: Implementation) -> dict[str, Any]:
        """Gets ready and runs it warm; one warm call's seconds, and what the first call took beyond that."""
        self.drop()
        self._settle(case.device)
        self.prepared = prepared = named_function(entry.build)(case, entry.variant)
        first = turns.clocked(lambda: self._call(prepared.run))
        self.timed = prepared.timed or prepared.run
        self.together_s = turns.TOGETHER_S if case.device == "cuda" else 0.0
        if case.device == "cuda":
            if prepared.timed is None:
                self.timed = cuda_graph.captured(prepared.run)
            for _ in range(cuda_graph.WARM_CALLS + 1):  # a learner captures its step by itself, after as many
                self._call(self.timed)
        self.call_s = turns.clocked(lambda: self._call(self.timed))
        if self.call_s < turns.SLOW_CALL_S:
            self.call_s = min(self.call_s, turns.clocked(lambda: self._call(self.timed)))
        return {
            "compile_s": max(0.0, first - self.call_s),
            "call_s": self.call_s,
            "served_by": prepared.served_by,
        }

    def memory(self, case: Case) -> int | None:
        """Peak bytes of one call above parameters and inputs (a graph holds its own all the time: it is not asked)."""
        assert self.prepared is not None
        run = self.prepared.run
        return memory.peak_bytes(lambda: self._call(run), case.device)

    def turn(self) -> list[float]:
        assert self.prepared is not None and self.timed is not None
        return turns.turn(self.timed, self.prepared.wait, self.call_s, self.together_s)

    def drop(self) -> None:
        self.prepared = self.timed = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # the next contestant's process needs it

    def _call(self, run: Callable[[], Any] | None) -> Any:
        assert self.prepared is not None and run is not None
        result = run()
        self.prepared.wait()
        return result

    def _settle(self, device: str) -> None:
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if device == "cuda" and not torch.cuda.is_available():
            raise Unavailable("PyTorch sees no GPU here; pass --device cpu")
