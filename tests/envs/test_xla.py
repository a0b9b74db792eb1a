"""XLA is made fit for physics before it starts, and what it compiles is kept where the user says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from deepres.envs import xla


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_names_need_no_jax_and_xla_is_prepared_before_it_starts():
    out = run_python(
        "import os, sys\n"
        "os.environ.pop('XLA_FLAGS', None); os.environ.pop('NPROC', None); os.cpu_count = lambda: 2\n"
        "from deepres import envs; envs.names(); assert 'jax' not in sys.modules\n"
        "import jax; envs.make_task('reacher')\n"  # JAX imported, but nothing computed: not too late
        "print(os.environ.get('XLA_FLAGS'), os.environ['NPROC'], jax.numpy.ones(3).sum())\n"
        "print(jax.config.read('jax_cpu_enable_async_dispatch'))\n"
        "envs.make('reacher', num_envs=2, engine='c').reset(); assert 'mujoco.mjx' not in sys.modules\n"
    )
    flag = "--xla_cpu_use_fusion_emitters=false" if jax.lib.__version__.startswith("0.10.") else "None"
    assert out.split() == [flag, "8", "3.0", "False"]


def test_too_late_is_said_once_and_the_users_own_flags_stay():
    out = run_python(
        "import os, warnings\n"
        "os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=false'; os.environ.pop('NPROC', None)\n"
        "os.cpu_count = lambda: 2\n"
        "import jax; jax.numpy.ones(3).sum()\n"
        "from deepres import envs\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); envs.make_task('reacher'); envs.make_task('reacher')\n"
        "print(sum('came too late' in str(w.message) for w in caught), os.environ['XLA_FLAGS'])"
    )
    assert out.split() == ["1", "--xla_cpu_enable_fast_math=false"]


def test_a_platform_that_is_not_here_is_one_sentence():
    """The first is known to JAX and has no device, the second is no platform; a third with cpu beside it works."""
    out = run_python(
        "import jax\n"
        "from deepres import envs\n"
        "for platforms in ('cuda', 'nonsense', 'cuda,cpu'):\n"
        "    jax.config.update('jax_platforms', platforms)\n"
        "    try:\n"
        "        print(envs.make('point_u_maze', 2).engine)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n",
        JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES="",
    ).splitlines()  # fmt: skip
    ends = "unset JAX_PLATFORMS, or set it to cpu"
    assert out[0].startswith("JAX finds none of JAX_PLATFORMS=cuda on this machine (") and out[0].endswith(
        ends
    )
    assert out[1].startswith("JAX finds none of JAX_PLATFORMS=nonsense on this machine (Unable to initialize")
    assert out[1].endswith(ends) and out[2:] == ["c"]


def test_compiled_code_is_kept_where_the_user_says(tmp_path):
    code = (
        "from deepres import envs; envs.make_task('reacher')\n"
        "import jax; jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "print(jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(5)).sum(), jax.config.jax_compilation_cache_dir)"
    )
    total, folder = run_python(code, XDG_CACHE_HOME=str(tmp_path), DEEPRES_COMPILE_CACHE="").split()
    assert total == "20.0" and folder.startswith(f"{tmp_path}/deepres/xla-")
    kept = {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    assert kept and Path(folder).stat().st_mode & 0o077 == 0
    total, _ = run_python(code, XDG_CACHE_HOME=str(tmp_path), DEEPRES_COMPILE_CACHE="").split()
    assert total == "20.0"
    assert kept == {
        path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()
    }  # found, not rewritten


@pytest.mark.parametrize("choice", ["0", "/proc/cannot/be/made"])
def test_compiled_code_is_not_kept_where_it_cannot_or_must_not(choice, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("DEEPRES_COMPILE_CACHE", choice)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        xla.keep_compiled.__wrapped__()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
