"""Runs that are ended at any moment, before their first checkpoint too, and resumed."""

from __future__ import annotations

import subprocess
import sys

from helpers.tiny_runs import PROGRAMS, environ


def test_whenever_a_run_is_ended_it_goes_on_to_the_undisturbed_one(tmp_path):
    """Moments are drawn from the start of a process that has imported everything to a run's end."""
    keeps = {
        "DEEPRES_COMPILE_CACHE": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "killed.py"), str(tmp_path / "runs"), "4", "0", "short"],
        capture_output=True, text=True, env={**environ(), **keeps},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = (tmp_path / "runs" / "told.txt").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["SIGTERM", "SIGKILL"] * 2
    assert all(line.endswith("equal to undisturbed") for line in told)
