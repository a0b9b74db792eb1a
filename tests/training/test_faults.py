"""What can go wrong in a run, made to go wrong: killed processes, killed ranks, physics that breaks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepres.config import Config
from deepres.runs import checkpoint as checkpoints
from deepres.runs.folder import RunFolder
from deepres.training.faults import BrokenEnvironments
from deepres.training.loop import find_state, load_run, roll_back, save, train
from deepres.training.run import Run
from deepres.training.stability import Diverged
from helpers.tiny_runs import (
    PROGRAMS,
    SIZES,
    TINY,
    different,
    environ,
    listing,
    torchrun,
    untimed,
    wait_for,
    words,
)

ENDLESS = TINY.replace(total_steps=10**9, eval_every=10**6)


def test_killed_at_8_moments_a_run_loses_nothing_it_had_saved(tmp_path):
    """Half of the moments from the start on (imports done), half around the saves, which come every few steps."""
    run, file, moments = tmp_path / "run", tmp_path / "config.json", random.Random(6)
    file.write_text(ENDLESS.to_json())
    server = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "forks.py"), str(run), str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ(),
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    while server.stdout.readline() != "ready\n":  # MJX prints while it is imported
        assert server.poll() is None
    folder, had, whole = run / "checkpoints", 0, 0
    for kill in range(8):
        print("resume" if kill else "new", file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        if kill % 2 == 0:  # the first one leaves a checkpoint at the least
            wait_for(server, lambda: checkpoints.steps(folder)[-1:] > [f"{had:012d}"], pause=0.002)  # noqa: B023
            time.sleep(moments.uniform(0, 0.05))
        else:
            time.sleep(moments.uniform(0, 1.5))
        os.kill(child, signal.SIGKILL)
        assert int(server.stdout.readline()) == signal.SIGKILL
        path, newest, skipped = checkpoints.load_newest(folder)
        assert skipped == [] and int(path.name) == newest.counters["env_steps"] >= had
        for name in checkpoints.steps(folder):
            checkpoints.load(folder / name)
            whole += 1
        had = newest.counters["env_steps"]
    server.stdin.close()
    server.wait()
    assert whole >= 8
    last = ENDLESS.replace(total_steps=had + 40)
    train(last, run, resume=True, progress=False)
    train(last, tmp_path / "undisturbed", progress=False)
    a, b = (checkpoints.load_newest(r / "checkpoints")[1] for r in (run, tmp_path / "undisturbed"))
    assert a.counters["rounds"] == b.counters["rounds"] and different(a, b) == []
    assert all(name.isdigit() for name in listing(folder))


def ranks_of(agent: subprocess.Popen) -> dict[int, int]:
    """The processes that torchrun started, by rank."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    environ = {int(c): Path(f"/proc/{c}/environ").read_bytes().split(b"\0") for c in children}
    return {int(v[5:]): c for c, variables in environ.items() for v in variables if v.startswith(b"RANK=")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The folder of a run of two processes whose second was killed, and what they said."""
    run = tmp_path_factory.mktemp("killed") / "run"
    agent = torchrun(2, "-m", "deepres", "train", *words(ENDLESS), "--run-dir", str(run))
    wait_for(agent, lambda: len(checkpoints.steps(run / "checkpoints")) == 2, pause=0.01)
    ranks = ranks_of(agent)
    os.kill(ranks[1], signal.SIGKILL)
    output, _ = agent.communicate(timeout=60)
    assert agent.returncode != 0 and not Path(f"/proc/{ranks[0]}").exists()
    yield run, output


def test_a_killed_rank_ends_the_run_with_a_sentence(killed):
    run, output = killed
    told = [line for line in output.splitlines() if line.startswith("deepres: ")]
    assert len(told) == 1 and "start the run again with --resume" in told[0], output
    assert "another process of the run ended" in told[0] or "asked to end (SIGTERM)" in told[0]
    _, newest, skipped = checkpoints.load_newest(run / "checkpoints")
    assert skipped == [] and newest.size == 2 and newest.counters["env_steps"] >= 80


def test_what_two_ranks_saved_resumes_on_two_and_on_one_and_back(killed, tmp_path, capsys):
    shutil.copytree(killed[0], tmp_path / "killed")
    shutil.copytree(killed[0], tmp_path / "one")
    saved = checkpoints.load_newest(killed[0] / "checkpoints")[1]
    config = ENDLESS.replace(total_steps=saved.counters["env_steps"] + 40)

    alone = Run(config, restored=find_state(RunFolder(tmp_path / "one"), config))
    for name, p in alone.learner.parameters().items():
        assert torch.equal(p, saved.tensors[f"parameters/{name}"])
    states = torch.cat([saved.shards[i]["buffer/states"] for i in (0, 1)], dim=1)
    assert torch.equal(alone.buffer.state_tensors()["states"], states)
    assert torch.equal(alone.standing.obs[2:], saved.shards[1]["env/obs"])
    train(config, tmp_path / "one", resume=True)
    assert "made by 2 processes and goes on with 1" in capsys.readouterr().out

    (tmp_path / "config.json").write_text(config.to_json())
    process = torchrun(2, str(PROGRAMS / "resumes.py"), str(tmp_path / "config.json"), str(tmp_path))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "made by 1 processes and goes on with 2" in output, output
    a, b, back = (
        checkpoints.load_newest(tmp_path / r / "checkpoints")[1] for r in ("killed", "undisturbed", "one")
    )
    assert a.counters["env_steps"] == b.counters["env_steps"] == config.schedule.total_steps
    assert different(a, b) == []  # the run whose process was killed repeats the one that nothing disturbed
    assert not torch.equal(a.shards[0]["buffer/states"], a.shards[1]["buffer/states"])
    assert back.size == 2 and back.counters["env_steps"] == config.schedule.total_steps + 40
    assert not torch.equal(back.shards[0]["generator"], back.shards[1]["generator"])


def damage(run: Run, which: list[int]) -> None:
    """NaN in the physics of some environments, as a blown-up simulation leaves it."""
    broken = run.env.state_tensors(run.standing)
    for tensor in broken.values():
        if tensor.is_floating_point():
            tensor[which] = torch.nan
    run.standing = run.env.load_state_tensors(run.standing, broken)


@pytest.mark.parametrize("algorithm", ["crl", "sac"])
def test_an_environment_that_returns_nan_begins_anew(algorithm, tmp_path):
    config = TINY if algorithm == "crl" else Config(algorithm, **SIZES)
    run, folder = Run(config), RunFolder(tmp_path / "run")
    assert run.round()["broken_envs"] == 0
    before = run.standing.traj_id.clone()
    damage(run, [1, 3])
    with pytest.warns(
        RuntimeWarning, match="2 of 4 environments returned values that are not finite in round 2"
    ):
        row = run.round()
    assert row["broken_envs"] == 2 and row["env_steps"] == 120
    held = run.buffer.state_tensors()
    assert all(t.isfinite().all() for t in held.values()) and run.learner.algorithm.log_alpha.isfinite()
    ids = held["traj_ids"]
    assert (ids.diff(dim=0) >= 0).all() and (ids[20, [1, 3]] > ids[19, [1, 3]]).all()
    for name in held.keys() - {"traj_ids"}:
        assert torch.equal(held[name][20:, 1], held[name][20:, 0]), (
            "a healthy one's steps in place of its own"
        )
    after = run.standing.traj_id
    assert (after[[1, 3]] > ids[-1, [1, 3]]).all() and (after[[0, 2]] - before[[0, 2]] <= 1).all()
    assert run.round()["broken_envs"] == 0
    folder.claim(config, resume=False)
    save(run, folder)

    damage(run, [0, 1, 2, 3])
    with pytest.raises(BrokenEnvironments, match="all 4 environments returned values that are not finite"):
        run.round()
    assert load_run(folder.path).round()["env_steps"] == 200


def test_rolling_back_is_resuming_in_place(tmp_path):
    run, folder = Run(TINY.replace(rollback_lr_factor=1.0)), RunFolder(tmp_path / "run")
    run.round()
    path = save(run, folder)
    rows = [untimed(run.round()) for _ in range(2)]
    roll_back(run, folder, Diverged("went wrong"))
    assert run.env_steps == 80 and run.rounds == 1
    assert rows == [untimed(run.round()) for _ in range(2)]
    (path / "rank-0000.safetensors").write_bytes(b"")
    with pytest.raises(Diverged, match=r"nothing to go back to: .* was cut short or changed"):
        roll_back(run, folder, Diverged("went wrong"))
    assert run.env_steps == 160
