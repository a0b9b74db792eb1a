"""What every registered algorithm keeps to (deepres.algorithms.base); a new one is covered as it is registered."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deepres import Batch, Learner, algorithms
from deepres.acting import ActorPolicy
from deepres.data.batch import COLUMNS, Unroll
from deepres.data.replay import ReplayBuffer
from deepres.networks import ResidualStack
from deepres.training.cuda_graph import GraphSteps, Steps
from deepres.training.learner import SKIPPED, build_algorithm
from deepres.training.memory_plan import plan
from helpers.learners import SIZES, B, learner_of, numbers, same, small

OPTIONS: dict[str, list[dict[str, object]]] = {
    "crl": [
        {},
        {"form": "symmetric", "energy": "dot"},
        {"horizon": 3, "survival_rows": True, "survival_bonus": 1.0},
        {"extraction": "ddpg_bc", "random_actor_goals": 0.5, "together": 3},
        {"extraction": "awr", "random_actor_goals": 0.5},
        {"extraction": "best_of_n", "horizon": 2},
    ],
    "sac": [
        {},
        {"hindsight": 0.8},
        {"hindsight": 0.5, "hindsight_strategy": "final"},
        {"reward": "dense"},
        {"hindsight": 1.0, "hindsight_strategy": "published", "time_limit": "left_out", "exact_tanh": True},
    ],
    "td3": [{}, {"hindsight": 0.8, "published_target_policy": True, "time_limit": "terminal"}],
    "hl_gauss": [{"hindsight": 0.8, "bins": 11}],
    "two_hot": [{"value": "step", "bins": 11}],
    "c51": [{"value": "first_hit", "bins": 11}],
    "td_mse": [{"hindsight": 0.8}],
    "srl": [{"bins": 9}, {"bins": 9, "actor_reads": "old", "censor": "observed", "goal_sequence": 3}],
    "chrono": [{"bins": 9}, {"bins": 9, "actor_reads": "old", "goal_sequence": 3, "horizon": 1}],
    "c_learning": [{}, {"weights": "2020"}],
    "ppo": [{}, {"value_clip": 0.2, "reward": "dense"}],
    "qrl": [
        {"feature_dim": 16},
        {"feature_dim": 16, "distance": "mrn", "extraction": "awr", "actor_goals": "random"},
    ],
    "td_infonce": [{}, {"actor_goals": "future", "entropy": True}],
    "gcbc": [{}, {"goals": "uniform", "commanded": 0.3}],
    "gcsl": [{}],
    "gcivl": [{}],
    "gciql": [{}, {"extraction": "awr"}],
    "hiql": [{"subgoal_steps": 2}],
    "distill": [{"teacher_depth": 8, "teacher_width": 16, "energy_share": 0.5, "energy_depth": 4}],
}
UNREAD = {"distill": ("action",)}
"""Fields of a batch that a loss does not depend on."""
CASES = [(name, options) for name in algorithms.names() for options in OPTIONS.get(name, [{}])]
every_algorithm = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def made(name: str, options: dict[str, object], seed: int = 0) -> Learner:
    return learner_of(small(name, **options), seed=seed, apart=0.05)


def stream(learner: Learner, count: int) -> list[tuple[Batch, Tensor]]:
    """Batches as the algorithm's own sampler draws them from a ring of random numbers, four steps to a trajectory."""
    g = torch.Generator().manual_seed(1)
    sampler, shape = learner.algorithm.sampler, (20, 3)
    columns = {
        name: torch.randn(*shape, *_axis(COLUMNS[name].size(SIZES)), generator=g) for name in sampler.columns
    }
    columns = {name: c > 0 if COLUMNS[name].dtype is torch.bool else c for name, c in columns.items()}
    ring = ReplayBuffer(3, 20, SIZES, slice(0, SIZES.goal), sampler.columns, reached=_reached, threshold=1.5)
    states, actions = (torch.randn(*shape, n, generator=g) for n in (SIZES.state, SIZES.action))
    ids = (torch.arange(20) // 4).int()[:, None].expand(shape)
    ring.insert(Unroll(states, torch.tanh(actions), ids, columns, 0.0))
    batches = sampler.batches(ring, count, B, window=15, generator=g)
    return [(batch, learner.noise(batch, g)) for batch in batches]


def _axis(size: int) -> tuple[int, ...]:
    return (size,) if size else ()


def _reached(states: Tensor, goals: Tensor) -> Tensor:
    return (states[:, : SIZES.goal] - goals).norm(dim=1) < 0.5


@every_algorithm
def test_groups_are_disjoint_and_hold_all_that_is_learned(name, options):
    algorithm = made(name, options).algorithm
    grouped = [id(p) for group in algorithm.groups.values() for p in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in algorithm.parameters() if p.requires_grad}
    assert all(group.lr > 0 and group.every >= 1 for group in algorithm.groups.values())


@every_algorithm
def test_a_loss_reaches_its_own_group_and_all_of_it(name, options):
    learner = made(name, options)
    batch, noise = stream(learner, 1)[0]
    groups = learner.algorithm.groups
    seen = []
    for losses, _ in learner.algorithm.losses(batch, noise):
        for which, loss in losses.items():
            assert loss.shape == ()
            for group, parameters in groups.items():
                grads = torch.autograd.grad(loss, parameters.parameters, retain_graph=True, allow_unused=True)
                assert all((g is not None) == (group == which) for g in grads), (which, group)
            seen.append(which)
    assert sorted(seen) == sorted(groups)


@every_algorithm
def test_a_step_moves_every_group_and_measures_the_headline(name, options):
    learner = made(name, options)
    before = {n: p.detach().clone() for n, p in learner.parameters().items()}
    for each in stream(learner, max(group.every for group in learner.algorithm.groups.values())):
        metrics = learner.update(*each)
    assert list(metrics)[-1] == SKIPPED and metrics[SKIPPED] == 0
    assert set(learner.algorithm.headline) < set(metrics)
    assert all(value.isfinite() for value in metrics.values())
    learned = {n for n, p in learner.parameters().items() if p.requires_grad}
    assert all(not torch.equal(p, before[n]) for n, p in learner.parameters().items() if n in learned)


@every_algorithm
def test_the_same_bits_twice(name, options):
    runs = [made(name, options) for _ in range(2)]
    for learner in runs:
        for each in stream(learner, 3):
            learner.step(*each)
    assert same(numbers(runs[0]), numbers(runs[1]))


@every_algorithm
def test_a_saved_state_goes_on_as_the_one_that_was_not(name, options):
    one, other = made(name, options), made(name, options, seed=5)
    first, second = stream(one, 2)
    one.step(*first)
    other.load_state_tensors(numbers(one))
    for learner in (one, other):
        learner.step(*second)
    assert same(numbers(one), numbers(other))


def held(learner: Learner) -> dict[str, Tensor]:
    """What a skipped step may not change: all but the count of steps."""
    return {name: tensor for name, tensor in numbers(learner).items() if name != "steps_taken"}


@every_algorithm
def test_what_is_not_finite_is_skipped_whatever_holds_it(name, options):
    learner = made(name, options)
    batch, noise = stream(learner, 1)[0]
    learner.step(batch, noise)
    before = held(learner)
    for field, tensor in batch.tensors().items():
        if not tensor.is_floating_point() or field in UNREAD.get(name, ()):
            continue
        bad = tensor.clone()
        bad[3] = torch.nan
        metrics = learner.update(Batch.of({**batch.tensors(), field: bad}), noise)
        assert metrics.pop(SKIPPED) == 1 and not any(metrics.values()), field
        assert same(before, held(learner)), field


@every_algorithm
def test_a_replayed_step_is_the_step(name, options):
    """As a graph takes it: in slots that never move, with nothing but what is on the device."""
    plain, slotted = Steps(made(name, options)), GraphSteps(made(name, options), lambda step: step)
    for each in stream(plain.learner, 6):
        plain(*each)
        slotted(*each)
    assert same(numbers(plain.learner), numbers(slotted.learner))
    assert plain.read() == slotted.read()


@every_algorithm
def test_a_batch_holds_what_the_ring_was_asked_to_keep(name, options):
    learner = made(name, options)
    assert set(learner.algorithm.sampler.columns) <= COLUMNS.keys()
    batch, noise = stream(learner, 1)[0]
    actions = learner.algorithm.horizon * SIZES.action
    widths = {"state": SIZES.state, "action": actions, "goal": SIZES.goal, "next_state": SIZES.state}
    for extra in batch.extra.values():
        assert len(extra) == B
    for field, tensor in replace(batch, extra={}).tensors().items():
        wanted = (B, widths[field]) if field in widths else (B,)
        assert tensor.shape == wanted and tensor.dtype == torch.float32, field
    draws = learner.algorithm.noises
    assert noise.shape == ((B, actions) if draws == 1 else (draws, B, actions))


@every_algorithm
def test_passes_are_the_networks_as_a_step_runs_them(name, options):
    learner = made(name, options)
    algorithm = learner.algorithm
    each, ran = stream(learner, 1)[0], []

    def note(network: str):
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            weights = any(p.requires_grad for p in module.parameters())
            backward = torch.is_grad_enabled()
            ran.append((network, weights or not backward, backward, inputs[0].shape[-2] // B))

        return hook

    for network, module in algorithm.named_children():
        module.register_forward_pre_hook(note(network))
    learner.step(*each)
    assert ran == [
        (one.network, one.weights or not one.backward, one.backward, one.batches) for one in algorithm.passes
    ]
    for one in algorithm.passes:
        assert any(isinstance(m, ResidualStack) for m in getattr(algorithm, one.network).modules())


@every_algorithm
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_its_memory_is_planned_without_any(name, options, device):
    config = small(name, **options)
    with torch.device("meta"):
        algorithm = build_algorithm(config, SIZES)
    assert all(p.is_meta for p in algorithm.parameters())
    made_plan = plan(config, SIZES, device=device, free=10**9)
    count = {
        learned: sum(p.numel() for p in algorithm.parameters() if p.requires_grad >= learned)
        for learned in (0, 1)
    }
    assert made_plan.parts["weights"] == 4 * count[0] and made_plan.parts["gradients"] == 4 * count[1]
    assert made_plan.parts["optimiser (Adam, two moments)"] == 8 * count[1]
    assert made_plan.parts["activations kept for backward"] > 0
    assert (
        max(made_plan.parts.values())
        <= made_plan.peak
        <= sum(made_plan.parts.values()) + made_plan.parts["weights"]
    )


@every_algorithm
def test_what_acts_is_a_part_of_it(name, options):
    learner = made(name, options)
    policy = learner.policy
    assert isinstance(policy, ActorPolicy)
    own = {id(p) for p in learner.algorithm.parameters()}
    assert all(id(p) in own for p in policy.actor.parameters())
    horizon = learner.algorithm.horizon
    seen = SIZES.state + SIZES.goal + policy.clocked
    obs, noise = torch.rand(5, seen), torch.randn(5, horizon * SIZES.action)
    assert policy.horizon == horizon and policy.plan(obs).shape == (5, horizon, SIZES.action)
    for action in (learner.act(obs), learner.act(obs, noise)):
        assert action.shape == (5, SIZES.action) and action.abs().max() <= 1 and not action.requires_grad
    # all of them: a single number may be held at a bound both times
    assert not torch.equal(learner.act(obs), learner.act(obs, noise))


@every_algorithm
def test_what_it_says_of_itself_is_so(name, options):
    """The actor reads the old critic where all groups come in one yield, the updated one where it comes later."""
    learner = made(name, options)
    about, batch = learner.algorithm.about, stream(learner, 1)[0]
    assert about.source and about.losses and re.fullmatch(r"\d+(\.\d+)? D", about.layers)
    first, _ = next(learner.algorithm.losses(*batch))
    groups = learner.algorithm.groups.keys()
    reads = "" if groups == {"actor"} else "old" if first.keys() == groups else "updated"
    assert options.get("actor_reads", about.actor_reads) == reads
