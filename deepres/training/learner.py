"""One gradient step of any algorithm: its losses, their gradients over all processes, and an optimiser for each group.

A step whose loss or gradient is not finite changes nothing and is counted (metric `skipped_steps`). Nothing in a step
waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deepres import algorithms
from deepres.acting import ActorPolicy
from deepres.algorithms.base import Algorithm, Group
from deepres.config import Config
from deepres.data.batch import Batch, Sizes
from deepres.kernels.packing import packed_once
from deepres.networks import Networks, ResidualStack
from deepres.ranks import ALONE, Ranks
from deepres.training import contract
from deepres.training.optimizer import Adam, squares_of

SKIPPED = "skipped_steps"


def build_algorithm(config: Config, sizes: Sizes, generator: torch.Generator | None = None) -> Algorithm:
    """The algorithm of `config` for a task of `sizes`, with its networks. generator: draws the initial weights."""
    networks = Networks(config.network, config.system.stack, generator)
    algorithm = algorithms.find(config.algorithm_name)(config.algorithm, sizes, networks)
    contract.check_parts(algorithm)
    return algorithm


def kept_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of `module`, by name: its parameters, slow copies too, and persistent buffers."""
    kept = module.state_dict(keep_vars=True)
    buffers = ((name, b) for name, b in module.named_buffers() if name in kept)
    return dict(module.named_parameters()) | dict(buffers)


def _backward(losses: list[Tensor]) -> None:
    """The gradients of their sum: what each leaves is as if it were alone, for they are disjoint."""
    if losses:
        one = torch.ones_like(losses[0])
        torch.autograd.backward(losses, [one.view(loss.shape) for loss in losses])


