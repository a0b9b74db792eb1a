"""bench/gpu_check.sh: which tests it runs, what a kill in any step leaves, what it says without a GPU."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from bench import throughput

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.sh"
STEPS = {  # each with words of its command that no other has
    "versions": "import deepres",
    "collect": "--collect-only",
    "smoke": "gpu_smoke.py",
    "tests": "-n 12",
    "micro": "gpu_micro.py",
    "check": "gpu/check.py",
    "memcheck": "--tool memcheck",
    "synccheck": "--tool synccheck",
    "initcheck": "--tool initcheck",
    "racecheck": "--tool racecheck",
}
# A Python that sees a GPU, and a compute-sanitizer: each step leaves a file, and the one that is asked to hangs.
FAKE = """#!/bin/sh
case "$*" in
  *"import torch"*) exit 0 ;;
  *"$HANG"*) echo $$ > "$MARK"; exec sleep 600 ;;
  *"$FAIL"*) exit 3 ;;
  *--collect-only*) echo "tests/one.py: 3"; echo "tests/other.py: 40" ;;
  *gpu_smoke.py*) touch "$OUT/gpu_smoke.json" ;;
  *gpu_micro.py*) touch "$OUT/gpu_micro.json" ;;
  *gpu/check.py*) touch "$OUT/gpu_check.json" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose commands are FAKE; OUT is tmp_path/out."""
    for name in ("python", "compute-sanitizer"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    return os.environ | {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHON": str(tmp_path / "python"),
        "OUT": str(out),
        "MARK": str(tmp_path / "mark"),
        "HANG": "nothing hangs",
        "FAIL": "nothing fails",
    }


def logs(out: Path) -> set[str]:
    with tarfile.open(out / "logs.tar") as tar:
        return {Path(name).stem for name in tar.getnames() if name.endswith(".log")}


def run(machine: dict[str, str], *steps: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *steps], env=machine, capture_output=True, text=True, timeout=100
    )


def asked_for() -> set[str]:
    """The files whose tests the script runs."""
    return set(re.findall(r"tests/[\w/]+\.py", SCRIPT.read_text()))


def test_every_gpu_test_is_among_its_files() -> None:
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py")}
    marked = {f for f in files if re.search(r"(?<![\w])pytest\.mark\.gpu\b", (ROOT / f).read_text())}
    marked.discard(str(Path(__file__).resolve().relative_to(ROOT)))
    assert asked_for() == marked


def test_its_tests_need_nothing_that_its_machine_lacks() -> None:
    files = sorted(asked_for())
    program = (
        "import sys\nfor name in ('deepres._C', 'mujoco', 'tyro'): sys.modules[name] = None\n"
        "import pytest\nsys.exit(pytest.main(['--collect-only', '-qq', '-m', 'gpu', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *files], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout
    assert sorted(re.findall(r"^(tests/[\w/]+\.py): \d+$", done.stdout, re.MULTILINE)) == files


def test_all_steps_fit_ten_minutes() -> None:
    seconds = re.findall(r"^(?:step|gpu|sanitizer) (\d+) (\w+)", SCRIPT.read_text(), re.MULTILINE)
    assert [name for _, name in seconds][: len(STEPS)] == list(STEPS)
    assert sum(int(s) for s, name in seconds if name in STEPS) <= 600
    assert all(int(s) < 600 for s, _ in seconds)


def test_a_whole_run_leaves_results_and_one_file_of_logs(machine) -> None:
    done = run(machine)
    out = Path(machine["OUT"])
    assert done.returncode == 0 and "43 GPU tests collected" in done.stdout
    assert {p.name for p in out.iterdir()} == {
        "logs.tar", "gpu_smoke.json", "gpu_micro.json", "gpu_check.json"
    }  # fmt: skip
    assert logs(out) == set(STEPS)


def test_a_step_that_fails_does_not_keep_the_others_from_running(machine) -> None:
    done = run(machine | {"FAIL": STEPS["tests"]})
    assert done.returncode == 1 and "== tests failed, exit status 3" in done.stdout
    assert logs(Path(machine["OUT"])) == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_in_any_step_leaves_what_was_before(step: str, machine, tmp_path) -> None:
    mark, out = Path(machine["MARK"]), Path(machine["OUT"])
    process = subprocess.Popen(
        ["bash", str(SCRIPT)], env=machine | {"HANG": STEPS[step]}, stdout=subprocess.DEVNULL
    )
    while not mark.exists() or not mark.read_text().strip():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    os.kill(int(mark.read_text()), signal.SIGKILL)
    before = list(STEPS)[: list(STEPS).index(step)]
    assert (out / "running.log").exists()
    assert (logs(out) if before else set()) == set(before)
    for name, file in (("smoke", "gpu_smoke"), ("micro", "gpu_micro"), ("check", "gpu_check")):
        assert (out / f"{file}.json").exists() == (name in before)


def test_only_the_steps_asked_for(machine) -> None:
    done = run(machine, "smoke", "racecheck")
    assert re.findall("== (.*)", done.stdout) == ["smoke", "racecheck"]
    assert logs(Path(machine["OUT"])) == {"smoke", "racecheck"}
    done = run(machine, "smok")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("got smok\n")


def test_without_a_gpu_a_sentence_for_each_step(machine, tmp_path) -> None:
    fake = FAKE.replace("exit 0 ;;", 'echo "PyTorch sees no CUDA device"; exit 0 ;;', 1)
    (tmp_path / "python").write_text(fake)
    done = run(machine)
    said = [line for line in done.stdout.splitlines() if line.startswith("==")]
    assert said[:2] == ["== versions", "== collect"] and done.returncode == 2
    assert said[2:] == [f"== {step}: not run, PyTorch sees no CUDA device" for step in list(STEPS)[2:]]
    assert logs(Path(machine["OUT"])) == {"versions", "collect"}


def test_throughput_takes_the_arguments_of_every_step() -> None:
    script = SCRIPT.read_text().replace("\\\n", " ")
    lines = re.findall(r'^gpu \d+ (\w+) "\$python" bench/throughput\.py (.*)$', script, re.MULTILINE)
    assert [name for name, _ in lines] == ["throughput", "rivals", "losses"]
    for _, words in lines:
        arguments = throughput.parse(
            [w for w in shlex.split(words.replace("--device cuda", "")) if w != "$out"][:-1]
        )
        assert set(arguments.op) <= {"residual_stack", "gradient_step", "info_nce"}
