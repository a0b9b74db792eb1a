"""Logs on disks that fill and under processes that are killed."""

from __future__ import annotations

import builtins
import errno
import sys
import warnings

import pytest

from deepres.config import Config
from deepres.report.curves import plot_curves
from deepres.runs import logs
from deepres.runs.files import read_rows
from deepres.runs.folder import RunFolder
from deepres.runs.logs import CsvLog, RunLog, require_packages


def row(env_steps: int) -> dict[str, float]:
    return {"env_steps": env_steps, "seconds": env_steps / 10}


class Full:
    """A file that takes some bytes of what is written, then has no room."""

    def __init__(self, file, room: int):
        self._file, self._room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: self._room])
        self._file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 4, 12, 20])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_row_on_a_full_disk_is_whole_or_not_there(tmp_path, monkeypatch, rows, room):
    log = CsvLog(tmp_path / "metrics.csv", 0)
    for i in range(rows):
        log.write(row(i))

    def full(*arguments) -> Full:
        return Full(builtins.open(*arguments), room)

    monkeypatch.setattr(logs, "open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        log.write(row(10))
    monkeypatch.undo()
    for n in (20, 30):
        log.write(row(n))
    kept = [*range(rows), 20, 30]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "env_steps,seconds",
        *(f"{n},{n / 10}" for n in kept),
    ]
    CsvLog(tmp_path / "metrics.csv", 20)
    assert [r["env_steps"] for r in read_rows(tmp_path / "metrics.csv")] == kept[:-1]


@pytest.mark.parametrize("left", ["", "env_st", "env_steps,seconds"])
def test_a_header_that_was_cut_is_written_anew(tmp_path, left):
    (tmp_path / "metrics.csv").write_text(left)
    CsvLog(tmp_path / "metrics.csv", 0).write(row(10))
    assert (tmp_path / "metrics.csv").read_text() == "env_steps,seconds\n10,1.0\n"


def test_a_file_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "metrics.csv").write_text("name,age\nAnn,7\n")
    with pytest.raises(ValueError, match="is not a log of a run: it has no column env_steps; move it away"):
        CsvLog(tmp_path / "metrics.csv", 0)
    assert (tmp_path / "metrics.csv").read_text() == "name,age\nAnn,7\n"


def test_whoever_reads_a_log_sees_whole_rows_only(tmp_path):
    """Cut short, two on one line, bytes of a disk that lost power."""
    text = b"env_steps,seconds\n1,0.1\n2\n3,0.33,0.3\n\n\0\0\xff\n4,0.4\n5,0."
    (tmp_path / "metrics.csv").write_bytes(text)
    assert [r["env_steps"] for r in read_rows(tmp_path / "metrics.csv")] == [1, 4, 5]


def test_curves_are_drawn_of_whole_rows(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim(Config("crl", env="point_u_maze"), resume=False)
    folder.evaluations.write_text("env_steps,success_any,time_at_goal\n0,0,0\n10,0.5")
    folder.metrics.write_text("env_steps,critic_loss,actor_loss,entropy,alpha\n10,1,1,1,1\n2")
    assert plot_curves(tmp_path, tmp_path / "curves.png").stat().st_size > 1000


def test_each_log_goes_on_when_there_is_room_again(tmp_path, monkeypatch):
    """TensorBoard's writer is dead for ever after a disk refused it: another one takes its place. The CSV file does
    not wait for it."""
    folder = RunFolder(tmp_path)
    folder.claim(Config("crl", env="point_u_maze"), resume=False)
    log = RunLog(folder, -1)
    log.write("train", row(10))
    writer = log._events._writer

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "flush", refuse)
    with pytest.warns(
        RuntimeWarning, match="logs are incomplete: .*No space left on device; free some space"
    ):
        log.write("train", row(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.write("train", row(30))
    log.close()
    assert [r["env_steps"] for r in read_rows(folder.metrics)] == [10, 20, 30]
    assert len(list(folder.tensorboard.iterdir())) == 2
    assert any(
        b"hparams" in file.read_bytes() and b"point_u_maze" in file.read_bytes()
        for file in folder.tensorboard.iterdir()
    )


def test_a_package_that_is_not_there_is_told_before_anything_begins(monkeypatch):
    require_packages()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"training needs safetensors; pip install 'deepres\[envs\]'"):
        require_packages()
