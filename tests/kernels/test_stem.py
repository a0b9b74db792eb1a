"""The end of a network's stem: the reference against its equations, and where networks call it."""

import pytest
import torch
import torch.nn.functional as F

from deepres.kernels.stem.op import norm_activation
from deepres.networks import Encoder
from deepres.testing import assert_no_worse

PARTS = ("a", "du", "dbias", "dscale", "dshift")


def tensors(batch, width, device="cpu"):
    """u, bias, scale, shift, da."""
    g = torch.Generator().manual_seed(batch + width)
    shapes = [(batch, width), *[(width,)] * 3, (batch, width)]
    u, bias, scale, shift, da = (torch.randn(s, generator=g).to(device) for s in shapes)
    return 3 * u + 1, bias, 1 + 0.3 * scale, 0.3 * shift, da


def parts(given, activation, impl, dtype=torch.float32):
    """a and all gradients."""
    *leaves, da = (t.to(dtype) for t in given)
    leaves = [t.clone().requires_grad_() for t in leaves]
    a = norm_activation(*leaves, activation=activation, impl=impl)
    return [a.detach(), *torch.autograd.grad(a, leaves, da)]


def assert_all_no_worse(batch, width, impl, device="cpu", hair=2e-7):
    given = tensors(batch, width, device)
    for activation in ("swish", "relu"):
        fused, plain = (parts(given, activation, i) for i in (impl, "reference"))
        truth = parts(given, activation, "reference", torch.float64)
        for name, *values in zip(PARTS, fused, plain, truth, strict=True):
            assert_no_worse(f"{activation} [{batch}, {width}]: {name}", *values, hair=hair)
        assert all(map(torch.equal, fused, parts(given, activation, impl)))
        u, *vectors, da = given
        twice = []
        for i in (impl, "reference"):
            leaf = u.clone().requires_grad_()
            a = norm_activation(leaf, *vectors, activation=activation, impl=i)
            (du,) = torch.autograd.grad(a, leaf, da, create_graph=True)
            twice.append(torch.autograd.grad(du.square().sum(), leaf)[0])
        torch.testing.assert_close(*twice)
        alone = norm_activation(u.requires_grad_(), *vectors, activation=activation, impl=impl)
        assert torch.equal(torch.autograd.grad(alone, u, da)[0], fused[1])


def test_gradients_are_the_closed_forms() -> None:
    """Of op.py's head, in float64."""
    given = [t.double() for t in tensors(5, 7)]
    u, bias, scale, shift, da = given
    a, *found = parts(given, "swish", "reference", torch.float64)
    x = u + bias
    rstd = 1 / (x.var(dim=1, correction=0, keepdim=True) + 1e-6).sqrt()
    n = (x - x.mean(dim=1, keepdim=True)) * rstd
    z = scale * n + shift
    torch.testing.assert_close(a, F.silu(z))
    s = z.sigmoid()
    dz = da * s * (1 + z * (1 - s))
    dn = dz * scale
    du = rstd * (dn - dn.mean(dim=1, keepdim=True) - n * (dn * n).mean(dim=1, keepdim=True))
    for ours, wanted in zip(found, (du, du.sum(0), (dz * n).sum(0), dz.sum(0)), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "width"), [(512, 256), (37, 20), (1, 1), (100, 1024)])
def test_on_a_gpu(batch, width) -> None:
    """hair: the GPU's exp takes its argument's rounding with it, of up to 8 units."""
    assert_all_no_worse(batch, width, "triton", device="cuda", hair=2e-6)


def test_a_network_without_a_gpu_calls_plain_layers() -> None:
    network, x = Encoder(5, 3, width=8, depth=4), torch.randn(4, 5)
    trunk = network.trunk
    assert torch.equal(network(x), network.head(trunk.stack(F.silu(trunk.norm(trunk.stem(x))))))
