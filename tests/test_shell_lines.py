"""The README's shell lines are run, one after another in one folder, as a reader would type them.

Only sizes are small, and a study is stopped once it trains. Installing is not repeated: what runs this was installed by
the same lines.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepres.commands.main import main
from deepres.report import show
from helpers.tiny_runs import ROOT, SIZES, environ, torchrun, wait_for

SMALL = {name: value for name, value in SIZES.items() if name not in ("env", "depth", "actor_depth")}
OFFLINE = {name: SMALL[name] for name in ("batch_size", "width", "gradient_steps", "eval_envs")} | {
    "total_steps": 32
}
INSTEAD = {"depth=4,16,64 seed=0,1,2": "depth=4 seed=0", "--heal 1000": "--heal 5"}
MORE = {"distill": "--steps 8", "data": "--episodes 4", "analyse": "--states 50", "prune": "--states 50"}


def lines() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^ {4}((?:torchrun .*)?deepres .*)$", readme, re.M)


def small(line: str) -> list[str]:
    """The line's words, with sizes of seconds where it names none."""
    for written, instead in INSTEAD.items():
        line = line.replace(written, instead)
    words = shlex.split(line, comments=True)
    trains = {"train", "sweep"} & set(words) and "--resume" not in words
    for name, value in (OFFLINE if "--data" in words else SMALL).items() if trains else ():
        option = f"--{name.replace('_', '-')}"
        words += [] if option in words else [option, str(value)]
    return words + shlex.split(MORE.get(words[1], ""))


@pytest.mark.usefixtures("forgotten")
def test_every_line_of_the_readme_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(show, "_LONGEST", 1.0)  # seconds of a video
    ran = lines()
    assert len(ran) == 20
    for line in ran:
        words = small(line)
        if words[0] == "torchrun":
            process = torchrun(2, *words[3:])
            told, _ = process.communicate(timeout=200)
            assert process.returncode == 0, f"{line}\n{told}"
        elif words[1] == "experiment":
            stopped_once_it_trains(words)
        else:
            try:
                main(words[1:])
            except SystemExit as stop:
                pytest.fail(f"{line}: status {stop.code}, {capsys.readouterr().err}")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    trained = {"ant-crl-d64-s0", "ant-crl-d64-s0-2", "point_u_maze-sac-d64-s0", "humanoid-crl-d64-s1"}
    trained |= {"ant-distill-d8-s0", "point_big_maze-crl-d64-s0", "ball_model-sac-d64-s0"}
    assert {f"runs/{name}/evaluations.csv" for name in trained} <= left
    seen = {"policy.mp4", "paths.png", "blocks.csv"}
    assert {f"runs/ant-crl-d64-s0/{name}" for name in seen} | {"ant-crl-d64-s0.onnx", "compare.png"} <= left
    others = {"sweep-ant_u4_maze/depth.png", "ant-p16/pruned.json", "ant-d256/config.json"}
    assert {f"runs/{name}" for name in others} <= left


def stopped_once_it_trains(words: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *words], env=environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    trials = Path("runs/studies/depth/trials")
    wait_for(process, lambda: len(list(trials.glob("*/config.json"))) == 2, pause=0.1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in told, told
