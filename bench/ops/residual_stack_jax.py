"""The op residual_stack as the published code has it: the same network in JAX under jit.

One array for each layer's kernel, bias, scale and shift, the layers unrolled in Python, as a Flax module
builds it. The maths, the inputs and the gradients asked for are those of the PyTorch contestants.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness.contestants import Case, Prepared
from bench.harness.workers import Unavailable, use_threads
from bench.ops.residual_stack import inputs
from bench.published.crl import PARAMETERS
from bench.published.crl_jax import blocks, layer


def jitted(case: Case, variant: str) -> Prepared:
    if case.device == "cpu":
        use_threads(torch.get_num_threads())
    try:
        import jax
        import jax.numpy as jnp
        import numpy as np
    except ImportError as error:
        raise Unavailable(f"{error}; pip install 'deepres[envs]'") from None
    if case.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        raise Unavailable("this JAX sees no GPU; pip install 'jax[cuda13]'")
    kind = jnp.bfloat16 if case.precision == "bf16" else jnp.float32
    jax.config.update("jax_default_matmul_precision", "highest" if case.precision == "fp32" else "default")

    def forward(layers: Any, x: Any) -> Any:
        return blocks(x, layers, partial(layer, kind=kind))

    def forward_backward(layers: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(forward, layers, x)
        return y, *pull(dy)

    arrays = {name: np.asarray(tensor.cpu()) for name, tensor in inputs(case).items()}
    layers = [tuple(jnp.asarray(arrays[name][l]) for name in PARAMETERS) for l in range(case.depth)]
    x, dy = jnp.asarray(arrays["x"]), jnp.asarray(arrays["dy"])
    call = jax.jit(forward) if case.mode == "forward" else jax.jit(forward_backward)
    arguments = (layers, x) if case.mode == "forward" else (layers, x, dy)

    def named(result: Any) -> dict[str, Tensor]:
        y, dlayers, dx = result
        stacked = (np.stack([np.asarray(d[i]) for d in dlayers]) for i in range(len(PARAMETERS)))
        tensors = [torch.from_numpy(np.array(t)).to(case.device) for t in (y, dx, *stacked)]
        return dict(zip(("y", "dx", *(f"d{name}" for name in PARAMETERS)), tensors, strict=True))

    last: list[Any] = [None]

    def run() -> Any:
        last[0] = call(*arguments)
        return last[0]

    return Prepared(run, named, lambda: jax.block_until_ready(last[0]), timed=run)
