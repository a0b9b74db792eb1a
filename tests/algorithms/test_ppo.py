"""PPO beside the equations written out step by step, and what the ends of trajectories and of a round do to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepres import Batch, Config, Learner
from deepres.data.batch import Unroll
from deepres.data.replay import ReplayBuffer
from deepres.runs.folder import RunFolder
from deepres.training.loop import find_state, save
from deepres.training.run import Run
from helpers import plain_networks as plain
from helpers.learners import SIZES, doubled, learner_of, small
from helpers.steps import check_update
from helpers.tiny_runs import SIZES as TINY
from helpers.tiny_runs import different

GAMMA, DECAY, T, N = 0.9, 0.8, 8, 3
COLUMNS = ("goals", "next_states", "successes", "terminals", "rewards")


def unrolled() -> Unroll:
    """Random steps: environment 0 falls at step 2, environment 1 meets its time limit at step 4, 2 goes on."""
    g = torch.Generator().manual_seed(3)
    states, nexts = torch.randn(2, T, N, SIZES.state, generator=g)
    actions = torch.tanh(0.4 * torch.randn(T, N, SIZES.action, generator=g))
    ids = torch.zeros(T, N, dtype=torch.int32)
    ids[3:, 0], ids[5:, 1] = 1, 1
    terminals = torch.zeros(T, N, dtype=torch.bool)
    terminals[2, 0] = True
    columns = {
        "goals": torch.randn(T, N, SIZES.goal, generator=g),
        "next_states": nexts,
        "successes": torch.rand(T, N, generator=g) < 0.4,
        "terminals": terminals,
        "rewards": torch.randn(T, N, generator=g),
    }
    return Unroll(states, actions, ids, columns, 0.0)


def ring_of(*unrolls: Unroll) -> ReplayBuffer:
    ring = ReplayBuffer(N, T + 3, SIZES, slice(0, SIZES.goal), COLUMNS)
    for unroll in unrolls:
        ring.insert(unroll)
    return ring


def drawn(learner: Learner, ring: ReplayBuffer, count: int = 2, rows: int = T * N) -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    return list(learner.algorithm.sampler.batches(ring, count, rows, window=T, generator=g))


def learner_for(**options: object) -> Learner:
    config = small("ppo", gamma=GAMMA, gae_decay=DECAY, impl="reference", **options)
    return doubled(learner_of(config, apart=0.05))


def log_prob(p: plain.Parameters, batch: Batch) -> Tensor:
    """By PyTorch's own distributions."""
    law = torch.distributions.TransformedDistribution(
        plain.gaussian(p, batch.state, batch.goal), torch.distributions.TanhTransform()
    )
    return law.log_prob(batch.action).sum(1)


def by_state(batch: Batch) -> dict[float, dict[str, float]]:
    """What the rows of a batch are learned with, by the first number of their state."""
    names = batch.extra
    return {
        float(batch.state[i, 0]): {name: float(names[name][i]) for name in names}
        for i in range(len(batch.state))
    }