class Learner:
    """An algorithm and its optimisers.

    config: of the run; its batch_size is this process's own. sizes: of the task. generator: draws the initial
    weights. ranks: the processes that gradients are averaged over.
    """

    def __init__(
        self,
        config: Config,
        sizes: Sizes,
        *,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ):
        self.config, self.ranks, self.device = config, ranks, torch.device(device)
        self.algorithm = build_algorithm(config, sizes, generator).to(self.device)
        self.algorithm.exchange = ranks
        groups = self.algorithm.groups
        self._parameters = contract.checked(groups, self._kind)
        self.optimizers = {
            name: self._optimizer(group, self._parameters[name]) for name, group in groups.items()
        }
        self._every = {name: group.every for name, group in groups.items() if group.every > 1}
        # Gradient steps, for groups that are not stepped at every one. Skipped ones count too: where a later yield is
        # not finite, the groups before it were stepped all the same.
        self._taken = torch.zeros((), dtype=torch.int64, device=self.device)
        self.metric_names: tuple[str, ...] = ()
        """What `step` returns, in its order; known after the first step."""
        self.rebuilt = 0
        """Grows when what a captured step has taken in is no longer what a step would use (see cuda_graph.py)."""

    def _optimizer(self, group: Group, parameters: list[nn.Parameter]) -> Adam:
        schedule = self.config.schedule
        bound = schedule.max_grad_norm if group.clip else None
        lr = group.lr * self._share_of_lr(parameters)
        return Adam(
            parameters,
            lr,
            warmup_steps=schedule.warmup_steps,
            decay_steps=group.decay_steps,
            last_share=group.last_share,
            max_grad_norm=bound,
        )

    def _share_of_lr(self, parameters: list[nn.Parameter]) -> float:
        """min(1, sqrt(lr_depth / D)) for a group whose deepest stack has D layers; 1 without `lr_depth` or stack."""
        full, own = self.config.schedule.lr_depth, {id(p) for p in parameters}
        stacks = (m for m in self.algorithm.modules() if isinstance(m, ResidualStack) and id(m.weight) in own)
        depth = max((stack.depth for stack in stacks), default=0)
        return min(1.0, math.sqrt(full / depth)) if full and depth else 1.0

    def noise(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Standard normal numbers for one step: as the batch's action, or [noises, ...] (see Algorithm.noises)."""
        count = self.algorithm.noises
        shape = batch.action.shape if count == 1 else (count, *batch.action.shape)
        return torch.randn(shape, generator=generator, device=self.device)

    def losses(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses with the parameters as they are, and the metrics, without a step (see
        Algorithm.losses)."""
        total: Tensor | float = 0.0
        metrics: dict[str, Tensor] = {}
        for losses, measured in contract.yields(self.algorithm, batch, noise):
            total, metrics = sum(losses.values(), total), metrics | measured
        assert isinstance(total, Tensor)
        return total, {name: value.detach() for name, value in metrics.items()}

    @packed_once()
    def step(self, batch: Batch, noise: Tensor) -> Tensor:
        """One gradient step of every group; returns the metrics, [len(metric_names)] in the order of `metric_names`.

        Where a loss or any gradient is not finite, nothing changes: parameters, moments and step counts stay, the
        metrics are 0 and `skipped_steps` is 1. (Of groups that are stepped one after another, those before it are
        stepped, those after it are not; one that is stepped every so manieth time does not make up for it.)
        Raises ValueError, naming the group, for losses that are not as Algorithm.losses says.
        """
        skip: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for losses, measured in contract.yields(self.algorithm, batch, noise):
            metrics |= {name: value.detach() for name, value in measured.items()}
            if not self.metric_names:  # the first step
                contract.check_apart(self.algorithm, losses, self._parameters)
            optimizers = {name: self.optimizers[name] for name in losses}
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            _backward([loss for loss in losses.values() if loss.requires_grad])
            self._check_reached(optimizers)
            skip = self._apply(optimizers, [loss.detach() for loss in losses.values()], skip)
        assert skip is not None
        if not metrics:
            raise ValueError(
                f"{self._kind}.losses must yield a metric, got none; yield its losses as such, say"
            )
        if missing := [name for name in self.algorithm.headline if name not in metrics]:
            raise ValueError(
                f"{self._kind}.headline must name metrics that losses yields ({', '.join(metrics)}), got {missing[0]!r}"
            )
        with torch.no_grad():
            self.algorithm.unstepped = {name: self._not_due(name, skip) for name in self._every}
            self.algorithm.after_step(skip)
            if self._every:
                self._taken += 1
            self.metric_names = (*metrics, SKIPPED)
            values = torch.stack([*metrics.values(), skip])
            values[:-1].masked_fill_(skip != 0, 0.0)
            return values

    def _check_reached(self, optimizers: dict[str, Adam]) -> None:
        for name, optimizer in optimizers.items():
            if not optimizer.gradients():
                raise ValueError(
                    f"the loss of group {name!r} of {self._kind} must depend on the group's parameters, and reaches "
                    "none of them; see what detaches it, or which networks build gave the group"
                )

    @property
    def _kind(self) -> str:
        return contract.kind(self.algorithm)

    @torch.no_grad()
    def _apply(self, optimizers: dict[str, Adam], losses: list[Tensor], skip: Tensor | None) -> Tensor:
        """Step the optimisers unless something is not finite, or `skip` is 1 already; returns whether they were not."""
        grads = [optimizer.gradients() for optimizer in optimizers.values()]
        together = [gradient for each in grads for gradient in each]
        self.ranks.average(together)
        # averaged gradients are the same everywhere, so all ranks agree; a loss is each rank's own
        squares = squares_of(together if self.ranks.size > 1 else [*together, *losses])
        judged = squares.sum()
        found = torch.nan_to_num(judged - judged, nan=1.0).float()  # of a finite number 0, else NaN
        skip = found if skip is None else torch.maximum(skip, found)
        own = squares[: len(together)].split([len(each) for each in grads])
        for (name, optimizer), each in zip(optimizers.items(), own, strict=True):
            optimizer.step(skip=self._not_due(name, skip), squares=each)
            if (bound := self.algorithm.groups[name].bound) is not None:
                for p in optimizer.param_groups[0]["params"]:
                    p.clamp_(-bound, bound)
        return skip

    def _not_due(self, name: str, skip: Tensor) -> Tensor:
        every = self._every.get(name)
        return skip if every is None else torch.maximum(skip, ((self._taken + 1) % every != 0).float())

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """`step`, with the metrics by name."""
        values = self.step(batch, noise)
        return dict(zip(self.metric_names, values.unbind(), strict=True))

    @property
    def policy(self) -> ActorPolicy:
        """What acts, as it is now and as it will be: no copy."""
        return self.algorithm.policy()

    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions of the policy as it is now (see `ActorPolicy.act`)."""
        return self.policy.act(obs, noise)

    @property
    def lr_scale(self) -> float:
        """What multiplies all learning rates: 1 unless a run was rolled back; saved with the rest."""
        return next(iter(self.optimizers.values())).lr_scale

    @lr_scale.setter
    def lr_scale(self, scale: float) -> None:
        for optimizer in self.optimizers.values():
            optimizer.lr_scale = scale
        self.rebuilt += 1

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter by its full name, e.g. "actor.trunk.stack.weight"; slow copies of networks and what an
        algorithm registered as a persistent buffer too."""
        return kept_tensors(self.algorithm)

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters and optimiser moments, flat, for a checkpoint."""
        tensors = {f"parameters/{name}": p.detach() for name, p in self.parameters().items()}
        for which, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizers/{which}/{index}/{key}"] = value
        if self._every:
            tensors["steps_taken"] = self._taken
        tensors["lr_scale"] = torch.tensor(self.lr_scale, dtype=torch.float64)
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave; ValueError, nothing changed, if a name or a shape does not fit."""
        for name, p in self.parameters().items():
            saved = tensors.get(f"parameters/{name}")
            if saved is None or saved.shape != p.shape:
                came = "nothing" if saved is None else str(list(saved.shape))
                raise ValueError(
                    f"the checkpoint does not fit this network: {name} must have shape {list(p.shape)}, got {came}; "
                    "resume with the depths and width that the run was started with"
                )
        for name, p in self.parameters().items():
            p.copy_(tensors[f"parameters/{name}"])
        for which, optimizer in self.optimizers.items():
            prefix = f"optimizers/{which}/"
            state: dict[int, dict[str, Any]] = {}
            for name, value in tensors.items():
                if name.startswith(prefix):
                    index, key = name[len(prefix) :].split("/")
                    state.setdefault(int(index), {})[key] = value.clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        if self._every:
            # a checkpoint from before the first group had an `every` has none
            self._taken.copy_(tensors.get("steps_taken", torch.zeros(())))
        self.lr_scale = float(tensors.get("lr_scale", 1.0))  # checkpoints of version 0.1 have none
