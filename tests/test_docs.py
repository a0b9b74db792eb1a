"""What the README and the site show is true: their Python runs, their commands parse, their tables are the files'."""

from __future__ import annotations

import re
import shlex
import sys
import types
from functools import wraps
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import deepres
from deepres import envs
from deepres.commands import configured, main
from deepres.envs.registry import find
from deepres.experiments import kept
from helpers.tiny_runs import ROOT, SIZES

RESULTS = ROOT / "docs" / "results"
SMALL = {name: value for name, value in SIZES.items() if name != "env"} | {"device": "cpu"}
"""Sizes that stand in the place of those that a document gives a run; all else is run as it is written."""


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python(page: str) -> str:
    """The page's Python, its blocks one after another."""
    blocks = re.findall(r"^```python\n(.*?)^```", text(page), re.M | re.S)
    assert blocks
    return "\n".join(blocks)


WITH_PYTHON = ("quickstart", "modules", "own", "training", "environments/mazes")


def test_python_is_run_of_every_page_that_has_some():
    """docs/ops.md's is held against the ops."""
    pages = {p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if "```python" in text(f"docs/{page}.md")} == {*WITH_PYTHON, "ops"}


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}.md" for page in WITH_PYTHON)])
def test_python_on_the_page_runs(page, tmp_path, monkeypatch, capsys):
    whole = deepres.Config
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deepres, "Config", lambda *name, **options: whole(*name, **options | SMALL))
    torch.manual_seed(0)
    told: dict[str, object] = {}
    exec(compile(python(page), page, "exec"), told)
    if page == "README.md":
        assert told["y"].shape == (512, 256) and told["loss"].isfinite() and told["action"].abs().max() <= 1
        assert told["phi"].trunk.stack.depth == 1024 and told["result"].env_steps == SMALL["total_steps"]
    if page == "docs/quickstart.md":
        assert told["loss"].item() < 0.8 * torch.tensor(128.0).log()
        assert len(told["step"].distance) == 4 and Path("runs/second").is_dir()
    if page == "docs/own.md":
        assert Path("runs/my_maze-crl-d4-s0/checkpoints").is_dir()
    if page == "docs/training.md":
        assert told["result"].ended == "total_steps" and capsys.readouterr().out.count("\n400 ") == 1
    if page == "docs/environments/mazes.md":
        assert told["env"].task.maze.walls.shape == (3, 5)


def test_ops_are_what_the_page_says_they_are_equal_to():
    plain: dict[str, object] = {"torch": torch, "F": F}
    exec(compile(python("docs/ops.md"), "docs/ops.md", "exec"), plain)
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    lag, event = torch.tensor([0, 3, 5, 0, 2, 6]), torch.tensor([True, True, False, False, True, False])
    hazards = (normal(6, 4), normal(6, 4), normal(6), normal(6))
    cases = {
        "residual_stack": (normal(3, 8), normal(8, 8, 8), normal(8, 8), normal(8, 8), normal(8, 8)),
        "info_nce": (normal(5, 3), normal(5, 3)),
        "hazard_nll": (*hazards, lag, event),
        "hazard_value": hazards,
    }
    for name, given in cases.items():
        ours = getattr(deepres, name)(*given, impl="reference")
        torch.testing.assert_close(plain[name](*given), ours, rtol=1e-9, atol=1e-9)


def commands(page: str) -> list[str]:
    """The page's lines that call `deepres`, without what stands before and behind."""
    joined = text(page).replace("\\\n", " ")
    found = re.findall(r"^ {4}(?:torchrun .* -m )?(deepres .*)$", joined, re.M)
    return [line for line in found if "..." not in line]


PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


@pytest.mark.usefixtures("forgotten")
def test_commands_on_the_pages_parse(tmp_path, monkeypatch, capsys):
    """Each is read by the real parser, to the last option; nothing is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setitem(sys.modules, "my_module", types.ModuleType("my_module"))
    ran: list[str] = []

    def unrun(command):
        @wraps(command)
        def parsed(*arguments, **options):
            ran.append(command.__name__)

        return parsed

    def read(command, own):
        def parsed(words, given):
            config, options = configured._parsed(command, own, words, given)
            if own is configured.Sweep:
                assert configured._grid(options, config, [])
            ran.append(command.__name__)

        return parsed

    places = {"train": configured.Place, "sweep": configured.Sweep, "doctor": configured.Machine}
    for name, own in places.items():
        monkeypatch.setitem(main.CONFIGURED, name, read(main.CONFIGURED[name], own))
    monkeypatch.setattr(main, "PLAIN", {name: unrun(one) for name, one in main.PLAIN.items()})
    nested = {
        name: (about, {sub: unrun(one) for sub, one in parts.items()})
        for name, (about, parts) in main.NESTED.items()
    }
    monkeypatch.setattr(main, "NESTED", nested)
    lines = {page: commands(page) for page in PAGES}
    assert len(lines["README.md"]) > 12 and sum(map(len, lines.values())) > 25
    for line in dict.fromkeys(line for found in lines.values() for line in found):
        words = shlex.split(line, comments=True)[1:]
        if "--resume" in words:
            folder = Path(words[words.index("--resume") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            algorithm = "crl" if "crl" in folder.name else "sac"
            (folder / "config.json").write_text(deepres.Config(algorithm, env="ant").to_json())
        before = len(ran)
        try:
            main.main(words)
        except SystemExit as stop:
            pytest.fail(f"{line}: status {stop.code}, {capsys.readouterr().err}")
        assert len(ran) == before + 1 or words == ["--version"], line


def test_tables_of_results_are_those_of_the_files():
    """`deepres experiment --keep docs/results` writes both."""
    assert (RESULTS / "README.md").read_text() == kept.index(RESULTS)
    begin, end = (text("README.md").index(mark) for mark in kept.MARKS)
    assert text("README.md")[begin + len(kept.MARKS[0]) : end] == f"\n\n{kept.table(RESULTS)}\n"


def test_every_task_and_every_public_name_is_on_a_page():
    pages = "".join(p.read_text() for p in (ROOT / "docs" / "environments").glob("*.md"))
    tasks = [name for name in envs.names() if not (re.search("_gen_|_eval", name) or find(name).own)]
    assert [name for name in tasks if not re.search(rf"\b{name}\b", pages)] == []
    public = set(re.findall(r"\w+", text("docs/api.md")))
    assert set(deepres.__all__) - {"__version__"} <= public