@torch.no_grad()
def expected(p: plain.Parameters, unroll: Unroll, reward: str) -> dict[float, dict[str, float]]:
    """The same, by a sum of discounted errors that is written out for every step."""
    found = {}
    for n in range(N):
        states, goals, nexts = (
            x[:, n].double() for x in (unroll.states, unroll.columns["goals"], unroll.columns["next_states"])
        )
        value, after = plain.value(p, "value", states, goals), plain.value(p, "value", nexts, goals)
        rows = log_prob(p, Batch(states, unroll.actions[:, n].double(), goals))
        for t in range(T):
            advantage, weight = 0.0, 1.0
            for k in range(t, T):
                if unroll.traj_ids[k, n] != unroll.traj_ids[t, n]:
                    break
                goes_on = 0.0 if unroll.columns["terminals"][k, n] else GAMMA
                error = float(unroll.columns[reward][k, n]) + goes_on * float(after[k]) - float(value[k])
                advantage, weight = advantage + weight * error, weight * GAMMA * DECAY
            found[float(unroll.states[t, n, 0])] = {
                "log_prob": float(rows[t]),
                "advantage": advantage,
                "target": advantage + float(value[t]),
                "value": float(value[t]),
            }
    return found


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_a_step_is_the_equations(reward):
    """Advantages, returns and densities of a round; then losses and every gradient once the policy has moved."""
    learner, unroll = learner_for(reward=reward, value_clip=0.05, entropy_weight=0.1, clip=0.05), unrolled()
    p = plain.leaves(learner.parameters())
    first, second = drawn(learner, ring_of(unroll))
    for batch in (first, second):
        wanted = expected(p, unroll, "successes" if reward == "sparse" else "rewards")
        assert by_state(batch).keys() == wanted.keys()
        for state, row in by_state(batch).items():
            assert row == pytest.approx(wanted[state], rel=1e-6, abs=1e-6)
    g = torch.Generator().manual_seed(1)
    first, second = first.map(Tensor.double), second.map(Tensor.double)
    with torch.no_grad():
        for each in learner.parameters().values():
            each.add_(0.01 * torch.randn(each.shape, generator=g))
    noise = learner.noise(second, g).double()

    def equations(p: plain.Parameters, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        old, law = batch.extra, plain.gaussian(p, batch.state, batch.goal)
        ratio = torch.exp(log_prob(p, batch) - old["log_prob"])
        a = (old["advantage"] - old["advantage"].mean()) / (old["advantage"].var(correction=0).sqrt() + 1e-8)
        gain = torch.where(a > 0, ratio.clamp(max=1.05) * a, ratio.clamp(min=0.95) * a)
        assert 0 < ((gain / a) != ratio).double().mean() < 1
        x = law.mean + law.stddev * noise
        entropy = (law.entropy() + torch.log(1 - torch.tanh(x).square())).sum(1).mean()
        v = plain.value(p, "value", batch.state, batch.goal)
        near = torch.maximum(torch.minimum(v, old["value"] + 0.05), old["value"] - 0.05)
        worse = torch.maximum((v - old["target"]).square(), (near - old["target"]).square())
        assert 0 < (near != v).double().mean() < 1
        return {
            "actor": -gain.mean() - 0.1 * entropy,
            "critic": worse.mean() / 2,
            "entropy": entropy,
            "clipped": ((ratio - 1).abs() > 0.05).double().mean(),
            "divergence": (ratio - 1 - ratio.log()).mean(),
        }

    check_update(learner, second, noise, equations, {"actor": ("actor.",), "critic": ("value.",)})


def test_a_time_limit_goes_on_in_value_and_a_reset_ends_the_sum():
    learner, unroll = learner_for(), unrolled()
    before = by_state(drawn(learner, ring_of(unroll))[0])

    def moved(name: str, step: int, env: int, by: float) -> set[tuple[int, int]]:
        """Where advantages change as `name` of one step does."""
        other = unrolled()
        column = other.columns[name] if name in COLUMNS else other.states
        column[step, env, ...] += by
        after = by_state(drawn(learner, ring_of(other))[0])
        keys = {(t, n): float(unroll.states[t, n, 0]) for t in range(T) for n in range(N)}
        return {at for at, key in keys.items() if not math.isclose(
            before[key]["advantage"], after[key]["advantage"], abs_tol=1e-6)}  # fmt: skip

    assert moved("next_states", 2, 0, 1.0) == set()  # it fell: nothing follows
    assert moved("next_states", 4, 1, 1.0) == {(t, 1) for t in range(5)}  # it was cut
    assert moved("next_states", T - 1, 2, 1.0) == {(t, 2) for t in range(T)}  # it was not seen further


def test_what_the_policy_thought_is_of_before_the_round():
    """All batches of a round hold one density for an action, whatever was learned meanwhile; the next round's is new,
    and of steps that are older than the newest nothing is left."""
    learner = learner_of(small("ppo", actor_lr=1e-3, batch_size=T * N), apart=0.05)
    unroll, g = unrolled(), torch.Generator().manual_seed(2)
    obs = torch.cat([unroll.states, unroll.columns["goals"]], dim=2).flatten(0, 1)
    noise = torch.randn(T * N, SIZES.action, generator=g)
    unroll.actions.copy_(learner.act(obs, noise).view_as(unroll.actions))
    ring = ring_of(unroll)
    batches = learner.algorithm.sampler.batches(
        ring, 3, T * N, window=T, generator=torch.Generator().manual_seed(0)
    )
    told, divergence = [], []
    for batch in batches:
        told.append({state: row["log_prob"] for state, row in by_state(batch).items()})
        metrics = learner.update(batch, learner.noise(batch, torch.Generator().manual_seed(0)))
        divergence.append(float(metrics["divergence"]))
    assert told[0] == told[1] == told[2] and len(told[0]) == T * N
    assert abs(divergence[0]) < 1e-6 and min(divergence[1:]) > 1e-5
    new = by_state(drawn(learner, ring)[0])
    assert all(not math.isclose(new[state]["log_prob"], old, abs_tol=1e-3) for state, old in told[0].items())
    newest = unrolled()
    newest.states.add_(100.0)
    ring.insert(newest)
    assert min(by_state(drawn(learner, ring, count=1)[0])) > 50
    with pytest.raises(ValueError, match="the buffer must hold 12 steps of each environment, got 11; insert"):
        ring.newest(12)


def test_advantages_are_measured_by_those_of_all_processes():
    algorithm = learner_for().algorithm

    class Two:
        def gather_rows(self, x: Tensor) -> Tensor:
            return torch.cat([x, x + 4])

    x = torch.randn(6, dtype=torch.float64)
    both = torch.cat([x, x + 4])
    algorithm.exchange = Two()
    assert torch.allclose(algorithm._normalised(x), (x - both.mean()) / both.std(correction=0), atol=1e-6)


def test_a_run_learns_from_its_newest_unroll_and_resumes_to_the_same_bits(tmp_path):
    config, folder = Config("ppo", **TINY), RunFolder(tmp_path / "run")
    run = Run(config)
    seen: list[int] = []
    run.learner.algorithm.value.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    assert isinstance(run.learner.algorithm.value, nn.Module)
    run.round()  # collects min_buffer_steps, 20 of 4 environments
    assert seen == [40, 40, *[16] * 4]
    run.round()
    save(run, folder)
    resumed = Run(config, restored=find_state(folder, config))
    for one in (run, resumed):
        one.round()
    assert different(run.state(), resumed.state()) == []


@pytest.mark.parametrize(("option", "value"), [("overlap", True), ("data", "runs/of_another")])
def test_what_others_did_is_refused(option, value):
    with pytest.raises(
        ValueError, match=f"^ppo learns from .* takes no {option}, got {option}={value}; leave"
    ):
        Config("ppo", **{option: value})
