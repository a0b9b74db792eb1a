"""What a caller has set of PyTorch, JAX and this process changes no run, and stays as it was."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import pytest
import torch

import deepres
from deepres.data.environments import open_environments
from deepres.report.curves import plot_curves
from deepres.runs import checkpoint as checkpoints
from deepres.training.loop import load_run, train
from helpers.tiny_runs import TINY, different, environ

CONFIG = TINY.replace(total_steps=80, eval_every=99)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(CONFIG, folder, progress=False)
    return folder


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def device():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SETTINGS = [
    (double, deterministic, torch.no_grad),
    (device, torch.inference_mode),
    (lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16)),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_and_its_policy_are_the_same_under_any_setting(undisturbed, tmp_path, settings):
    plain = deepres.Policy.load(undisturbed)
    obs = torch.randn(5, plain.sizes.state + plain.sizes.goal)
    action = plain.act(obs)
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting())
        result = train(CONFIG, tmp_path / "run", progress=False)
        policy = deepres.Policy.load(tmp_path / "run")
        acted = policy.act(obs)
        figures = policy.evaluate()[0]
        loaded = load_run(tmp_path / "run").evaluate()[0]
        policy.save(tmp_path / "policy.safetensors")
    a, b = (checkpoints.load_newest(run / "checkpoints")[1] for run in (undisturbed, tmp_path / "run"))
    assert different(a, b) == [] and figures == loaded == result.after
    assert torch.equal(acted, action) and acted.dtype == torch.float32
    assert torch.equal(deepres.Policy.load(tmp_path / "policy.safetensors").act(obs), action)


def test_threads_and_backend_stay_the_callers(undisturbed, tmp_path):
    import matplotlib

    before = torch.get_num_threads(), matplotlib.get_backend()
    torch.set_num_threads(2)
    matplotlib.use("svg")
    try:
        train(CONFIG.replace(threads=1), tmp_path / "run", progress=False)
        run = load_run(tmp_path / "run")
        run.evaluate()
        plot_curves(tmp_path / "run", tmp_path / "curves.png")
        assert (torch.get_num_threads(), matplotlib.get_backend()) == (2, "svg")
    finally:
        torch.set_num_threads(before[0])
        matplotlib.use(before[1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resume": "False"}, "resume must be True or False, got 'False'"),
        ({"progress": 0}, "progress must be True or False, got 0"),
    ],
)
def test_flags_are_flags(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(CONFIG, tmp_path / "run", **changes)


JAX_SETTINGS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_enable_custom_prng": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}


@contextmanager
def set_otherwise():
    """As a project sets JAX for itself, or by the environment's JAX_ENABLE_X64=1 and so on."""
    before = {name: getattr(jax.config, name) for name in JAX_SETTINGS}
    for name, value in JAX_SETTINGS.items():
        jax.config.update(name, value)
    yield
    assert {name: getattr(jax.config, name) for name in JAX_SETTINGS} == JAX_SETTINGS
    for name, value in before.items():
        jax.config.update(name, value)


def made():
    return open_environments("point_u_maze", 2, episode_length=3)


def stepped(env) -> torch.Tensor:
    """What is observed over some episodes, one of them begun by hand; and what a checkpoint would hold."""
    step = env.reset(7)
    seen = []
    for _ in range(5):
        step = env.step(step, torch.full((2, 2), 0.5))
        seen.append(step.obs.clone())
    step = env.begin_anew(step, torch.tensor([1]), torch.tensor([9], dtype=torch.int32), 3)
    step = env.load_state_tensors(step, env.state_tensors(step))
    assert bool(env.reached(step.obs[:, :4], step.obs[:, :2]).all())
    return torch.stack([*seen, step.obs])


def test_jax_as_a_project_has_set_it_steps_the_same_environments():
    """Set before the environments are made, or after."""
    env = made()
    plain = stepped(env)
    with set_otherwise():
        after, before = stepped(env), stepped(made())
    assert plain.dtype == torch.float32 and torch.equal(after, plain) and torch.equal(before, plain)


WITHOUT_A_HOME = """
import os, pwd, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from pathlib import Path
from matplotlib.figure import Figure
from deepres.envs import xla
from deepres.kernels import cuda_program
from deepres.report.figures import save
import jax
xla.keep_compiled()
assert jax.config.jax_compilation_cache_dir is None
cuda_program.compile_program = lambda *_: (b"code", "")
cuda_program._key = lambda *_: "key"
assert cuda_program.cached_program("residual_stack.cu", {}, "sm_90a") == b"code"
figure = Figure(figsize=(1, 1))
figure.text(0, 0, "a")
save(figure, Path("f.png"))
"""


def test_a_user_without_a_home_keeps_nothing_and_draws(tmp_path):
    """An unknown user id, as containers have it: no cache of programs, and matplotlib's own in a folder for a while."""
    places = ("HOME", "XDG_", "MPLCONFIGDIR", "DEEPRES_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR")
    nowhere = {name: value for name, value in environ().items() if not name.startswith(places)}
    line = [sys.executable, "-c", WITHOUT_A_HOME]
    done = subprocess.run(line, cwd=tmp_path, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pdf", "f.png"]
