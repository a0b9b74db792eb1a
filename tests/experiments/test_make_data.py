"""Data sets made in mazes: real physics, driven along shortest ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deepres.commands.main import main
from deepres.config import Config
from deepres.data.datasets import read
from deepres.data.environments import JaxEnvironments
from deepres.envs import make, make_task
from deepres.experiments import gait
from deepres.experiments import make_data as module
from deepres.experiments.make_data import Map, make_data, plan
from helpers.tiny_runs import SIZES


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 8)


def test_the_map_leads_along_shortest_ways():
    maze = make_task("point_u_maze").maze
    map = Map(maze)
    path = map.cell_of(torch.from_numpy(maze.path()))  # the corridor's cells in order
    assert sorted(path.tolist()) == list(range(7))
    for goal in range(7):
        for cell in range(7):
            nearer = cell + (goal > cell) - (goal < cell)
            assert map.onward[path[goal], path[cell]] == path[nearer]
            assert map.apart[path[goal], path[cell]] == abs(goal - cell)
    draw = torch.Generator().manual_seed(0)
    far = map.draw_at(path.repeat(50), 4, draw)
    wanted = torch.tensor([max(k, 6 - k) for k in range(7)]).clamp(max=4).repeat(50)
    assert torch.equal(map.apart[path.repeat(50), far], wanted)


def test_the_point_gets_where_it_is_driven(tmp_path):
    """Navigating, a point crosses the maze; stitching, it stays within four cells of its start; the same seed, the
    same file."""
    for kind in ("navigate", "stitch"):
        path = tmp_path / f"{kind}.npz"
        written = make_data(plan("point_u_maze", kind, 10, 180, None, 3), path)
        assert written == [path, tmp_path / f"{kind}-val.npz"] and read(written[1], 4, 2).episodes == 1
        data = read(path, 4, 2)
        assert data.episodes == 10 and data.rows == 181
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".npz"] * 4
    map = Map(make_task("point_u_maze").maze)

    def cells(kind: str) -> torch.Tensor:
        data = read(tmp_path / f"{kind}.npz")
        return map.cell_of(torch.from_numpy(data.observations[:, :2])).view(data.episodes, data.rows)

    ways = cells("navigate")
    assert len(set(ways[:, 0].tolist())) > 3  # starts all over the maze
    assert torch.tensor([len(set(way.tolist())) for way in ways]).float().mean() > 4
    stitched = cells("stitch")
    apart = map.apart[stitched[:, :1], stitched]
    assert apart.max() <= 4 and (apart[:, -1] >= 3).float().mean() > 0.7
    steps = np.diff(read(tmp_path / "navigate.npz").observations[:, :2], axis=0)
    inside = np.arange(len(steps)) % 181 != 180
    assert np.abs(steps[inside]).max() < 1.0  # no teleporting within an episode: s' is the next row


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    path, made = tmp_path / "maze.npz", plan("point_u_maze", "explore", 20, 10, None, 0)
    calls = []
    whole = module.World.episodes

    def stops(self, number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, number)

    monkeypatch.setattr(module.World, "episodes", stops)
    with pytest.raises(KeyboardInterrupt):
        make_data(made, path)
    assert not path.exists()
    with pytest.raises(ValueError, match="holds a data set under way with seed=0; ask for the same to go on"):
        make_data(replace(made, seed=1), path)
    make_data(made, path)
    assert calls == [0, 1, 2, 2, 3] and read(path).episodes == 20
    other = tmp_path / "other.npz"
    make_data(made, other)
    assert np.array_equal(read(other).observations, read(path).observations)
    with pytest.raises(FileExistsError, match="is there already"):
        make_data(made, path)
    path.unlink()
    with pytest.raises(FileExistsError, match=r"maze-val\.npz is there already"):
        make_data(made, path)


def test_data_are_made_looked_at_and_learned_from_by_command(tmp_path, capsys):
    path = tmp_path / "u.npz"
    main(["data", "make", "point_u_maze", "--out", str(path), "--episodes", "6", "--length", "30"])
    main(["data", "info", str(path)])
    said = capsys.readouterr().out
    assert "180" in said and (tmp_path / "u.png").read_bytes().startswith(b"\x89PNG")
    from deepres.training.loop import train

    config = Config("crl", **{**SIZES, "total_steps": 8}, feature_dim=8, data=str(path))
    assert train(config, tmp_path / "run", progress=False).env_steps == 8
    for words, sentence in (
        (["point_u_maze", "--kind", "walk"], "invalid choice"),
        (["reacher"], "reacher has no maze to find ways in"),
        (["humanoid_u_maze"], "needs a policy that walks"),
    ):
        with pytest.raises(SystemExit):
            main(["data", "make", *words, "--out", str(tmp_path / "no.npz"), "--episodes", "1"])
        printed = capsys.readouterr()
        assert sentence in printed.err + printed.out
    assert not (tmp_path / "no.npz").exists()


def test_an_ant_walks_by_its_gait(tmp_path):
    """It crosses cells, however it is turned, and an episode never jumps: it has no end but the last step's."""
    written = make_data(plan("ant_u_maze", "navigate", 8, 150, None, 0), tmp_path / "ant.npz")
    states = torch.from_numpy(read(written[0], 29, 8).observations).view(8, 151, 29)
    map = Map(make_task("ant_u_maze").maze)
    cells = map.cell_of(states[:, :, :2].reshape(-1, 2)).view(8, 151)
    assert torch.tensor([len(set(way.tolist())) for way in cells]).float().mean() >= 2.5
    assert (states[:, 1:, :2] - states[:, :-1, :2]).norm(dim=2).max() < 0.5
    assert (1 - 2 * (states[:, :, 4] ** 2 + states[:, :, 5] ** 2) > 0).float().mean() > 0.9  # upright


def test_the_search_finds_gaits_that_walk():
    """A few generations are better than standing still, and what is kept is better than they are."""
    found = gait.found(((16, 60, 5.0),), candidates=32, tries=1, best=6)
    env = JaxEnvironments(gait.unending(make("ant", 16, seed=1)))
    speeds = [
        gait.progress(env, one.expand(16, -1), torch.Generator().manual_seed(0), 60, 5.0).mean()
        for one in (torch.zeros(gait.COUNT), found, torch.tensor(gait.FOUND))
    ]
    assert speeds == sorted(speeds) and speeds[-1] > 0.5


def test_an_ant_is_walked_by_a_policy_of_open_ground(tmp_path):
    """The driver hands the policy a state at the origin and a goal four metres ahead."""
    from deepres.training.loop import train

    run = tmp_path / "ant"
    sizes = {**SIZES, "env": "ant", "total_steps": 80, "eval_every": 100, "min_buffer_steps": 20}
    train(Config("gcbc", **sizes), run, progress=False)
    written = make_data(plan("ant_u_maze", "navigate", 2, 5, None, 0), tmp_path / "ant.npz", run)
    assert read(written[0], 29, 8).episodes == 2
    with pytest.raises(ValueError, match="walks states of 29 numbers, humanoid_u_maze has"):
        make_data(plan("humanoid_u_maze", "navigate", 1, 2, None, 0), tmp_path / "humanoid.npz", run)
