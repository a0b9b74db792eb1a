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
from dataclasses import replace
from pathlib import Path

import jax
import pytest
import torch
from test_distributed import torchrun
from test_training import TINY, different, listing, wait_for

from deepres import checkpoint as checkpoints
from deepres.bridge import to_torch
from deepres.config import Config
from deepres.repair import BrokenEnvironments
from deepres.run import Run
from deepres.stability import Diverged
from deepres.training import train

ENDLESS = replace(TINY, total_steps=10**9, eval_every=10**6)

# Imports once, then forks a process for each run that it is asked for, before JAX or OpenMP have threads.
FORKS = """
import os, sys
from pathlib import Path
import jax, safetensors.torch, mujoco.mjx, torch.utils.tensorboard
from deepres import envs
from deepres.config import Config
from deepres.training import train
folder, config = Path(sys.argv[1]), Config.from_file(Path(sys.argv[2]))
print("ready", flush=True)
for mode in sys.stdin:
    child = os.fork()
    if child == 0:
        train(config, folder, resume=mode.strip() == "resume", progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_at_20_moments_a_run_loses_nothing_it_had_saved(tmp_path):
    """Half of the moments from the start on (imports done), half around the saves, which come every few steps."""
    run, file, moments = tmp_path / "run", tmp_path / "config.json", random.Random(6)
    file.write_text(ENDLESS.to_json())
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(run), str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    while server.stdout.readline() != "ready\n":  # MJX prints while it is imported
        assert server.poll() is None
    folder, had, whole = run / "checkpoints", 0, 0
    for kill in range(20):
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
    assert whole >= 20
    last = replace(ENDLESS, total_steps=had + 40)
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


def options(config: Config) -> list[str]:
    """The options of the command that make `config`."""
    changed = {k: v for k, v in vars(config).items() if v != getattr(Config(), k)}
    return [text for k, v in changed.items() for text in (f"--{k.replace('_', '-')}", str(v))]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The folder of a run of two processes whose second was killed, and what they said."""
    run = tmp_path_factory.mktemp("killed") / "run"
    agent = torchrun(2, "-m", "deepres", "train", *options(ENDLESS), "--run-dir", str(run))
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


RESUMES = """
import sys
from dataclasses import replace
from pathlib import Path
import torch.distributed as dist
from deepres.config import Config
from deepres.distributed import join
from deepres.run import Run
from deepres.stability import Diverged
from deepres.training import train
dist.init_process_group("gloo")
config, folder = Config.from_file(Path(sys.argv[1])), Path(sys.argv[2])
results = [train(config, folder / "killed", resume=True), train(config, folder / "undisturbed")]
assert results[0].after == results[1].after
train(replace(config, total_steps=config.total_steps + 40), folder / "one", resume=True)
with join(config) as ranks:
    run = Run(replace(config, on_divergence="rollback"), folder / "killed", resume=True, ranks=ranks)
    if ranks.rank == 1:
        run.buffer.states[:] = float("nan")
    try:
        run.round()
    except Diverged as reason:
        run.roll_back(reason)
    assert run.env_steps == config.total_steps and run.learner.lr_scale == 0.5
    assert run.round()["skipped_steps"] == 0
dist.destroy_process_group()
"""


