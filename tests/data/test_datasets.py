"""Data sets of episodes: the format, its layouts, what is refused, and what a sampler reads of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepres.commands.main import main
from deepres.config import Config
from deepres.data import datasets
from deepres.data.batch import Batch
from deepres.data.datasets import Dataset, read, write
from deepres.data.episodes import Episodes
from deepres.data.first_hits import FirstHits
from deepres.data.goal_laws import LATER_OR_ANYWHERE, FutureAndActorGoals
from deepres.data.relabel import FutureGoals, Hindsight
from deepres.runs.files import read_run
from deepres.training.loop import train
from deepres.training.memory_plan import plan
from helpers.tiny_runs import SIZES, words

L, E, S, A = 9, 5, 4, 2


def made(episodes: int = E, length: int = L, *, state: int = S) -> Dataset:
    """The observation of row t of episode e begins with e, t."""
    rows = length + 1
    draw = np.random.default_rng(0)
    observations = draw.normal(size=(episodes, rows, state)).astype(np.float32)
    observations[..., 0] = np.arange(episodes)[:, None]
    observations[..., 1] = np.arange(rows)
    actions = draw.uniform(-1, 1, size=(episodes * rows, A)).astype(np.float32)
    return Dataset(observations.reshape(-1, state), actions, rows)


def plain_reader(path) -> dict[str, np.ndarray]:
    """OGBench's two layouts of a file, written from their description: regular and compact."""
    file = dict(np.load(path))
    ends = file["terminals"].astype(bool)
    follows = np.concatenate([file["observations"][1:], file["observations"][:1]])
    kept = ~ends
    last = np.concatenate([ends[1:], [False]])
    regular = {
        "observations": file["observations"][kept],
        "actions": file["actions"][kept],
        "next_observations": follows[kept],
        "terminals": last[kept].astype(np.float32),
    }
    compact = {
        "observations": file["observations"],
        "actions": file["actions"],
        "terminals": (ends | last).astype(np.float32),
        "valids": (~ends).astype(np.float32),
    }
    return {"regular": regular, "compact": compact}


def same(a: Dataset, b: Dataset, *, last_actions: bool = True) -> None:
    assert a.rows == b.rows and a.episodes == b.episodes
    assert np.array_equal(a.observations, b.observations)
    acted = np.arange(len(a.actions)) % a.rows < a.rows - (0 if last_actions else 1)
    assert np.array_equal(a.actions[acted], b.actions[acted])


def test_what_is_written_is_read_in_every_layout(tmp_path):
    data = made()
    path = write(tmp_path / "sub" / "maze-v0.npz", data, {"qpos": data.observations[:, :2]})
    assert sorted(file.name for file in path.parent.iterdir()) == ["maze-v0.npz"]
    file = np.load(path)
    assert file["terminals"].dtype == bool and np.flatnonzero(file["terminals"]).tolist() == [
        9, 19, 29, 39, 49,
    ]  # fmt: skip
    same(read(path, S, A), data)
    for layout, arrays in plain_reader(path).items():
        np.savez(tmp_path / f"{layout}.npz", **arrays)
        same(read(tmp_path / f"{layout}.npz", S, A), data, last_actions=layout == "compact")


def test_a_large_file_is_unpacked_once_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY", 100)
    data, path = made(), tmp_path / "maze.npz"
    write(path, data)
    first = read(path)
    assert isinstance(first.observations, np.memmap) and (tmp_path / "maze.npz.unpacked").is_dir()
    same(first, data)
    stamp = (tmp_path / "maze.npz.unpacked" / "observations.npy").stat().st_mtime_ns
    same(read(path), data)
    assert (tmp_path / "maze.npz.unpacked" / "observations.npy").stat().st_mtime_ns == stamp
    write(path, made(3))  # another file under the same name
    assert read(path).episodes == 3


