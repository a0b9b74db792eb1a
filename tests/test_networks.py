"""How the networks start, and groups of them beside one another."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from deepres import Actor, Encoder
from deepres.networks import NetworkOptions, Networks, call_frozen


def test_networks_start_as_published():
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(10, 64, width=64, depth=8, generator=generator)
    stack = encoder.trunk.stack
    assert len(list(stack.parameters())) == 4
    for weight, fan_in in ((stack.weight, 64), (encoder.trunk.stem.weight, 10), (encoder.head.weight, 64)):
        bound = fan_in**-0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not stack.bias.any() and not stack.beta.any() and (stack.gamma == 1).all()
    actor = Actor(10, 3, width=64, depth=8, generator=generator)
    mean, log_std = actor(100 * torch.randn(50, 10, generator=generator))
    assert mean.shape == log_std.shape == (50, 3)
    assert log_std.min() >= -5 and log_std.max() <= 2


def networks(**options) -> Networks:
    return Networks(NetworkOptions(depth=4, width=16, **options), generator=torch.Generator().manual_seed(3))


def member(group: torch.nn.Module, k: int) -> dict[str, torch.Tensor]:
    return {name: p[k] for name, p in group.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": False}, {"activation": "relu", "skip_every": 0}, {"trunk": "plain"}],
    ids=str,
)
@pytest.mark.parametrize("shared", [True, False], ids=["shared x", "own x"])
def test_a_group_is_its_members_one_by_one(options, shared):
    """Values and gradients, to float64's last digits (products may read memory otherwise)."""
    q, singles = networks(**options).values(5, members=3), [networks(**options).value(5) for _ in range(3)]
    shapes = {name: p.shape for name, p in q.named_parameters()}
    if "trunk" not in options:
        assert shapes["trunk.stem.weight"] == (3, 16, 5) and shapes["trunk.stack.weight"] == (3, 4, 16, 16)
    assert shapes["head.weight"] == (3, 1, 16)
    for k, single in enumerate(singles):
        assert member(q, k).keys() == dict(single.named_parameters()).keys()
        single.load_state_dict(member(q, k))
    for module in (q, *singles):
        module.double()
    x = torch.randn(*((7, 5) if shared else (3, 7, 5)), generator=torch.Generator().manual_seed(4)).double()
    x.requires_grad_()
    same = functools.partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)
    rows = [x] * 3 if shared else list(x)
    values = q(x)
    expected = torch.stack([single(own) for single, own in zip(singles, rows, strict=True)])
    assert values.shape == (3, 7)
    same(values, expected)
    weights = torch.tensor([1.0, 2.0, -1.0])[:, None]
    (dx,) = torch.autograd.grad((values.square() * weights).sum(), x, retain_graph=True)
    (expected_dx,) = torch.autograd.grad((expected.square() * weights).sum(), x, retain_graph=True)
    torch.testing.assert_close(
        dx, expected_dx, rtol=1e-6, atol=1e-7
    )  # the sum over members, in another order
    (values.square() * weights).sum().backward()
    (expected.square() * weights).sum().backward()
    for k, single in enumerate(singles):
        for name, p in single.named_parameters():
            same(dict(q.named_parameters())[name].grad[k], p.grad)


def test_members_of_a_group_start_apart_and_as_published():
    q = networks().values(5, members=3)
    for part, fan_in in ((q.trunk.stem, 5), (q.trunk.stack, 16), (q.head, 16)):
        for one, other in itertools.combinations(part.weight, 2):
            assert not torch.equal(one, other)
        assert 0.8 * fan_in**-0.5 < part.weight.abs().max() <= fan_in**-0.5 and not part.bias.any()


