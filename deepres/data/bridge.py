"""JAX arrays as torch tensors and back, by DLPack: shared memory where both are on one device, else one copy.

Shared memory has two owners, so two rules keep it whole:

- JAX arrays never change. A tensor from `to_torch` is for reading; clone it before writing into it.
- XLA may read an array from `to_jax` later than the call that takes it returns. Leave the tensor unchanged
  after handing it over (a fresh tensor a step, as a policy's output is), or pass copy=True.

Each side keeps the memory alive for as long as it holds its object, whatever the other side does. XLA writes
over a buffer only if a jitted function donates it; deepres.envs donates nothing, so no tensor made from a
state changes.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import jax

# JAX without its 64-bit mode holds these as their 32-bit kin, so torch converts them first.
_NARROW = {torch.float64: torch.float32, torch.int64: torch.int32}


@cache
def _jax() -> ModuleType:
    """JAX, with XLA's settings made before its first use; a sentence where it is not installed."""
    from deepres.envs import xla

    xla.prepare()
    import jax

    return jax


@cache
def _home() -> jax.Device:
    return _jax().local_devices()[0]


def to_torch(array: jax.Array, device: torch.device | str | None = None) -> Tensor:
    """`array` as a tensor of the same shape and dtype, to be read only.

    array: a JAX array on one device, any shape. device: where the tensor is wanted (by default where the
    array is); another device costs one copy, the same one none.
    Raises: TypeError if `array` is not a JAX array of plain numbers; ImportError without JAX.
    """
    jax = _jax()
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        raise TypeError(
            f"to_torch wants a concrete JAX array, got {type(array).__name__}; call it outside jit"
        )
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(f"to_torch wants plain numbers, got {array.dtype}; pass jax.random.key_data(key)")
    devices = array.devices()
    if len(devices) > 1:
        raise TypeError(f"to_torch wants an array on one device, got one on {len(devices)}; gather it first")
    if next(iter(devices)).platform != "cpu" and not torch.cuda.is_available():
        array = jax.device_put(array, jax.local_devices(backend="cpu")[0])
    tensor = torch.from_dlpack(array)
    return tensor if device is None else tensor.to(device)


def to_jax(tensor: Tensor, device: jax.Device | None = None, *, copy: bool = False) -> jax.Array:
    """`tensor`, detached, as a JAX array of the same shape; 64-bit numbers become 32-bit ones, as JAX has it.

    tensor: dense, any shape and device; memory is shared if it is contiguous and starts at a multiple of 64
    bytes (torch's own allocations do). device: where the array is wanted, by default JAX's first device,
    where environments live; another device than the tensor's costs one copy. copy: True never shares memory.
    Raises: TypeError if `tensor` is not a dense tensor; ImportError without JAX.
    """
    jax = _jax()
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        got = f"a {tensor.layout} one" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"to_jax wants a dense torch tensor, got {got}")
    if device is None:
        device = _home()
    if tensor.is_cuda and device.platform != "gpu":
        tensor = tensor.cpu()
    if not jax.config.jax_enable_x64:
        tensor = tensor.to(_NARROW.get(tensor.dtype, tensor.dtype))
    tensor = tensor.detach().contiguous()
    array = jax.dlpack.from_dlpack(tensor.clone() if copy else tensor)
    return array if device in array.devices() else jax.device_put(array, device)