def test_a_large_file_is_read_where_nothing_can_be_written(small_disk, sealed, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    path = write(small_disk / "maze.npz", made())
    sealed()
    found = read(path)
    assert isinstance(found.observations, np.memmap)
    same(found, made())
    assert [file.name for file in small_disk.iterdir()] == ["maze.npz"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda a: a.pop("actions"), "it lacks actions"),
        (lambda a: a.update(actions=a["actions"][:-1]), "must fit, got"),
        (lambda a: a.update(terminals=a["terminals"][:-3], observations=a["observations"][:-3],
                            actions=a["actions"][:-3]), "it was cut short"),
        (lambda a: a["observations"].__setitem__((3, 1), np.nan), "observations holds numbers that are not finite"),
        (lambda a: a["actions"].__setitem__((3, 1), 1.5), r"actions must lie in \[-1, 1\], got 1.5"),
        (lambda a: a.update(observations=a["observations"].astype(np.float64)), "must be float32, got float64"),
        (lambda a: a["terminals"].__setitem__(4, True), "as many transitions each, at least one, got 4 to 9"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_told(tmp_path, spoil, sentence):
    arrays = dict(np.load(write(tmp_path / "good.npz", made())))
    spoil(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "bad.npz")


def test_damaged_files_and_other_tasks_are_told(tmp_path):
    path = write(tmp_path / "good.npz", made())
    with pytest.raises(
        ValueError, match="has states of 4 numbers, the task has 29; pass a data set of that task"
    ):
        read(path, 29, A)
    with pytest.raises(ValueError, match="has actions of 2 numbers, the task has 8"):
        read(path, S, 8)
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"is not readable as \.npz"):
        read(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match="there is no data set at"):
        read(tmp_path / "none.npz")


def draws(sampler, columns=(), n: int = 4000) -> Batch:
    ring = Episodes(
        made(), slice(0, 2), columns, reached=lambda s, g: (s[:, :2] - g).norm(dim=1) < 0.5, threshold=0.5
    )
    generator = torch.Generator().manual_seed(0)
    (batch,) = sampler.batches(ring, 1, n, window=ring.size, generator=generator)
    return batch


def test_pairs_are_of_one_episode_and_every_transition_comes():
    batch = draws(FutureGoals(0.9))
    episode, t = batch.state[:, 0], batch.state[:, 1]
    assert (
        torch.equal(batch.goal[:, 0], episode)
        and (batch.goal[:, 1] > t).all()
        and batch.goal[:, 1].max() == L
    )
    pairs = torch.stack([episode, t]).unique(dim=1)
    assert pairs.shape[1] == E * L and t.max() == L - 1  # the last row leads nowhere and is never one
    ahead = (batch.goal[:, 1] - t)[t == 0]
    weight = 0.9 ** torch.arange(1, L + 1)
    assert abs(float(ahead.mean()) - float((torch.arange(1, L + 1) * weight).sum() / weight.sum())) < 0.35


def test_pairs_of_an_episode_stand_together_and_policies_have_goals_of_their_own():
    batch = draws(FutureAndActorGoals(0.9, LATER_OR_ANYWHERE, together=4), n=4002)
    episode, t = batch.state[:4000, 0].view(-1, 4), batch.state[:4000, 1].view(-1, 4)
    assert (episode == episode[:, :1]).all() and len(t.unique(dim=0)) > 500
    goal = batch.extra["actor_goal"]
    own = goal[:, 0] == batch.state[:, 0]
    assert 0.55 < own.float().mean() < 0.65  # half of them, and a fifth of the others by chance
    assert goal[own, 1].max() == L and goal[~own, 1].max() == L - 1
    assert torch.equal(batch.goal[:, 0], batch.state[:, 0])


def test_transitions_lead_to_the_next_row_and_reach_what_comes():
    sampler = Hindsight(1.0, truncation=True)
    batch = draws(sampler, sampler.columns)
    t = batch.state[:, 1]
    assert torch.equal(batch.next_state[:, 1], t + 1) and (batch.goal[:, 1] >= t + 1).all()
    assert torch.equal(batch.reward, (batch.goal[:, 1] == t + 1).float()) and batch.terminal.sum() == 0
    assert torch.equal(batch.extra["truncation"], (t == L - 1).float())
    with pytest.raises(ValueError, match=r"a data set has no goals, successes: .*hindsight=1"):
        Episodes(made(), slice(0, 2), Hindsight(0.5).columns)


def test_chunks_stay_in_their_episode():
    batch = draws(FutureGoals(0.9, horizon=3))
    t, valid = batch.state[:, 1], batch.extra["valid"]
    assert torch.equal(valid, (t <= L - 3).float())  # nothing was done at the last state
    hits = draws(FirstHits(10, radius=0.5, horizon=2), ("terminals",))
    assert torch.equal(hits.extra["valid"], (hits.state[:, 1] <= L - 2).float())
    data = made()
    row = (batch.state[:, 0] * (L + 1) + t).long()
    for step in range(3):
        taken = torch.from_numpy(data.actions)[torch.where(valid > 0, row + step, 0)] * valid[:, None]
        assert torch.equal(batch.action[:, A * step : A * (step + 1)], taken)


@pytest.mark.parametrize(("name", "options"), [("crl", {}), ("gcbc", {}), ("sac", {"hindsight": 1.0})])
def test_a_run_learns_from_a_file_alone(tmp_path, name, options):
    """A file of this package's from Python; one of OGBench's, with its own layout and more members, by command."""
    path = write(tmp_path / "point.npz", made(), {"qpos": np.zeros((E * (L + 1), 2), np.float32)})
    config = Config(name, **{**SIZES, "total_steps": 8, "eval_every": 1}, **options, data=str(path))
    if name == "crl":
        np.savez(path, **plain_reader(path)["compact"])
        main(["train", *words(config), "--run-dir", str(tmp_path / "run")])
    else:
        train(config, tmp_path / "run", progress=False)
    files = read_run(tmp_path / "run")
    assert files.finished and files.rounds[-1]["gradient_steps"] == 8 and len(files.evaluations) == 3
    from deepres.training.loop import load_run

    sizes = load_run(tmp_path / "run").sizes
    assert plan(config, sizes).parts["replay buffer"] == pytest.approx(E * (L + 1) * (S + A) * 4, abs=300)
    with pytest.raises(ValueError, match="the task has"):
        train(config.replace(env="reacher"), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
