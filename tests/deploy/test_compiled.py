"""A compiled policy: the numbers of the policy itself, one observation at a time."""

from __future__ import annotations

import threading

import pytest
import torch

from deepres import Policy
from deepres.deploy.compiled import CompiledActor
from deepres.deploy.plain import PlainNetwork
from deepres.kernels.residual_stack import cpu
from deepres.testing import assert_no_worse, worst_error
from helpers.policies import doubled, observations, untrained

ISAS = cpu._C.isas()
RAGGED = {"width": 45, "depth": 6, "actor_depth": 6, "skip_every": 3}


@pytest.fixture(params=ISAS)
def isa(request):
    before = cpu._C.isa()
    cpu._C.use_isa(request.param)
    yield request.param
    cpu._C.use_isa(before)


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("shape", [{}, RAGGED, {"skip_every": 0}, {"depth": 1, "actor_depth": None}])
def test_it_acts_as_the_policy(isa, poisoned, shape, norm, activation):
    policy = untrained(**shape, norm=norm, activation=activation)
    obs, network = observations(policy, 20), PlainNetwork(policy.network)
    compiled, truth = policy.compiled(), doubled(network)(obs.double())
    assert_no_worse("actions", compiled.act(obs), network(obs), truth)
    assert worst_error(compiled.act(obs), policy.act(obs)) <= 1e-6
    assert torch.equal(compiled.act(obs[7:8]), compiled.act(obs)[7:8])


@pytest.mark.parametrize("width", [32, 45])
def test_bf16_rounds_the_weights_alone(isa, width):
    policy = untrained(width=width)
    network, obs = PlainNetwork(policy.network), observations(policy, 20)
    for name in ("stem_weight", "weight", "head_weight"):
        setattr(network, name, getattr(network, name).bfloat16().float())
    compiled = policy.compiled("bf16")
    assert_no_worse("actions", compiled.act(obs), network(obs), doubled(network)(obs.double()))
    assert not torch.equal(compiled.act(obs), policy.compiled().act(obs))
    assert compiled.network.actor.weight_bytes < 0.6 * policy.compiled().network.actor.weight_bytes


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [("td3", {}), ("gcsl", {}), ("gcbc", {"horizon_input": True}), ("crl", {"horizon": 3})],
)
def test_every_kind_of_policy(algorithm, options):
    policy = untrained(algorithm, **options)
    obs = observations(policy, 9)
    compiled = policy.compiled()
    torch.testing.assert_close(compiled.act(obs), policy.act(obs), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(compiled.plan(obs), policy.plan(obs), atol=1e-6, rtol=1e-6)
    assert compiled.act(obs[:0]).shape == (0, 2)


def test_deep_ones_too():
    policy = untrained(depth=64, actor_depth=64)
    obs, network = observations(policy, 50), PlainNetwork(policy.network)
    assert_no_worse("actions", policy.compiled().act(obs), network(obs), doubled(network)(obs.double()))


def test_not_a_number_shows():
    compiled = untrained().compiled()
    for wrong in (torch.nan, torch.inf, 1e25):  # the last overflows inside LayerNorm
        obs = torch.zeros(3, 6)
        obs[1, 2] = wrong
        assert compiled.act(obs).isfinite().all(dim=1).tolist() == [True, False, True]


def test_it_has_weights_of_its_own():
    policy, obs = untrained(), torch.randn(3, 6)
    compiled = policy.compiled()
    before = compiled.act(obs)
    with torch.no_grad():
        for p in policy.network.actor.parameters():
            p.zero_()
    assert torch.equal(compiled.act(obs), before) and not policy.act(obs).any()


def test_it_acts_without_allocating():
    policy, obs, actions = untrained(), torch.randn(4, 6), torch.full((4, 2), torch.nan)
    actor = policy.compiled().network.actor
    assert isinstance(actor, CompiledActor) and actor.act_into(obs, actions) is actions
    torch.testing.assert_close(actions, policy.act(obs), atol=1e-6, rtol=1e-6)
    wanted = r"must be contiguous float32 of shape \[4, .\] on the CPU, got"
    for wrong in (
        (obs.double(), actions),
        (obs.t().contiguous().t(), actions),
        (obs, actions[:3]),
        (obs[:, :5], actions),
    ):
        with pytest.raises(ValueError, match=wanted):
            actor.act_into(*wrong)


def test_threads_take_turns():
    policy = untrained(width=64, depth=16, actor_depth=16)
    compiled, obs = policy.compiled(), torch.randn(8, 40, 6)
    alone = [compiled.act(rows) for rows in obs]
    found: dict[int, list[torch.Tensor]] = {}

    def use(one: int) -> None:
        found[one] = [compiled.act(obs[one]) for _ in range(20)]

    threads = [threading.Thread(target=use, args=(one,)) for one in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        all(torch.equal(each, alone[one]) for one, all_of in found.items() for each in all_of)
        and len(found) == 8
    )


def test_what_it_cannot_do_is_one_sentence(tmp_path, monkeypatch):
    policy = untrained()
    compiled = policy.compiled()
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'int8'"):
        policy.compiled("int8")
    for use in (compiled.compiled, lambda: compiled.export(tmp_path / "policy.onnx")):
        with pytest.raises(ValueError, match=r"network is not there to be saved, exported or compiled"):
            use()
    with pytest.raises(ValueError, match="takes no noise"):
        compiled.act(torch.zeros(1, 6), torch.zeros(1, 2))
    monkeypatch.setattr(cpu, "_C", None)
    with pytest.raises(ImportError, match=r"a compiled policy needs deepres\._C: the extension"):
        policy.compiled()


def test_it_is_evaluated():
    policy: Policy = untrained()
    ours, theirs = policy.compiled().evaluate(seed=3)[0], policy.evaluate(seed=3)[0]
    assert ours.success_any == theirs.success_any and abs(ours.final_distance - theirs.final_distance) < 1e-2
