"""What a trained contrastive run knows of its maze, in numbers and a picture (arXiv 2503.14858, figures 9, 10, 17).

way_rank      rank correlation (Spearman) of the energy of standing in a place, as the policy acts there, with minus
              the cells on the shortest way from it to the goal: 1 knows the way, a straight line's is beside it
line_rank     of minus the straight line's length with the same
step_near     mean length of a step of phi within ten steps of reaching the goal, over that further away
branch_decay  rms of what phi's last block adds, over that of its first
varying       rms of the part of phi's last stream that depends on the input
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.algorithms.parts import pair_energy
from deepres.data.collect import collect
from deepres.experiments.make_data import Map
from deepres.experiments.study import Numbers
from deepres.report.correlation import spearman
from deepres.report.figures import save
from deepres.training.instruments import measure
from deepres.training.loop import load_run
from deepres.training.run import Run

PLACES, GOALS, STEPS, NEAR = 512, 8, 200, 10


def look(folder: Path) -> Numbers:
    """The numbers of the run of CRL in a maze at `folder`; its picture is written beside them, energy.png
    and energy.pdf."""
    run = load_run(folder)
    draw = torch.Generator().manual_seed(0)
    numbers = _ranks(run, draw) | _blocks(run) | _steps(run)
    _picture(run, folder / "energy.png")
    return numbers


@torch.no_grad()
def _energy(run: Run, place: Tensor, goal: Tensor) -> Tensor:
    """[N] of standing still at `place` [N, 2], as the policy acts there, under `goal` [N, 2]."""
    algorithm: Any = run.learner.algorithm
    state = torch.zeros(len(place), run.sizes.state, device=place.device)
    state[:, :2] = place
    action = run.learner.policy.plan(torch.cat([state, goal], dim=1)).flatten(1)
    phi = algorithm.phi(torch.cat([state, action], dim=1))
    return pair_energy(phi, algorithm.psi(goal), algorithm.options.energy)


def _map(run: Run) -> Map:
    from deepres.envs import make_task

    return Map(make_task(run.config.env.name).maze)


def _places(map: Map, count: int, draw: torch.Generator) -> Tensor:
    """[count, 2] places in free cells, away from the walls."""
    centres = map.centres[map.draw(count, draw)]
    return centres + 0.5 * map.cell * (torch.rand(count, 2, generator=draw) - 0.5)


def _ranks(run: Run, draw: torch.Generator) -> Numbers:
    map = _map(run)
    ways, lines = [], []
    for goal in map.draw(GOALS, draw).tolist():
        place = _places(map, PLACES, draw)
        target = map.centres[goal].expand(PLACES, 2)
        way = -map.apart[goal, map.cell_of(place)].double()
        ways.append(spearman(_energy(run, place, target).double().numpy(), way.numpy()))
        lines.append(spearman(-(place - target).norm(dim=1).double().numpy(), way.numpy()))
    return {"way_rank": sum(ways) / GOALS, "line_rank": sum(lines) / GOALS}


def _blocks(run: Run) -> Numbers:
    generator = torch.Generator().manual_seed(1)
    size = run.share.schedule.batch_size
    (batch,) = run.sampler.batches(
        run.buffer, 1, size, window=run.config.env.episode_length, generator=generator
    )
    rows = [
        r for r in measure(run.learner, batch, run.learner.noise(batch, generator)) if r["network"] == "phi"
    ]
    return {"branch_decay": rows[-1]["branch"] / rows[0]["branch"], "varying": rows[-1]["varying"]}


@torch.no_grad()
def _steps(run: Run) -> Numbers:
    """The policy acts from new starts; NaN if it reaches no goal, or none from far away."""
    algorithm: Any = run.learner.algorithm
    generator = torch.Generator().manual_seed(2)
    standing = run.env.reset(run.config.schedule.seed + 17)
    _, unroll = collect(run.env, standing, run.learner.policy, STEPS, generator, ("successes",))
    taken = torch.cat([unroll.states, unroll.actions], dim=2)
    phi = algorithm.phi(taken.flatten(0, 1)).view(STEPS, run.env.num_envs, -1)
    length = (phi[1:] - phi[:-1]).norm(dim=2)
    first = torch.where(unroll.columns["successes"].bool(), torch.arange(STEPS)[:, None], STEPS).amin(dim=0)
    left = first - torch.arange(STEPS - 1)[:, None]
    same = unroll.traj_ids[1:] == unroll.traj_ids[:-1]
    reached = (first < STEPS) & same & (left >= 0)
    near, far = length[reached & (left < NEAR)], length[reached & (left >= NEAR)]
    return {"step_near": float(near.mean() / far.mean()) if len(near) and len(far) else float("nan")}


def _picture(run: Run, path: Path, side: int = 90) -> None:
    from matplotlib.figure import Figure

    map = _map(run)
    low, high = map.centres.amin(dim=0) - map.cell / 2, map.centres.amax(dim=0) + map.cell / 2
    x, y = torch.meshgrid(
        *(torch.linspace(float(low[i]), float(high[i]), side) for i in (0, 1)), indexing="ij"
    )
    place = torch.stack([x.flatten(), y.flatten()], dim=1)
    goal = map.centres[map.apart.amax(dim=1).argmax()]
    energy = _energy(run, place, goal.expand_as(place)).view(side, side)
    inside = (place - map.centres[map.cell_of(place)]).abs().amax(dim=1).view(side, side) <= map.cell / 2
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    axis = figure.add_subplot()
    shown = torch.where(inside, energy, torch.nan).numpy()
    image = axis.pcolormesh(x.numpy(), y.numpy(), shown, cmap="viridis", rasterized=True)
    axis.plot(*goal.tolist(), "*", color="black", ms=12, markerfacecolor="white")
    depth = run.config.network.depth
    axis.set(
        xlabel="x (m)",
        ylabel="y (m)",
        aspect="equal",
        title=f"energy of a place, to the star: {depth} layers",
    )
    figure.colorbar(image, ax=axis)
    save(figure, path)
