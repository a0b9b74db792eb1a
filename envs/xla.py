"""Makes XLA fit for physics: to be called before the first JAX computation, never by a user.

Two traps of XLA's CPU backend are set aside here. jaxlib 0.10's fusion emitters recompute the parents of a
kinematic chain once per descendant (a nine-link arm steps hundreds of times slower; short chains only compile
more slowly). And its thread pool, which has one thread per core, can lock up when there are only two.

A program of more than a thousand floating-point operations goes to that pool while the caller only waits, and waking
a thread for it costs up to 50 us, a fifteenth of a step of 64 ants on the C engine. So XLA is told to compute on the
thread that calls, which is also as good for MJX.

Compiled steps are kept on disk, for XLA takes seconds to compile one and every command would do it again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

FUSION_FLAG = "--xla_cpu_use_fusion_emitters=false"
MIN_POOL_THREADS = 8


@cache
def prepare() -> None:
    """Set what XLA reads when its first backend starts: the fusion flag (jaxlib 0.10 only), NPROC, that a CPU computes
    on the thread that calls (jax_cpu_enable_async_dispatch=False), and that on a GPU memory is taken as it is needed:
    PyTorch learns on the same card (XLA_PYTHON_CLIENT_PREALLOCATE=false).

    What the user set stays as it is. If JAX has computed something already it is too late, and
    one RuntimeWarning says what that costs. Raises ImportError if JAX or MuJoCo's MJX is not installed.
    """
    missing = [name for name in ("jax", "jaxlib", "mujoco", "mujoco-mjx") if _version(name) is None]
    if missing:
        raise ImportError(
            f"deepres.envs needs JAX and MuJoCo MJX, but {', '.join(missing)} cannot be found; "
            "pip install 'deepres[envs]'"
        )
    flags = os.environ.get("XLA_FLAGS", "")
    wants_flag = (_version("jaxlib") or "").startswith("0.10.") and "xla_cpu_use_fusion_emitters" not in flags
    wants_pool = "NPROC" not in os.environ and (os.cpu_count() or 1) < MIN_POOL_THREADS
    if _xla_has_started():
        if not wants_flag and not wants_pool:
            return
        warnings.warn(
            "JAX was in use before deepres.envs, so XLA's CPU settings came too late: jointed robots may "
            f"step slowly and compile longer; import deepres.envs first, or set XLA_FLAGS={FUSION_FLAG} and "
            f"NPROC={MIN_POOL_THREADS} in the environment",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    if wants_flag:
        os.environ["XLA_FLAGS"] = f"{flags} {FUSION_FLAG}".strip()
    if wants_pool:
        os.environ["NPROC"] = str(MIN_POOL_THREADS)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    with suppress(AttributeError):  # a later JAX may know no such setting
        jax.config.update("jax_cpu_enable_async_dispatch", False)


# What the environments are computed with: name in jax.config -> (its context manager in jax, the value).
_SETTINGS = {
    "jax_enable_x64": ("enable_x64", False),
    "jax_default_prng_impl": ("default_prng_impl", "threefry2x32"),
    "jax_enable_custom_prng": ("enable_custom_prng", False),
    "jax_threefry_partitionable": ("threefry_partitionable", True),
    "jax_numpy_dtype_promotion": ("numpy_dtype_promotion", "standard"),
    "jax_numpy_rank_promotion": ("numpy_rank_promotion", "allow"),
}


def settled() -> AbstractContextManager[Any]:
    """While it lasts, JAX has the settings that environments are written for; what a project has set for itself, before
    or after importing them, is as it was afterwards. Nothing else reads or draws otherwise."""
    import jax

    config = jax.config
    others = [
        (context, value) for name, (context, value) in _SETTINGS.items() if getattr(config, name) != value
    ]
    if not others:
        return _AS_IT_IS
    stack = ExitStack()
    for context, value in others:
        stack.enter_context(getattr(jax, context)(value))
    return stack


_AS_IT_IS: AbstractContextManager[Any] = nullcontext()


def require_platform() -> None:
    """Raise RuntimeError, in a sentence, where JAX_PLATFORMS leaves JAX nothing to compute on."""
    import jax

    try:
        jax.local_devices()
    except (AssertionError, RuntimeError) as error:  # JAX's own words, or none of its own
        config: Any = jax.config
        asked = config.jax_platforms
        if not asked:
            raise
        why = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "no such device"
        raise RuntimeError(
            f"JAX finds none of JAX_PLATFORMS={asked} on this machine ({why}); unset JAX_PLATFORMS, or set it to cpu"
        ) from None


@cache
def keep_compiled() -> None:
    """Let JAX keep what it compiles in the user's cache folder, unless the user has set a cache already.

    The folder is $XDG_CACHE_HOME/deepres (by default ~/.cache/deepres), or the one that DEEPRES_COMPILE_CACHE
    names; DEEPRES_COMPILE_CACHE=0 keeps nothing. A folder that cannot be made, or is not this user's, is left
    alone: JAX runs the code that it finds there. Code fits one kind of processor, so each kind has its own.
    """
    import jax

    config: Any = jax.config
    choice = os.environ.get("DEEPRES_COMPILE_CACHE", "")
    if choice == "0" or config.jax_compilation_cache_dir is not None:
        return
    try:
        root = Path(choice or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deepres").expanduser()
        folder = root / f"xla-{_processor()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return
    if ours and os.access(folder, os.W_OK):
        config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> str:
    """A short name for this kind of processor: its architecture and the instruction sets it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _xla_has_started() -> bool:
    """Whether XLA has read its environment: it does so with its first backend, not when JAX is imported."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bool(getattr(bridge, "_backends", True))
