"""Contrastive RL in one file, to be read from top to bottom: no deepres.train, Learner or ReplayBuffer, only the ops,
the networks made of them, and the environments. Everything that the algorithm decides stands below.

    python examples/single_file_crl.py
    python examples/single_file_crl.py --env ant_u_maze --depth 64 --total-steps 10000000

With phi(s, a) and psi(g) two deep encoders, and g a state that was reached d steps later, P(d) ~ gamma^d:

    critic   info_nce(phi, psi): f(s, a, g) = -|phi - psi| is high for goals that are reached, and soon
    actor    mean(alpha log pi(a|s, g) - f(s, a, g)), a ~ pi
    alpha    holds the policy's entropy at --target-entropy per action

deepres.train(Config("crl", ...)) learns the same, with checkpoints, logs, several processes and CUDA graphs.
Source: arXiv 2206.07568 (contrastive RL), 2503.14858 (very deep).
"""

import argparse
import math
import time

import torch
from torch import Tensor

import deepres
from deepres.data.bridge import to_jax, to_torch

parser = argparse.ArgumentParser(description="Contrastive RL in one file.")
parser.add_argument("--env", default="point_u_maze", help="one of `deepres envs`")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--num-envs", type=int, default=128, help="environments stepped side by side")
parser.add_argument("--episode-length", type=int, default=400, help="control periods")
parser.add_argument(
    "--total-steps", type=int, default=1_000_000, help="environment steps, over all environments"
)
parser.add_argument("--depth", type=int, default=8, help="layers of each network, a multiple of 4")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--feature-dim", type=int, default=64, help="numbers that phi and psi end in")
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--unroll", type=int, default=50, help="steps of each environment between learning")
parser.add_argument("--gradient-steps", type=int, default=200, help="after each unroll")
parser.add_argument(
    "--kept-steps", type=int, default=2_000, help="newest steps of each environment that are learned from"
)
parser.add_argument(
    "--first-steps", type=int, default=300, help="steps of each environment before any learning"
)
parser.add_argument("--gamma", type=float, default=0.99)
parser.add_argument("--lr", type=float, default=1e-3, help="Adam step size")
parser.add_argument("--target-entropy", type=float, default=0.0, help="per action, in nats")
parser.add_argument("--eval-every", type=int, default=20, help="unrolls")
args = parser.parse_args()

