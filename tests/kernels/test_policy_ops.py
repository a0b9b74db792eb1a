"""The parts of a policy's loss: the reference against its definition, and who serves a call."""

import math

import pytest
import torch

from deepres.kernels.policy import op
from deepres.testing import assert_no_worse

BOUNDS = (-5.0, 2.0)
GAUSSIANS = [(None, False), (None, True), (BOUNDS, False), (BOUNDS, True)]  # bounds, exact
ENERGIES = ("norm", "l2", "dot")


def normal(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian_parts(tensors, bounds, exact, impl, dtype=torch.float32):
    """(action, log_prob, gradients of a sum of both); daction is a part of a wider matrix, as in a step."""
    mean, log_std, noise, daction, dlog_prob = (t.to(dtype) for t in tensors)
    leaves = [t.clone().requires_grad_() for t in (mean, log_std)]
    action, log_prob = op.squashed_gaussian(*leaves, noise, bounds=bounds, exact=exact, impl=impl)
    joined = torch.cat([torch.ones_like(daction), action], dim=1)
    weights = torch.cat([torch.ones_like(daction), daction], dim=1)
    total = (joined * weights).sum() + (log_prob * dlog_prob).sum()
    return [action.detach(), log_prob.detach(), *torch.autograd.grad(total, leaves)]


def pair_parts(tensors, energy, impl, dtype=torch.float32):
    """(energy, its gradients)."""
    phi, psi, weight = (t.to(dtype) for t in tensors)
    leaves = [t.clone().requires_grad_() for t in (phi, psi)]
    found = op.pair_energy(*leaves, energy, impl=impl)
    return [found.detach(), *torch.autograd.grad((found * weight).sum(), leaves)]


def losses_parts(tensors, impl, dtype=torch.float32):
    """(the four numbers, gradients of 2 actor + 3 temperature)."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    losses = op.policy_losses(*leaves, -8.5, impl=impl)
    assert not losses.alpha.requires_grad and not losses.entropy.requires_grad
    found = torch.autograd.grad(2 * losses.actor + 3 * losses.temperature, leaves)
    return [*(t.detach() for t in losses), *found]


def cases(batch, width, scale=1.0, device="cpu"):
    """(name, parts of (impl, dtype)) of every op."""
    rows = [normal(batch, width, scale=scale, seed=s).to(device) for s in range(5)]
    noise, weight = (normal(*shape, seed=8).to(device) for shape in ((batch, width), (batch,)))
    vectors = [normal(batch, scale=scale, seed=s).to(device) for s in (6, 7)]
    for bounds, exact in GAUSSIANS:
        spread = rows[1] if bounds else rows[1].clamp(-5, 2)
        own = [rows[0], spread, noise, rows[3], weight]
        yield (
            f"gaussian {bounds} {exact}",
            lambda impl, t, own=own, a=(bounds, exact): gaussian_parts(own, *a, impl, t),
        )
    near = rows[0] + 1e-3 * rows[1]
    near[0] = rows[0][0]  # a pair that meets
    for energy in ENERGIES:
        for other in (rows[1], near):
            pair = [rows[0], other, weight]
            yield f"pair {energy}", lambda impl, t, pair=pair, e=energy: pair_parts(pair, e, impl, t)
    losses = [*vectors, torch.tensor(-1.3, device=device)]
    yield "losses", lambda impl, t: losses_parts(losses, impl, t)


def assert_all_no_worse(batch, width, impl, scale=1.0, device="cpu", hair=2e-7):
    for name, parts in cases(batch, width, scale, device):
        fused, plain = parts(impl, torch.float32), parts("reference", torch.float32)
        for k, values in enumerate(zip(fused, plain, parts("reference", torch.float64), strict=True)):
            assert_no_worse(f"{name} [{batch}, {width}], part {k}", *values, hair=hair)


@pytest.mark.parametrize(("bounds", "exact"), GAUSSIANS)
def test_the_density_is_the_gaussians_less_the_slope_of_tanh(bounds, exact) -> None:
    mean, raw, noise = (normal(4, 3, seed=s).double() for s in range(3))
    action, log_prob = op.squashed_gaussian(mean, raw, noise, bounds=bounds, exact=exact)
    std = (raw if bounds is None else -5 + 3.5 * (raw.tanh() + 1)).exp()
    wanted = torch.distributions.Normal(mean, std).log_prob(torch.atanh(action))
    wanted = wanted - (1 - action.square() + (0 if exact else 1e-6)).log()
    torch.testing.assert_close(log_prob, wanted.sum(dim=1))


def test_gradients_of_the_reference() -> None:
    """gradcheck, and the closed forms of op.py's head."""
    mean, raw, noise, daction = (normal(3, 2, seed=s).double().requires_grad_(s < 2) for s in range(4))
    dlog_prob = normal(3, seed=4).double()
    for bounds, exact in GAUSSIANS:
        assert torch.autograd.gradcheck(
            lambda m, s, b=bounds, e=exact: op.squashed_gaussian(m, s, noise, bounds=b, exact=e), (mean, raw)
        )
        action, _, dmean, draw = gaussian_parts(
            [mean, raw, noise, daction, dlog_prob], bounds, exact, "reference", torch.float64
        )
        slope = 1 - action.square()
        g = daction * slope + dlog_prob[:, None] * 2 * action * (1 if exact else slope / (slope + 1e-6))
        std, inner = raw.exp(), torch.ones_like(raw)
        if bounds:
            std, inner = (-5 + 3.5 * (raw.tanh() + 1)).exp(), 3.5 * (1 - raw.tanh().square())
        torch.testing.assert_close(dmean, g)
        torch.testing.assert_close(draw, ((g * std * noise - dlog_prob[:, None]) * inner).detach())
    log_prob, value = (normal(5, seed=s).double().requires_grad_() for s in range(2))
    log_alpha = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    losses = op.policy_losses(log_prob, value, log_alpha, -2.0)
    alpha, mean_density = math.exp(0.3), log_prob.mean().item()
    assert losses.alpha.item() == pytest.approx(alpha) and losses.entropy.item() == -mean_density
    assert losses.actor.item() == pytest.approx(alpha * mean_density - value.mean().item())
    assert losses.temperature.item() == pytest.approx(alpha * (2 - mean_density))
    found = torch.autograd.grad(losses.actor + losses.temperature, (log_prob, value, log_alpha))
    torch.testing.assert_close(found[0], torch.full((5,), alpha / 5, dtype=torch.double))
    torch.testing.assert_close(found[1], torch.full((5,), -1 / 5, dtype=torch.double))
    assert found[2].item() == pytest.approx(losses.temperature.item())


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "width"), [(512, 17), (512, 64), (37, 5), (1, 1)])
def test_on_a_gpu(batch, width) -> None:
    """Also the same bits twice. hair: the GPU's exp takes its argument's rounding with it, of up to 8 units."""
    assert_all_no_worse(batch, width, "triton", device="cuda", hair=2e-6)
    for name, parts in cases(batch, width, device="cuda"):
        assert all(map(torch.equal, parts("auto", torch.float32), parts("triton", torch.float32))), name


def test_a_backend_serves_or_says_why_not() -> None:
    x = normal(3, 4)
    with pytest.raises(RuntimeError, match="impl='triton' cannot serve this policy: "):
        op.squashed_gaussian(x, x, x, impl="triton")
    with pytest.raises(ValueError, match="impl must be one of auto, triton, reference for policy, got 'cpu'"):
        op.pair_energy(x, x, "norm", impl="cpu")
    for impl in ("auto", "reference"):
        assert op.pair_energy(x, x, "dot", impl=impl).equal(x.square().sum(dim=1))
