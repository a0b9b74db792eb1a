"""Learning from another run's ring, without acting."""

from __future__ import annotations

import pytest
import torch

from deepres.commands.main import main
from deepres.config import Config
from deepres.data.batch import COLUMNS
from deepres.data.datasets import read
from deepres.runs.files import read_run
from deepres.runs.folder import RunFolder
from deepres.training.environments import open_for, sizes_of
from deepres.training.learner import Learner
from deepres.training.loop import load_run, train
from deepres.training.memory_plan import plan
from deepres.training.recorded import RecordedRun, ring_of
from helpers.tiny_runs import SIZES, TINY

ENDED = TINY.replace(total_steps=4 * 80, record="all", checkpoint_every=100)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a finished run that kept everything; its ring of 60 steps has gone round."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    train(ENDED, folder, progress=False)
    return folder


def learner_of(name: str, recorded, **options) -> Config:
    sizes = {**SIZES, "total_steps": 16, "eval_every": 2, **options}
    return Config(name, **sizes, data=str(recorded))


def test_the_ring_is_the_runs_from_its_oldest_step_on(recorded):
    run = load_run(recorded)
    env = open_for(run.config.env, 1, seed=0, device=torch.device("cpu"))
    ring = ring_of(RunFolder(recorded), env, sizes_of(env), tuple(COLUMNS))
    order = torch.arange(run.buffer.inserted - 60, run.buffer.inserted) % 60
    assert run.buffer.inserted > 60 and not torch.equal(order, order.sort().values)
    for name, column in run.buffer.rings.items():
        assert torch.equal(ring.rings[name], column[order].to(ring.rings[name].dtype)), name
    small = RecordedRun(learner_of("crl", recorded, buffer_dtype="bf16")).buffer.rings["states"]
    assert small.dtype == torch.bfloat16 and torch.equal(small, ring.rings["states"].bfloat16())
    ids = ring.rings["traj_ids"]
    assert (ids.diff(dim=0) >= 0).all() and ring.size == 60


@pytest.mark.parametrize("name", ["sac", "hiql"])
def test_an_algorithm_learns_from_it_and_resumes_to_the_same_bits(name, recorded, tmp_path):
    config = learner_of(name, recorded)
    train(config, tmp_path / "whole", progress=False)
    train(config.replace(total_steps=8), tmp_path / "half", progress=False)
    train(config, tmp_path / "half", resume=True, progress=False)
    whole, half = load_run(tmp_path / "whole"), load_run(tmp_path / "half")
    assert isinstance(half, RecordedRun) and half.gradient_steps == half.env_steps == 16
    for key, tensor in whole.state().tensors.items():
        assert torch.equal(tensor, half.state().tensors[key]), key
    assert not any(key.startswith(("buffer/", "env/")) for key in whole.state().shards[0])
    files = read_run(tmp_path / "half")
    assert files.finished and [row["gradient_steps"] for row in files.rounds] == [4, 8, 12, 16]


def test_learners_of_any_depth_are_given_the_same_batches(recorded, tmp_path, monkeypatch):
    """What lets studies compare depths on one ring (figure 8)."""
    given: list[list[torch.Tensor]] = []
    step = Learner.step

    def watched(self, batch, noise):
        given[-1] += [*batch.tensors().values(), noise]
        return step(self, batch, noise)

    monkeypatch.setattr(Learner, "step", watched)
    for depth in (4, 8):
        given.append([])
        train(learner_of("crl", recorded, depth=depth), tmp_path / str(depth), progress=False)
    shallow, deep = given
    assert len(shallow) == len(deep) > 16 * 3
    assert all(torch.equal(one, other) for one, other in zip(shallow, deep, strict=True))


def test_a_ring_is_written_as_episodes(recorded, tmp_path, capsys):
    """Every transition of the files is one of the ring, in its place; the last state is the one before the reset."""
    out = tmp_path / "replay.npz"
    main(["data", "make", str(recorded), "--kind", "replay", "--out", str(out)])
    run = load_run(recorded)
    rings = {name: run.buffer.rings[name].flatten(0, 1) for name in ("states", "actions", "next_states")}
    known = {
        state.numpy().tobytes(): (action, after)
        for state, action, after in zip(
            *(rings[n] for n in ("states", "actions", "next_states")), strict=True
        )
    }
    sets = [read(out, run.sizes.state, run.sizes.action), read(tmp_path / "replay-val.npz")]
    assert {data.rows for data in sets} == {26} and sets[1].episodes == 1
    assert f"{25 * (sets[0].episodes + 1)} of 240 transitions" in capsys.readouterr().out
    for data in sets:
        states, actions = (
            torch.from_numpy(x).unflatten(0, (-1, 26)) for x in (data.observations, data.actions)
        )
        for t in range(25):
            for episode in range(data.episodes):
                action, after = known[states[episode, t].numpy().tobytes()]
                assert torch.equal(actions[episode, t], action) and torch.equal(states[episode, t + 1], after)
    for words, sentence in (
        (["--out", str(out)], "is there already"),
        (["--out", str(tmp_path / "n.npz"), "--noise", "0.1"], "noise does not apply to a replay"),
        (["--out", str(tmp_path / "n.npz"), "--length", "26"], "has 0 episodes of 26 steps"),
    ):
        with pytest.raises(SystemExit):
            main(["data", "make", str(recorded), "--kind", "replay", *words])
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_what_the_ring_lacks_is_told(recorded, tmp_path):
    train(ENDED.replace(record="needed"), tmp_path / "bare", progress=False)
    train(learner_of("crl", tmp_path / "bare", total_steps=4), tmp_path / "pairs", progress=False)
    with pytest.raises(
        ValueError, match="has no ring with goals, next_states, successes, terminals; train it with"
    ):
        train(learner_of("sac", tmp_path / "bare"), tmp_path / "td", progress=False)
    train(ENDED.replace(save_buffer=False), tmp_path / "empty", progress=False)
    with pytest.raises(ValueError, match=r"has no ring with states, .*; train it with save_buffer"):
        train(learner_of("crl", tmp_path / "empty"), tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match="is a run of point_u_maze, env is reacher; pass a run of that task"):
        train(learner_of("crl", recorded, env="reacher"), tmp_path / "other", progress=False)
    with pytest.raises(
        ValueError, match="of point_u_maze, env is point_u_maze with layout=big_maze; pass a run"
    ):
        other = learner_of("crl", recorded, env_options={"layout": "big_maze"})
        train(other, tmp_path / "layout", progress=False)
    with pytest.raises(FileNotFoundError, match=r"no run at .*nowhere"):
        train(learner_of("crl", tmp_path / "nowhere"), tmp_path / "lost", progress=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bare", "empty", "pairs"]


def test_the_plan_counts_the_ring_that_is_read(recorded):
    sizes = load_run(recorded).sizes
    larger = plan(learner_of("crl", recorded, num_envs=400, buffer_steps=6000), sizes)
    own = plan(ENDED.replace(record="needed"), sizes)
    assert larger.parts["replay buffer"] == own.parts["replay buffer"]
    every = plan(ENDED, sizes).parts["replay buffer"]
    assert every > own.parts["replay buffer"]
