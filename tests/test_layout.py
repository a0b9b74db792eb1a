"""The package as a stranger gets it: what it imports, what it ships, and what its names may not collide with."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import deepres

ROOT = Path(__file__).resolve().parent.parent

WITH_TORCH_ALONE = """
import sys, warnings
warnings.simplefilter("ignore")  # torch's own, without numpy
absent = set("numpy jax jaxlib mujoco triton cupy safetensors tyro rich matplotlib tensorboard imageio PIL".split())
class Without:
    # a finder that does not find what a bare installation does not have
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *args):
        return None if name.split(".")[0] in absent else self.finder.find_spec(name, *args)
    def find_distributions(self, context):
        found = getattr(self.finder, "find_distributions", lambda context: [])
        return [] if context.name in absent else found(context)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch, deepres
x = torch.randn(3, 8)
stack = deepres.ResidualStack(8, 4)
stack(x).sum().backward()
assert stack.weight.grad is not None
deepres.info_nce(x, x)
print(sorted(deepres.backends()))
try:
    deepres.train(deepres.Config(env="point_u_maze", num_envs=2))
except ImportError as error:
    print(error)
from deepres.__main__ import main
for words in (["--version"], ["doctor"], ["train"]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as stop:
        print(f"status {stop.code}")
"""


def test_core_needs_torch_alone_and_says_what_else_to_install(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITH_TORCH_ALONE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_with_path(),
    )
    assert result.returncode == 0, result.stderr
    ops, sentence, version, done, report = result.stdout.strip().split("\n", maxsplit=4)
    assert (version, done) == (f"deepres {deepres.__version__}", "status 0")
    here = (
        r"residual_stack +reference +available",
        r"matplotlib +not installed",
        "torch +" + re.escape(torch.__version__),
    )
    assert all(re.search(f"^{line}", report, re.M) for line in here), report
    *_, plan, done, refused = report.splitlines()
    assert re.fullmatch(r"no memory plan without environments: .*; pip install 'deepres\[envs\]'", plan)
    assert done == "status 0"
    assert refused == "status deepres: the command line needs tyro; pip install 'deepres[envs]'"
    assert ops == "['hazard', 'info_nce', 'policy', 'quasimetric', 'residual_stack', 'stem']"
    assert "pip install 'deepres[envs]'" in sentence
    assert not (tmp_path / "runs").exists()


def test_import_adds_little_to_torch():
    """No JAX, MuJoCo, Triton, CuPy or command line behind `import deepres`: that is what makes it quick. Nor behind the
    modules that it lists and imports when they are asked for."""
    script = """if True:
        import sys, deepres
        assert {"bridge", "testing", "Config", "__version__"} <= set(dir(deepres))
        assert not {"deepres.data.bridge", "deepres.testing"} & sys.modules.keys()
        assert deepres.bridge.to_torch and deepres.testing.worst_error and not hasattr(deepres, "bridges")
        print(*sys.modules)"""
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"jax", "mujoco", "cupy", "tyro", "rich", "matplotlib", "tensorboard", "imageio", "safetensors"}
    heavy |= {"torch._dynamo", "torch._inductor"}  # the compiler is a second of imports by itself
    assert heavy.isdisjoint(loaded.stdout.split())


@pytest.mark.checkout
def test_links_are_relative_and_lead_to_the_folders():
    for name in ("kernels", "envs"):
        link = ROOT / "deepres" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}"
        assert (ROOT / name / "__init__.py").is_file()


def test_nobody_imports_the_folders_by_their_short_names():
    """`kernels` and `envs` alone are other people's packages; ours are deepres.kernels and deepres.envs."""
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            assert not {n.split(".")[0] for n in names} & {"kernels", "envs"}, path


@pytest.mark.checkout
def test_a_wheel_of_the_sdist_ships_everything_without_a_compiler(tmp_path):
    """The sdist holds what git does, and nothing that lies beside it; no compiler is not an error; every sub-package
    and asset is in the wheel."""
    source = tmp_path / "source"
    tracked = _copy_tracked(source)
    for stray in ("docs/_build/index.html", "bench/results/new/x.json", "runs/r/config.json", "tests/a.pyc"):
        (source / stray).parent.mkdir(parents=True, exist_ok=True)
        (source / stray).write_text("made here")
    env = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}

    def build(what: str, folder: Path) -> Path:
        script = f"from setuptools import build_meta; build_meta.build_{what}({str(tmp_path)!r})"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return next(tmp_path.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[what]))

    with tarfile.open(build("sdist", source)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    links = {"kernels/cuda": "csrc/cuda", "deepres/kernels": "kernels", "deepres/envs": "envs"}
    needed = tracked - links.keys() - {".ci/run", ".gitignore"}
    assert needed <= held, sorted(needed - held)
    known = needed | {"PKG-INFO", "setup.cfg"}
    for link, folder in links.items():  # an sdist has none: what lies behind one may be there twice
        known |= {link + name.removeprefix(folder) for name in known if name.startswith(f"{folder}/")}
    others = {name for name in held - known if not name.startswith("deepres.egg-info/")}
    assert others == set()

    shipped = set(zipfile.ZipFile(build("wheel", unpacked)).namelist())
    wanted = {
        f"deepres/{path.relative_to(ROOT / 'deepres' if folder == 'deepres' else ROOT)}"
        for folder in ("deepres", "kernels", "envs")
        for pattern in ("*.py", "*.typed", "*.xml")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert len(wanted) > 30 and "deepres/kernels/residual_stack/op.py" in wanted
    assert wanted <= shipped, sorted(wanted - shipped)
    assert not [name for name in shipped if name.split("/")[0] in ("kernels", "envs", "tests", "bench")]


def test_the_citation_names_the_version_and_the_paper():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {deepres.__version__}\n" in text and "arXiv:2503.14858" in text


def test_readme_commands_exist():
    """What the README tells a stranger to type is there to be typed."""
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"(?<!deepres data )\bmake (\w+)", text))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    for script in re.findall(r"python (bench/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    for picture in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / picture).exists(), picture


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_says_what_takes_minutes_before_it_begins(tmp_path, target):
    """pip is quiet: how much comes, and how long that takes."""
    make = ["make", "-n", target, f"VENV={tmp_path}"]
    steps = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before_venv, after = re.split(r"^.* -m venv .*$", steps, flags=re.M)
    before_pip, _ = re.split(r"^.* -m pip install .*$", after, flags=re.M)
    assert "echo" in before_venv and "a virtual environment" in before_venv
    assert re.search(r"echo.*\d MB", before_pip) and re.search(r"echo.*\d minutes", before_pip)


SOURCE = (".py", ".cpp", ".h", ".cu", ".cuh")


@pytest.mark.parametrize("folder", ["deepres", "kernels", "envs", "csrc", "bench", "tests"])
def test_files_stay_readable(folder):
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in SOURCE and p.is_file()]
    assert files
    assert {str(p): n for p in files if (n := len(p.read_text().splitlines())) > 400} == {}


