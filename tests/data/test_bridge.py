"""deepres.data.bridge: what is shared, what is copied, what is refused."""

import gc
import sys

import jax
import jax.numpy as jnp
import pytest
import torch

from deepres.data import bridge
from deepres.envs import xla

xla.prepare()  # before JAX's first computation

DTYPES = ["float32", "float16", "bfloat16", "int32", "int8", "uint8", "uint32", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_share_memory_and_keep_values(dtype):
    array = jnp.asarray([[0, 1, 2], [3, 1, 0]]).astype(dtype)
    tensor = bridge.to_torch(array)
    assert tensor.dtype == getattr(torch, dtype) and tensor.shape == array.shape
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    assert tensor.tolist() == array.tolist()
    back = bridge.to_jax(tensor)
    assert back.dtype == array.dtype and back.unsafe_buffer_pointer() == tensor.data_ptr()
    assert back.tolist() == array.tolist()


def test_a_write_in_torch_is_seen_by_jax_unless_copied():
    tensor = torch.zeros(5, 3)
    shared, copied = bridge.to_jax(tensor), bridge.to_jax(tensor, copy=True)
    tensor.fill_(7.0)
    assert float(shared.sum()) == 105.0
    assert float(copied.sum()) == 0.0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(100.0)[1:],
        torch.arange(3.0).expand(4, 3),
        torch.zeros(0, 3),
        torch.tensor(2.5),
        torch.ones(2, requires_grad=True),
    ],
    ids=["transposed", "unaligned", "expanded", "empty", "scalar", "needs_grad"],
)
def test_any_dense_tensor_crosses(tensor):
    array = bridge.to_jax(tensor)
    assert array.shape == tensor.shape and array.tolist() == tensor.tolist()


def test_wide_numbers_become_jax_ones():
    assert bridge.to_jax(torch.tensor([1.5], dtype=torch.float64)).dtype == jnp.float32
    wide = bridge.to_jax(torch.tensor([-3, 2**31 - 1]))
    assert wide.dtype == jnp.int32 and wide.tolist() == [-3, 2**31 - 1]


def test_each_side_keeps_the_memory_alive():
    array = jnp.arange(1000.0) + 1
    tensor = bridge.to_torch(array)
    del array
    gc.collect()
    other = bridge.to_jax(torch.full((1000,), 5.0))
    gc.collect()
    noise = [torch.rand(1000) for _ in range(50)] + [jnp.zeros(1000) + k for k in range(50)]
    assert tensor.tolist() == list(range(1, 1001)) and float(other.min()) == float(other.max()) == 5.0
    del noise


def test_a_shared_tensor_outlives_later_jitted_steps():
    step = jax.jit(lambda x: x * 1.5 + 1)
    x = jnp.ones((64, 31))
    tensor = bridge.to_torch(x)
    for _ in range(20):
        x = step(x)
    x.block_until_ready()
    assert bool((tensor == 1).all())


def test_wanted_device_is_where_it_lands():
    assert bridge.to_torch(jnp.ones(3), device="cpu").device.type == "cpu"
    device = jax.local_devices()[0]
    assert bridge.to_jax(torch.ones(3), device=device).devices() == {device}


def test_what_cannot_cross_is_refused_in_a_sentence():
    with pytest.raises(TypeError, match="to_torch wants a concrete JAX array, got Tensor"):
        bridge.to_torch(torch.ones(3))
    with pytest.raises(TypeError, match="got DynamicJaxprTracer; call it outside jit"):
        jax.jit(lambda x: bridge.to_torch(x))(jnp.ones(3))
    with pytest.raises(TypeError, match=r"pass jax\.random\.key_data"):
        bridge.to_torch(jax.random.key(0))
    with pytest.raises(TypeError, match="to_jax wants a dense torch tensor, got list"):
        bridge.to_jax([1.0])
    with pytest.raises(TypeError, match=r"got a torch\.sparse_coo one"):
        bridge.to_jax(torch.eye(3).to_sparse())


def test_without_jax_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(xla, "_version", lambda package: None if package == "jax" else "1.0")
    xla.prepare.cache_clear()
    bridge._jax.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"jax cannot be found; pip install 'deepres\[envs\]'"):
            bridge.to_jax(torch.ones(1))
    finally:
        monkeypatch.undo()
        xla.prepare()
    assert "jax" in sys.modules