def test_a_group_held_constant_gives_the_inputs_gradient_alone():
    q = networks().values(5)
    x = torch.randn(7, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(q(x).amin(dim=0).sum(), x)
    call_frozen(q, x).amin(dim=0).sum().backward()
    assert torch.equal(x.grad, dx) and all(p.grad is None for p in q.parameters())


def test_groups_of_several_outputs_and_of_encoders():
    assert networks().values(5, members=1)(torch.ones(7, 5)).shape == (1, 7)
    assert networks().values(5, members=4, outputs=6)(torch.ones(7, 5)).shape == (4, 7, 6)
    assert networks().encoders(5, 3, members=2)(torch.ones(2, 7, 5)).shape == (2, 7, 3)
    assert networks().encoders(5, 3, members=2)(torch.ones(0, 5)).shape == (2, 0, 3)
    with pytest.raises(ValueError, match="members must be a number of networks >= 1, got 0"):
        networks().values(5, members=0)
    with pytest.raises(ValueError, match=r"\[B, in\] for all 2 members, or \[2, B, in\], got \[3, 7, 5\]"):
        networks().values(5)(torch.ones(3, 7, 5))


def started(depth: int, **options) -> Actor:
    return Networks(
        NetworkOptions(depth=depth, width=32, **options), {}, torch.Generator().manual_seed(1)
    ).actor(6, 3)


def test_a_scaled_start_keeps_the_streams_size_at_every_depth():
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(2))
    rms = {
        (init, depth): float(started(depth, init=init).trunk(x).detach().square().mean().sqrt())
        for init in ("published", "scaled", "zero")
        for depth in (4, 64, 256)
    }
    assert rms["published", 64] > 4 and rms["published", 256] > 12
    assert all(0.8 < rms["scaled", depth] < 1.0 for depth in (4, 64, 256))
    assert rms["scaled", 4] == rms["published", 4]  # one block
    for depth in (4, 256):  # stem and head alone, to the bit
        network = started(depth, init="zero")
        stem = torch.nn.functional.silu(network.trunk.norm(network.trunk.stem(x)))
        assert torch.equal(network.trunk(x), stem)
    network(x)[0].square().sum().backward()
    assert network.trunk.stack.gamma.grad[3::4].abs().min() > 0  # and it learns from there


@pytest.mark.parametrize(("depth", "is_as"), [(64, "published"), (256, "scaled")])
def test_deep_networks_start_scaled_unless_told_otherwise(depth, is_as):
    for name, value in started(depth, init=is_as).state_dict().items():
        assert torch.equal(started(depth).state_dict()[name], value)
    assert "trunk.stack.gamma" in started(depth).state_dict()
    other = "published" if is_as == "scaled" else "scaled"
    assert not torch.equal(started(depth).trunk.stack.gamma, started(depth, init=other).trunk.stack.gamma)
    started(256, norm=False), started(256, skip_every=0)  # have no such scale


def test_all_networks_of_a_run_start_as_asked():
    make = Networks(NetworkOptions(depth=8, width=16, init="scaled", actor_head_scale=0.01))
    for network in (
        make.actor(3, 2),
        make.encoder(3, 4),
        make.value(3),
        make.values(3),
        make.encoders(3, 4, 2),
    ):
        gamma = network.trunk.stack.gamma
        assert torch.allclose(gamma[..., 3::4, :], torch.tensor(0.5**0.5))
        assert (gamma[..., [0, 1, 2, 4, 5, 6], :] == 1).all()
    heads = (make.actor(3, 2).mean, make.actor(3, 2).log_std)
    assert all(head.weight.abs().max() <= 0.01 / 16**0.5 for head in heads)
    with pytest.raises(
        ValueError, match=r"init=scaled sets the last LayerNorm .* got norm=False, skip_every=4"
    ):
        NetworkOptions(init="scaled", norm=False)


def test_plain_networks_start_as_ogbenchs_and_take_no_option_of_blocks():
    made = networks(trunk="plain", actor_depth=3)
    values, mean, actor = made.values(10), made.mean_actor(10, 3), made.actor(10, 3)
    assert (len(values.trunk.dense), len(mean.trunk.dense)) == (4, 3)
    assert len(values.trunk.norm) == 4 and not mean.trunk.norm and not actor.trunk.norm
    heads = [
        (values.head.weight, 1, 16, 1),
        (mean.head.weight, 0.1, 16, 3),
        (actor.log_std.weight, 0.1, 16, 3),
    ]
    for weight, scale, fan_in, fan_out in [(values.trunk.dense[0].weight, 1, 10, 16), *heads]:
        bound = scale * (6 / (fan_in + fan_out)) ** 0.5
        assert 0.8 * bound < weight.abs().max() <= bound
    first = values.trunk.dense[0].weight.clone()
    values.reset_parameters(torch.Generator().manual_seed(4))
    assert not torch.equal(first, values.trunk.dense[0].weight)
    assert 0.8 * (6 / 26) ** 0.5 < values.trunk.dense[0].weight.abs().max() <= (6 / 26) ** 0.5
    with pytest.raises(ValueError, match=r"norm does not apply to trunk=plain, got False; leave it out"):
        NetworkOptions(trunk="plain", norm=False)


@pytest.mark.parametrize("options", [{}, {"trunk": "plain", "depth": 2}])
def test_an_input_of_another_width_is_one_sentence(options):
    encoder = Encoder(5, 3, **{"width": 8, "depth": 4, **options})
    with pytest.raises(ValueError, match=r"x must have 5 columns, the network's in_dim, got shape \[2, 4\]"):
        encoder(torch.zeros(2, 4))
