"""One process at a time trains in a folder; a dead one's claim is no claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from deepres.config import Config
from deepres.runs import lock as locks
from deepres.runs.folder import RunFolder, new_folder
from deepres.runs.lock import GONE_S, NAME, InUse, Lock


def held_by(folder, **changes) -> None:
    """A lock as another process left it."""
    with Lock(folder):
        holder = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**holder, **changes}) + "\n")


def test_the_second_is_refused_and_told_of_the_first(tmp_path):
    with Lock(tmp_path), pytest.raises(InUse, match=rf"is in use: process {os.getpid()} on .* trains there"):
        Lock(tmp_path).take()
    assert os.listdir(tmp_path) == []
    with Lock(tmp_path):
        assert os.listdir(tmp_path) == [NAME]


def test_a_killed_holder_is_none(tmp_path):
    program = (
        "import os; from pathlib import Path; from deepres.runs.lock import Lock; "
        f"Lock(Path({str(tmp_path)!r})).take(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program])
    assert os.listdir(tmp_path) == [NAME]
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_another_process_of_the_same_number_is_another(tmp_path):
    held_by(tmp_path, started="1")
    with Lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"place": "another boot"}])
def test_of_another_machine_the_last_sign_of_life_tells(tmp_path, other):
    held_by(tmp_path, **other)
    with pytest.raises(InUse, match="with a sign of life 0 s ago; end it first"):
        Lock(tmp_path).take()
    old = (tmp_path / NAME).stat().st_mtime - GONE_S - 1
    os.utime(tmp_path / NAME, (old, old))
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with Lock(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        beaten = threading.Event()
        while (tmp_path / NAME).stat().st_mtime == 0:
            beaten.wait(0.01)


def test_who_was_taken_for_dead_ends(tmp_path):
    with Lock(tmp_path) as lock:
        lock.require()
        held_by_other = json.dumps({"host": "elsewhere", "pid": 7, "since": "noon"})
        (tmp_path / NAME).write_text(held_by_other)
        with pytest.raises(InUse, match=r"was taken by process 7 on elsewhere \(since noon\)"):
            lock.require()
    assert (tmp_path / NAME).read_text() == held_by_other


@pytest.mark.parametrize("rest", ["", "{", "[]"])
def test_a_lock_that_cannot_be_read_counts_until_it_is_old(tmp_path, rest):
    (tmp_path / NAME).write_text(rest)
    with pytest.raises(InUse, match="another process trains there"):
        Lock(tmp_path).take()
    os.utime(tmp_path / NAME, (0, 0))
    with Lock(tmp_path):
        pass


def test_of_many_at_once_one_has_it(tmp_path):
    for _ in range(50):  # the slower of two that found one dead holder must not remove the faster's claim
        held_by(tmp_path, started="1")
        taken, ready = [], threading.Barrier(8)

        def contend(taken=taken, ready=ready) -> None:
            lock = Lock(tmp_path)
            ready.wait()
            try:
                lock.take()
                taken.append(lock)
            except InUse:
                pass

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].require()
        taken[0].give_back()
        assert os.listdir(tmp_path) == []


def test_new_folders_are_numbered_where_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [new_folder(Config(env="ant", depth=4)).path.name for _ in range(3)]
    assert names == ["ant-crl-d4-s0", "ant-crl-d4-s0-2", "ant-crl-d4-s0-3"]


def test_what_a_killed_process_left_of_its_claim_is_no_run(tmp_path):
    (tmp_path / "config.json.draft").write_text("{")
    held_by(tmp_path, started="1")
    folder = RunFolder(tmp_path)
    folder.take(resume=False).give_back()
    folder.claim(Config(), resume=False)
    assert sorted(os.listdir(tmp_path)) == ["config.json"]
