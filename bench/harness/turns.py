"""Timing that can be believed: warm, interleaved, with spread.

Contestants take turns, a turn being one stretch of calls of one of them, warmed up by itself before the clock
starts, so that caches, clock rate and threads are its own. Rounds of turns follow each other with the order
rotated: what disturbs the machine for a while disturbs everybody.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.harness.workers import Failed

WARM_S = 0.02
TIMED_S = 0.06
TOGETHER_S = 2e-3  # on a GPU
SLOW_CALL_S = 0.5  # beyond this a call outlives whatever a warm-up would have warmed
QUIET_S = 0.01  # between turns: the last one's threads stop spinning
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


def turn(
    run: Callable[[], Any], wait: Callable[[], None], call_s: float, together: float = 0.0
) -> list[float]:
    """Seconds of each call of `run` in one turn. wait: returns when the device is done; call_s: a guess.

    together: calls are waited for by so many seconds' worth, and each is given their mean. On a GPU a call of
    microseconds would otherwise be launched and waited for longer than it runs.
    """
    calls = max(1, int(together / call_s)) if call_s > 0 else 1
    deadline = time.perf_counter() + WARM_S
    while call_s < SLOW_CALL_S:
        run()
        wait()
        if time.perf_counter() >= deadline:
            break
    seconds: list[float] = []
    while not seconds or calls * (sum(seconds) + seconds[-1]) < TIMED_S:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def clocked(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rounds_for(call_s: Sequence[float], budget_s: float) -> int:
    """How many rounds fit the budget, given one call's cost for each contestant."""
    cost = sum(c if c >= SLOW_CALL_S else max(2 * c, WARM_S + TIMED_S) for c in call_s)
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, round(budget_s / max(cost, 1e-9))))


def interleave(
    turns: Mapping[str, Callable[[], Any]],
    rounds: int,
    budget_s: float = math.inf,
    leave: Callable[[str, Failed], None] | None = None,
) -> Iterator[tuple[str, int, Any]]:
    """Yields (contestant, round, what its turn returned) until every one has had `rounds` turns.

    A machine that has become slow meanwhile gets fewer: three, once thrice the budget is spent. A contestant whose
    turn raises Failed is out from then on and told to `leave`; without one the failure is raised.
    """
    names = list(turns)
    out: set[str] = set()
    start = time.perf_counter()
    for r in range(rounds):
        if r >= LEAST_ROUNDS and time.perf_counter() - start > 3 * budget_s:
            return
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            if name in out:
                continue
            time.sleep(QUIET_S)
            try:
                result = turns[name]()
            except Failed as failure:
                if leave is None:
                    raise
                out.add(name)
                leave(name, failure)
                continue
            yield name, r, result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile (linear between neighbours), least, and how many."""
    ordered = sorted(values)

    def quantile(q: float) -> float:
        at = q * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    return {
        "median": statistics.median(ordered),
        "p10": quantile(0.1),
        "p90": quantile(0.9),
        "min": ordered[0],
        "runs": len(ordered),
    }


def ratio(baseline: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times faster than the baseline, round by round: both had the same neighbours then.

    Where they did not run together, on a GPU, over as many rounds as both had.
    """
    return spread([statistics.median(b) / statistics.median(o) for b, o in zip(baseline, own, strict=False)])
