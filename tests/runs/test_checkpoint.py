"""Checkpoints on real disks: whole or absent, whatever kills the writer, fills the disk or edits the file."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import Checkpoint, CheckpointError
from helpers.tiny_runs import PROGRAMS, environ


def make(env_steps: int, value: float = 0.0, size: int = 1000) -> Checkpoint:
    tensors = {"a/b": torch.full((size,), value), "count": torch.tensor(env_steps), "none": torch.empty(0, 3)}
    shard = {"ring": torch.full((size,), -value)}
    return Checkpoint(tensors, {"env_steps": env_steps, "rounds": 1}, {"env": "ant"}, {0: shard})


def test_round_trip_and_pruning(tmp_path):
    for n in (10, 200, 3000):
        checkpoints.save(tmp_path, make(n, float(n)), keep=2)
    assert checkpoints.steps(tmp_path) == ["000000000200", "000000003000"]
    path, newest, skipped = checkpoints.load_newest(tmp_path)
    assert path.name == "000000003000" and skipped == []
    assert newest.counters == {"env_steps": 3000, "rounds": 1} and newest.config == {"env": "ant"}
    assert (newest.tensors["a/b"] == 3000).all() and newest.tensors["none"].shape == (0, 3)
    assert newest.size == 1 and list(newest.shards) == [0] and (newest.shards[0]["ring"] == -3000).all()


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoints.save(tmp_path, make(10, 1.0), keep=2)
    checkpoints.save(tmp_path, make(10, 2.0), keep=2)
    assert (checkpoints.load(tmp_path / "000000000010").tensors["a/b"] == 2).all()
    assert sorted(os.listdir(tmp_path)) == ["000000000010"]


def cut_tensors(path):
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[:-100])


def flip_a_bit(path):
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def edit_counters(path):
    header = json.loads((path / "state.json").read_text())
    header["counters"]["env_steps"] = 7
    (path / "state.json").write_text(json.dumps(header))


def cut_header(path):
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])


def remove_tensors(path):
    (path / "state.safetensors").unlink()


def cut_shard(path):
    data = (path / "rank-0000.safetensors").read_bytes()
    (path / "rank-0000.safetensors").write_bytes(data[:-1])


def remove_shard(path):
    (path / "rank-0000.safetensors").unlink()


def empty_header(path):
    (path / "state.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_tensors, "state.safetensors was cut short or changed after it was written"),
        (flip_a_bit, "state.safetensors was cut short or changed after it was written"),
        (edit_counters, "state.json was changed after it was written"),
        (cut_header, "cannot read the checkpoint"),
        (remove_tensors, "cannot read the checkpoint"),
        (cut_shard, "rank-0000.safetensors was cut short or changed after it was written"),
        (remove_shard, "cannot read the checkpoint"),
        (empty_header, "state.json was changed after it was written"),
    ],
)
def test_damage_is_named_and_the_one_before_serves(tmp_path, damage, sentence):
    checkpoints.save(tmp_path, make(10, 1.0), keep=5)
    damage(checkpoints.save(tmp_path, make(20, 2.0), keep=5))
    with pytest.raises(CheckpointError, match=sentence) as error:
        checkpoints.load(tmp_path / "000000000020")
    assert "delete it to go on from the checkpoint before" in str(error.value)
    path, loaded, skipped = checkpoints.load_newest(tmp_path)
    assert path.name == "000000000010" and (loaded.tensors["a/b"] == 1).all()
    assert len(skipped) == 1 and sentence in skipped[0]


def test_a_damaged_one_ahead_costs_no_other_its_place(tmp_path):
    """The newest cannot be read; the run goes on from the one before, and saves less far than it had been."""
    for n in (10, 20, 90):
        flipped = checkpoints.save(tmp_path, make(n), keep=3)
    flip_a_bit(flipped)
    checkpoints.save(tmp_path, make(30), keep=1)
    assert checkpoints.steps(tmp_path) == ["000000000030", "000000000090"]
    assert checkpoints.load_newest(tmp_path)[0].name == "000000000030"


def test_one_without_a_header_is_pruned_before_any_whole_one(tmp_path):
    checkpoints.save(tmp_path, make(10), keep=3)
    cut_header(checkpoints.save(tmp_path, make(20), keep=3))
    checkpoints.save(tmp_path, make(30), keep=2)
    assert checkpoints.steps(tmp_path) == ["000000000010", "000000000030"]


def test_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*; train a run there first"):
        checkpoints.load_newest(tmp_path / "nothing")


def test_one_that_was_being_replaced_still_serves(tmp_path):
    """Killed between the two renames of a save of the same step: the old one stands aside under another name."""
    checkpoints.save(tmp_path, make(10, 1.0), keep=2)
    checkpoints.save(tmp_path, make(20, 2.0), keep=2).rename(tmp_path / ".replaced-000000000020")
    _, newest, skipped = checkpoints.load_newest(tmp_path)
    assert (newest.tensors["a/b"] == 2).all() and skipped == []
    checkpoints.save(tmp_path, make(30, 3.0), keep=3)
    assert sorted(os.listdir(tmp_path)) == ["000000000010", "000000000020", "000000000030"]


def test_the_first_format_still_reads(tmp_path):
    """One process, every tensor in one file, as version 1 wrote it."""
    tensors = {"parameters/log_alpha": torch.tensor(0.5), "generator": torch.zeros(4, dtype=torch.uint8)}
    data = safetensors.torch.save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    header = {"format": 1, "counters": {"env_steps": 10}, "config": {"env": "ant"}, "tensors_sha256": digest}
    header["sha256"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    old = tmp_path / "000000000010"
    old.mkdir()
    (old / "state.safetensors").write_bytes(data)
    (old / "state.json").write_text(json.dumps(header))
    _, loaded, skipped = checkpoints.load_newest(tmp_path)
    assert skipped == [] and loaded.size == 1 and loaded.counters == {"env_steps": 10}
    assert loaded.tensors["parameters/log_alpha"] == 0.5 and "generator" in loaded.shards[0]


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    path = checkpoints.save(tmp_path, make(10), keep=1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has checkpoint format 99, this version reads 1 to 3"):
        checkpoints.load(path)


def test_saving_and_loading_take_no_memory_of_their_own(tmp_path):
    """As much as there is of 256 MB: none while they are written, once while they are read."""
    line = [sys.executable, str(PROGRAMS / "saves.py"), str(tmp_path)]
    out = subprocess.run(line, capture_output=True, text=True, check=True, timeout=120, env=environ()).stdout
    saving, loading, total = map(float, out.split())
    assert saving < 40 and loading < 300 and total == 64 << 20, out


def test_a_full_disk_loses_nothing(small_disk):
    """A real, tiny file system: what was saved before stays, nothing half-written does, the sentence says so."""
    checkpoints.save(small_disk, make(10, 1.0), keep=2)
    with pytest.raises(
        CheckpointError, match=r"cannot write a checkpoint to .*: (No space left|File too large).*; nothing"
    ):
        checkpoints.save(small_disk, make(20, 2.0, size=2_000_000), keep=2)
    assert os.listdir(small_disk) == ["000000000010"]
    assert (checkpoints.load(small_disk / "000000000010").tensors["a/b"] == 1).all()
    checkpoints.save(small_disk, make(30, 3.0), keep=2)  # and there is room again


@pytest.mark.parametrize("moment", [0.004, 0.009, 0.013, 0.021, 0.034])
def test_kill_during_a_write_leaves_whole_checkpoints(tmp_path, moment):
    line = [sys.executable, str(PROGRAMS / "writes.py"), str(tmp_path)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environ())
    assert process.stdout is not None
    for _ in range(3):
        done = int(process.stdout.readline())
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    done = max([done, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
    process.wait()
    path, _, skipped = checkpoints.load_newest(tmp_path)
    assert skipped == [] and int(path.name) in (done, done + 1)
    for name in checkpoints.steps(tmp_path):
        whole = checkpoints.load(tmp_path / name)
        assert all((t == int(name)).all() for t in {**whole.tensors, **whole.shards[0]}.values())
    checkpoints.save(tmp_path, Checkpoint({}, {"env_steps": done + 2}, {}, {}), keep=2)
    assert all(name.isdigit() for name in os.listdir(tmp_path)), "a draft was left behind"