# --- layers ---

LAYERS = (
    ("options", "testing", "_version", "initialisation"),
    ("kernels", "envs"),
    ("machine", "acting", "modules", "env_options"),
    ("networks", "parameters"),
    ("data",),
    ("algorithms",),
    ("config",),
    ("ranks",),
    ("runs",),
    ("training",),
    ("deploy",),
    ("policy",),
    ("compress",),
    ("report",),
    ("experiments",),
    ("commands",),
    ("__main__", "__init__"),
)
"""The modules and folders of deepres/, the lowest first: each imports what stands in a line above its own, and its own
folder's modules. Of two in one line neither imports the other."""


def test_imports_run_one_way():
    line = {name: number for number, names in enumerate(LAYERS) for name in names}
    modules = _modules()
    assert {_layer(module) for module in modules} == line.keys()
    upward = [
        f"{module} imports {other}"
        for module, path in modules.items()
        for other in _imported(module, path, modules)
        if _layer(module) != _layer(other) and line[_layer(other)] >= line[_layer(module)]
    ]
    assert upward == []


def test_no_module_imports_itself_by_way_of_others():
    modules = _modules()
    waiting = {module: _imported(module, path, modules) for module, path in modules.items()}
    while free := {module for module, others in waiting.items() if not others & waiting.keys()}:
        waiting = {module: others for module, others in waiting.items() if module not in free}
    circles = {module: others & waiting.keys() for module, others in waiting.items()}
    assert circles == {}  # what is left lies on a circle, or leads to one


