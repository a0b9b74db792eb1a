"""`deepres eval`, `render` and `export` read a run's folder and change nothing in it."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import deepres
from deepres.commands.main import main
from helpers.tiny_runs import TINY, contents


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    deepres.train(TINY.replace(eval_every=99, total_steps=80), folder, progress=False)
    return folder


def state(folder: Path) -> tuple[dict[Path, bytes], dict[Path, int]]:
    """What is in every file, and when each file and folder was last changed."""
    every = [folder, *folder.rglob("*")]
    return contents(folder), {path: path.stat().st_mtime_ns for path in every}


def test_evaluating_and_rendering_change_nothing(run, tmp_path, capsys):
    before = state(run)
    main(["eval", str(run)])
    main(["eval", str(run), "--episodes", "3", "--seed", "7", "--device", "cpu"])
    main(["render", str(run), "--out", str(tmp_path), "--episodes", "1", "--format", "gif"])
    main(["export", str(run), "--out", str(tmp_path / "policy.onnx")])
    assert state(run) == before
    written = ["paths.pdf", "paths.png", "policy.gif", "policy.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    assert capsys.readouterr().out.count("at 80 env steps") == 2


def test_they_work_where_nothing_can_be_written(run, small_disk, sealed, tmp_path, capsys):
    copy = shutil.copytree(run, small_disk / "run")
    sealed()
    with pytest.raises(OSError):
        (copy / "new").touch()
    with pytest.raises(SystemExit):
        main(["render", str(copy)])
    assert "pictures cannot be written into" in capsys.readouterr().err
    main(["eval", str(copy)])
    main(["render", str(copy), "--out", str(tmp_path / "out"), "--episodes", "1", "--format", "gif"])
    main(["export", str(copy), "--out", str(tmp_path / "policy.onnx")])
    said = capsys.readouterr().out
    assert (tmp_path / "policy.onnx").stat().st_size > 10_000
    assert "at 80 env steps" in said and str(tmp_path / "out" / "policy.gif") in said


def test_by_default_pictures_go_into_the_runs_own_folder(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    main(["render", str(copy), "--episodes", "1", "--format", "gif"])
    added = contents(copy).keys() - contents(run).keys()
    assert {str(path) for path in added} == {"paths.pdf", "paths.png", "policy.gif"}


ANY = """a b'c"[d]*?$e$ {f}%s #\\ü😀
~"""


def test_any_name_is_a_name_and_what_is_to_be_typed_is_quoted(run, tmp_path, capsys, monkeypatch):
    """In a folder and a picture; what `deepres compare` says to type goes on with the run."""
    monkeypatch.chdir(tmp_path)
    for name in (ANY, "-dash"):
        shutil.copytree(run, name)
    main(["eval", ANY])
    main(["export", ANY])
    assert f"{ANY} at 80 env steps" in capsys.readouterr().out and Path(f"{ANY}.onnx").is_file()
    Path(ANY, "config.json").write_text(TINY.replace(eval_every=99, total_steps=120).to_json())
    main(["compare", "./-dash", ANY, "--out", f"new {ANY}/{ANY}.png"])
    said = capsys.readouterr().out
    advice = said[said.index("deepres train") : said.index(f"\nnew {ANY}")]
    assert Path(f"new {ANY}", f"{ANY}.pdf").is_file() and shlex.split(advice)[2:] == ["--resume", ANY]
    main(shlex.split(advice)[1:])
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    main(["eval", ANY])
    assert terminal.buffer.getvalue().startswith(
        ANY.encode("ascii", "backslashreplace") + b" at 120 env steps"
    )
