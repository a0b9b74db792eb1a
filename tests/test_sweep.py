"""A sweep on real physics, in real processes: killed, asked for again, and complete."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from deepres import checkpoint as checkpoints
from deepres.compare import read_run
from deepres.config import Config
from deepres.sweep import sweep

pytest.importorskip("mujoco.mjx")

ROOT = Path(__file__).resolve().parent.parent
TINY = Config(
    env="point_u_maze", num_envs=4, episode_length=25, width=32, feature_dim=8, batch_size=16, unroll_length=10,
    gradient_steps=4, buffer_steps=60, min_buffer_steps=20, eval_envs=4, eval_every=100, checkpoint_every=1,
    total_steps=400,
)  # fmt: skip


@pytest.fixture
def in_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_killed_sweep_goes_on_where_it_was(tmp_path, in_checkout, capsys):
    folder, options = tmp_path / "sweep", tmp_path / "options.json"
    options.write_text(replace(TINY, total_steps=1_000_000).to_json())  # the first run never ends by itself
    command = [
        "sweep",
        "--config-file",
        str(options),
        "--depths",
        "4",
        "8",
        "--seeds",
        "3",
        "--out",
        str(folder),
    ]
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "deepres", *command])
    deadline = time.monotonic() + 120
    while not checkpoints.steps(folder / "d4-s3" / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    saved = checkpoints.steps(folder / "d4-s3" / "checkpoints")[-1]
    enough = replace(TINY, total_steps=int(saved) + 1_000)  # the killed sweep's run may have saved once more

    result = sweep(enough, [4, 8], [3], folder)
    said = capsys.readouterr().out
    assert not result.failed and not result.interrupted and all(cell.finished for cell in result.cells)
    assert "d4-s3: resumed" in said and "d8-s3: started" in said
    assert [read_run(cell.folder).config.critic_depth for cell in result.cells] == [4, 8]
    assert "score against depth" in said and (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    steps = [int(row["env_steps"]) for row in read_run(folder / "d4-s3").rounds]
    assert steps == sorted(set(steps))  # resumed, not begun again
    assert json.loads((folder / "sweep.json").read_text())["seeds"] == [3]

    assert sweep(enough, [4, 8], [3], folder).failed == []
    assert capsys.readouterr().out.count("finished already") == 2


def test_a_run_that_fails_is_told_with_its_sentence(tmp_path, in_checkout, capsys):
    folder = tmp_path / "sweep"
    result = sweep(replace(TINY, env="mars"), [4], [0], folder)
    assert result.failed == ["d4-s0"] and not any(cell.finished for cell in result.cells)
    said = capsys.readouterr().out
    assert "d4-s0: failed: deepres: env must be one of" in said and str(folder / "d4-s0.log") in said


def test_grids_that_cannot_be_get_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="depths must be different whole numbers"):
        sweep(TINY, [4, 4], [0], tmp_path / "a")
    with pytest.raises(ValueError, match="critic_depth must be a multiple"):
        sweep(TINY, [6], [0], tmp_path / "a")
    with pytest.raises(ValueError, match="jobs must be"):
        sweep(TINY, [4], [0], tmp_path / "a", jobs=-1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        sweep(TINY, [4], [0], tmp_path / "b")