def test_layering_sees_every_kind_of_import():
    """The two tests above are only as good as what they read."""
    modules = dict.fromkeys(("deepres", "deepres.a", "deepres.a.b", "deepres.c"), ROOT)
    source = """
import deepres.a.b
from deepres import c, _C, Config
if TYPE_CHECKING:
    from deepres.c import nothing
def later():
    from deepres.a import b, name
"""
    assert _names(ast.parse(source), modules) == {"deepres", "deepres.a", "deepres.a.b", "deepres.c"}
    assert _names(ast.parse("from deepres import _C"), modules) == set()
    assert _names(ast.parse("if typing.TYPE_CHECKING:\n    import deepres.c"), modules) == set()


def test_what_is_imported_is_there():
    """In a function, too, which no import of the package runs."""
    modules = _modules()
    asked = {
        (name, node.module)
        for name, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "deepres"
    }
    assert len(asked) > 300
    assert {pair for pair in asked if pair[1] not in modules} == set()


def test_words_of_one_algorithm_stay_where_it_is():
    """phi, psi and critics are those of algorithms: what runs them knows none of them."""
    named = {
        module
        for module, path in _modules().items()
        if re.search(r"(?<![a-z])(phi|psi)(?![a-z])|critic", path.read_text())
    }
    allowed = ("algorithms", "experiments", "networks", "kernels", "envs")
    assert {module for module in named if _layer(module) not in allowed} == set()


def test_every_folder_of_the_package_is_a_package():
    for folder in ("deepres", "kernels", "envs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.parent


def test_no_two_test_files_share_a_name():
    """pytest imports them by their names alone."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def _modules() -> dict[str, Path]:
    """The package's modules by name, those behind its links by the names that they have in it."""
    found: dict[str, Path] = {}
    for folder in ("deepres", "kernels", "envs"):
        for path in (ROOT / folder).rglob("*.py"):
            at = path.relative_to(ROOT).with_suffix("").parts
            if at[:2] in (("deepres", "kernels"), ("deepres", "envs")):  # a link that was followed
                continue
            parts = [*(() if folder == "deepres" else ("deepres",)), *at]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _imported(module: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that `module` imports itself, at its head or in a function."""
    return _names(ast.parse(path.read_text()), modules) - {module}


def _names(tree: ast.AST, modules: dict[str, Path]) -> set[str]:
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        return set().union(*(_names(node, modules) for node in tree.orelse))
    if isinstance(tree, ast.Import):
        return {alias.name for alias in tree.names} & modules.keys()
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, f"relative import of {tree.module}"
        base = tree.module or ""
        full = {f"{base}.{alias.name}" for alias in tree.names} - {"deepres._C"}  # the extension
        return {name if name in modules else base for name in full} & modules.keys()
    return set().union(*(_names(node, modules) for node in ast.iter_child_nodes(tree)))


def _sources() -> list[Path]:
    return [
        p
        for folder in ("deepres", "kernels", "envs", "bench", "tests")
        for p in (ROOT / folder).rglob("*.py")
    ]


def _with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _copy_tracked(target: Path) -> set[str]:
    """The tree as git has it, links included, without what was built in it; returns its files' names."""
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    names = {name for name in asked.stdout.split("\0") if os.path.lexists(ROOT / name)} - {""}
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return names
