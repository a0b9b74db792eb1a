"""What is collected from a real environment: each column says what the step before and the step after hold."""

from __future__ import annotations

import pytest
import torch

from deepres import Sizes, evaluate
from deepres.data.batch import COLUMNS
from deepres.data.collect import Ahead, collect
from deepres.data.environments import open_environments
from deepres.networks import GaussianPolicy, NetworkOptions, Networks

STEPS, LENGTH = 9, 4


def environments(num_envs: int = 3):
    return open_environments("point_u_maze", num_envs, 0, LENGTH, "fresh", "c", False, torch.device("cpu"))


def small_policy(env) -> GaussianPolicy:
    networks = Networks(NetworkOptions(depth=4, width=8), {}, torch.Generator().manual_seed(0))
    return GaussianPolicy(networks.actor(env.state_dim + env.goal_dim, env.action_dim))


def test_environments_of_jax_arrays_are_refused_in_a_sentence():
    env = environments()
    policy, sentence = small_policy(env), r"env must be environments with tensors, as .*, got VectorEnv"
    with pytest.raises(TypeError, match=sentence):
        evaluate(env.env, policy, seed=0)
    with pytest.raises(TypeError, match=sentence):
        collect(env.env, env.reset(), policy, 1, torch.Generator())
    action = torch.zeros(3, env.action_dim)
    with pytest.raises(
        TypeError, match=r"step must be what reset or step returned, got Tensor; call env\.step\(step"
    ):
        env.step(action, env.reset())
    with pytest.raises(TypeError, match=r"action must be a torch tensor \[N, A\], got ndarray"):
        env.step(env.reset(), action.numpy())


def test_columns_tell_of_the_step_and_a_time_limit_is_no_end_for_good():
    env = environments()
    policy, generator = small_policy(env), torch.Generator().manual_seed(1)
    after, unroll = collect(env, env.reset(), policy, STEPS, generator, tuple(COLUMNS))
    sizes = Sizes(env.state_dim, env.action_dim, env.goal_dim)
    assert unroll.states.shape == (STEPS, 3, sizes.state) and unroll.actions.shape == (STEPS, 3, sizes.action)
    for name, column in unroll.columns.items():
        size = COLUMNS[name].size(sizes)
        assert column.shape == ((STEPS, 3, size) if size else (STEPS, 3)), name
        assert column.dtype == (COLUMNS[name].dtype or torch.float32), name
    states, ids = torch.cat([unroll.states, after.obs[None, :, : sizes.state]]), unroll.traj_ids
    cut = (torch.arange(STEPS) % LENGTH == LENGTH - 1)[:, None].expand(STEPS, 3)
    assert torch.equal(unroll.columns["truncations"], cut) and not unroll.columns["terminals"].any()
    assert torch.equal(ids[1:] - ids[:-1], cut[:-1].int())
    led_to = unroll.columns["next_states"]
    assert torch.equal(led_to[~cut], states[1:][~cut])
    assert not (led_to[cut] == states[1:][cut]).all(dim=1).any()  # a reset lies between them
    goals = unroll.columns["goals"]
    assert torch.equal(goals[1:][~cut[:-1]], goals[:-1][~cut[:-1]])
    verdict = env.reached(led_to.flatten(0, 1), goals.flatten(0, 1)).view(STEPS, 3)
    assert torch.equal(unroll.columns["successes"], verdict)
    assert unroll.success == verdict.float().mean().item()


def test_collecting_ahead_is_collecting_with_the_policy_as_it_was():
    env, columns = environments(), ("goals",)
    policy = small_policy(env)
    coming = Ahead(env, columns).start(env.reset(), policy, STEPS, seed=5)
    before = policy.copy()
    with torch.no_grad():
        policy.actor.mean.bias.add_(1)  # learning goes on
    _, ahead = coming.result()
    _, alone = collect(env, env.reset(), before, STEPS, torch.Generator().manual_seed(5), columns)
    assert torch.equal(ahead.actions, alone.actions) and torch.equal(ahead.states, alone.states)
    assert ahead.columns.keys() == {"goals"} and torch.equal(ahead.columns["goals"], alone.columns["goals"])