torch.manual_seed(args.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# --- environments: states that are never changed in place, stepped all at once ---------------------------------------

env = deepres.envs.make(args.env, args.num_envs, args.seed, args.episode_length)
judge = deepres.envs.make(args.env, 64, args.seed + 1, args.episode_length)
S, G, A = env.state_dim, env.goal_dim, env.action_dim

# --- networks: an encoder of state-actions, one of goals, and the policy ---------------------------------------------

shape = {"width": args.width, "depth": args.depth, "device": device}
phi = deepres.Encoder(S + A, args.feature_dim, **shape)
psi = deepres.Encoder(G, args.feature_dim, **shape)
actor = deepres.Actor(S + G, A, **shape)
log_alpha = torch.zeros((), device=device, requires_grad=True)
critic_optimizer = torch.optim.Adam([*phi.parameters(), *psi.parameters()], args.lr)
actor_optimizer = torch.optim.Adam(actor.parameters(), args.lr)
alpha_optimizer = torch.optim.Adam([log_alpha], args.lr)


def sample(obs: Tensor) -> tuple[Tensor, Tensor]:
    """An action [B, A] in [-1, 1] at obs [B, S + G], and its log-density [B]."""
    mean, log_std = actor(obs)
    noise = torch.randn_like(mean)
    raw = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2 * (
        math.log(2) - raw - torch.nn.functional.softplus(-2 * raw)
    )  # log(1 - tanh^2), without overflow
    return torch.tanh(raw), (gaussian - squash).sum(dim=1)


# --- what happened: the newest steps of every environment, [kept, N, ...], oldest overwritten first -------------------

kept = args.kept_steps
states = torch.zeros(kept, args.num_envs, S, device=device)
actions = torch.zeros(kept, args.num_envs, A, device=device)
trajectories = torch.zeros(kept, args.num_envs, dtype=torch.int32, device=device)
inserted = 0


@torch.no_grad()
def collect(state, steps: int):
    """Act `steps` times in every environment; returns where they stand then."""
    global inserted
    for _ in range(steps):
        row, obs = inserted % kept, to_torch(state.obs, device)
        states[row], trajectories[row] = obs[:, :S], to_torch(state.traj_id, device)
        action, _ = sample(obs)
        actions[row] = action
        state = env.step(state, to_jax(action))
        inserted += 1
    return state


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """A batch: states [B, S], actions [B, A], and for each a goal [B, G] that its trajectory reached later."""
    count, oldest, newest = 3 * args.batch_size, max(0, inserted - kept), inserted - 1
    lane = torch.randint(args.num_envs, (count,), device=device)
    step = torch.randint(oldest, newest, (count,), device=device)
    # d by inverting the geometric law, cut off at the newest step; rows whose episode ended before are left out, which
    # is the same law cut off there
    within = -torch.expm1((newest - step) * math.log(args.gamma))
    d = torch.ceil(torch.log1p(-torch.rand(count, device=device) * within) / math.log(args.gamma))
    later = (step + d.clamp_min(1).long()).clamp_max(newest)
    fits = trajectories[step % kept, lane] == trajectories[later % kept, lane]
    lane, step, later = (x[fits][: args.batch_size] for x in (lane, step, later))
    goal = states[later % kept, lane][:, env.goal_slice]
    return states[step % kept, lane], actions[step % kept, lane], goal


def learn() -> tuple[Tensor, Tensor]:
    """One gradient step of critic, actor and temperature; returns the critic's loss and the policy's entropy."""
    state, action, goal = draw()
    goals = psi(goal)
    critic_loss, _ = deepres.info_nce(phi(torch.cat([state, action], dim=1)), goals, logsumexp_penalty=0.1)

    chosen, log_prob = sample(torch.cat([state, goal], dim=1))
    for p in phi.parameters():  # the actor's loss reads the critic and leaves it alone: no weight gradients
        p.requires_grad_(False)
    energy = (
        -(phi(torch.cat([state, chosen], dim=1)) - goals.detach()).square().sum(dim=1).clamp_min(1e-12).sqrt()
    )
    for p in phi.parameters():
        p.requires_grad_(True)
    actor_loss = (log_alpha.exp().detach() * log_prob - energy).mean()
    alpha_loss = log_alpha.exp() * (-log_prob.detach().mean() - args.target_entropy * A)

    for optimizer, loss in (
        (critic_optimizer, critic_loss),
        (actor_optimizer, actor_loss),
        (alpha_optimizer, alpha_loss),
    ):
        optimizer.zero_grad()
        loss.backward()
    for optimizer in (
        critic_optimizer,
        actor_optimizer,
        alpha_optimizer,
    ):  # all losses read the weights as they were
        optimizer.step()
    return critic_loss.detach(), -log_prob.detach().mean()


@torch.no_grad()
def evaluate() -> float:
    """The share of fresh episodes in which the goal is reached at some time, acting without noise."""
    state = judge.reset()
    reached = torch.zeros(judge.num_envs, dtype=torch.bool, device=device)
    going = torch.ones_like(reached)
    for _ in range(args.episode_length):
        mean, _ = actor(to_torch(state.obs, device))
        state = judge.step(state, to_jax(torch.tanh(mean)))
        reached |= going & (to_torch(state.success, device) > 0)
        going &= ~to_torch(state.done, device).bool()
    return reached.float().mean().item()


# --- the loop --------------------------------------------------------------------------------------------------------

begun = time.monotonic()
print(f"{0:>10,} env steps  goals reached {evaluate():6.1%}")
state = collect(env.reset(), args.first_steps)
unrolls = max(1, round(args.total_steps / (args.unroll * args.num_envs)))
for unroll in range(1, unrolls + 1):
    state = collect(state, args.unroll)
    for _ in range(args.gradient_steps):
        loss, entropy = learn()
    if unroll % args.eval_every == 0 or unroll == unrolls:
        print(
            f"{inserted * args.num_envs:>10,} env steps  goals reached {evaluate():6.1%}  critic loss {loss:.2f}  "
            f"entropy {entropy:.2f}  {time.monotonic() - begun:.0f} s",
            flush=True,
        )