def test_what_two_ranks_saved_resumes_on_two_and_on_one_and_back(killed, tmp_path, capsys):
    shutil.copytree(killed[0], tmp_path / "killed")
    shutil.copytree(killed[0], tmp_path / "one")
    saved = checkpoints.load_newest(killed[0] / "checkpoints")[1]
    config = replace(ENDLESS, total_steps=saved.counters["env_steps"] + 40)

    alone = Run(config, tmp_path / "one", resume=True)
    for name, p in alone.learner.parameters().items():
        assert torch.equal(p, saved.tensors[f"parameters/{name}"])
    states = torch.cat([saved.shards[i]["buffer/states"] for i in (0, 1)], dim=1)
    assert torch.equal(alone.buffer.state_tensors()["states"], states)
    assert torch.equal(to_torch(alone.env_state.obs)[2:], saved.shards[1]["env/0"])
    train(config, tmp_path / "one", resume=True)
    assert "made by 2 processes and goes on with 1" in capsys.readouterr().out

    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "resumes.py").write_text(RESUMES)
    process = torchrun(2, str(tmp_path / "resumes.py"), str(tmp_path / "config.json"), str(tmp_path))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "made by 1 processes and goes on with 2" in output, output
    a, b, back = (
        checkpoints.load_newest(tmp_path / r / "checkpoints")[1] for r in ("killed", "undisturbed", "one")
    )
    assert a.counters["env_steps"] == b.counters["env_steps"] == config.total_steps
    assert different(a, b) == []  # the run whose process was killed repeats the one that nothing disturbed
    assert not torch.equal(a.shards[0]["buffer/states"], a.shards[1]["buffer/states"])
    assert back.size == 2 and back.counters["env_steps"] == config.total_steps + 40
    assert not torch.equal(back.shards[0]["generator"], back.shards[1]["generator"])


def damage(run: Run, which: list[int]) -> None:
    """NaN in the physics of some environments, as a blown-up simulation leaves it."""
    at = torch.tensor(which).numpy()
    leaves, structure = jax.tree.flatten(run.env_state)
    floats = [leaf.dtype.kind == "f" for leaf in leaves]
    leaves = [leaf.at[at].set(float("nan")) if f else leaf for leaf, f in zip(leaves, floats, strict=True)]
    run.env_state = jax.tree.unflatten(structure, leaves)


def test_an_environment_that_returns_nan_begins_anew(tmp_path):
    run = Run(TINY, tmp_path / "run")
    assert run.round()["broken_envs"] == 0
    before = to_torch(run.env_state.traj_id).clone()
    damage(run, [1, 3])
    with pytest.warns(
        RuntimeWarning, match="2 of 4 environments returned values that are not finite in round 2"
    ):
        row = run.round()
    assert row["broken_envs"] == 2 and row["env_steps"] == 120
    held = run.buffer.state_tensors()
    assert all(t.isfinite().all() for t in held.values()) and run.learner.log_alpha.isfinite()
    ids = held["traj_ids"]
    assert (ids.diff(dim=0) >= 0).all() and (ids[20, [1, 3]] > ids[19, [1, 3]]).all()
    assert torch.equal(held["states"][20:, 1], held["states"][20:, 0]), (
        "a healthy one's steps in place of its own"
    )
    after = to_torch(run.env_state.traj_id)
    assert (after[[1, 3]] > ids[-1, [1, 3]]).all() and (after[[0, 2]] - before[[0, 2]] <= 1).all()
    assert run.round()["broken_envs"] == 0
    run.save()

    damage(run, [0, 1, 2, 3])
    with pytest.raises(BrokenEnvironments, match="all 4 environments returned values that are not finite"):
        run.round()
    assert Run(TINY, tmp_path / "run", resume=True).round()["env_steps"] == 200


def test_rolling_back_is_resuming_in_place(tmp_path):
    run = Run(replace(TINY, rollback_lr_factor=1.0), tmp_path / "run")
    run.round()
    path = run.save()
    rows = [run.round() for _ in range(2)]
    run.roll_back(Diverged("went wrong"))
    assert run.env_steps == 80 and run.rounds == 1
    again = [run.round() for _ in range(2)]
    assert [{k: v for k, v in r.items() if "second" not in k} for r in rows] == [
        {k: v for k, v in r.items() if "second" not in k} for r in again
    ]
    (path / "rank-0000.safetensors").write_bytes(b"")
    with pytest.raises(Diverged, match=r"nothing to go back to: .* was cut short or changed"):
        run.roll_back(Diverged("went wrong"))
    assert run.env_steps == 160
