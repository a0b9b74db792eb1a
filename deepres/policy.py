"""A trained policy on its own: what acts, without the ring, the optimisers and what else it was trained with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres._version import __version__
from deepres.acting import ActorPolicy
from deepres.config import Config
from deepres.data.batch import Sizes
from deepres.data.chunks import Player
from deepres.data.environments import Environments
from deepres.deploy.compiled import CompiledActor
from deepres.deploy.files import WRITERS
from deepres.deploy.plain import FrozenPolicy, PlainNetwork, frozen
from deepres.deploy.runtime import read_onnx
from deepres.machine import pick_device, plain_torch
from deepres.options import flags
from deepres.runs import checkpoint as checkpoints
from deepres.runs.checkpoint import CheckpointError
from deepres.runs.files import read_rows
from deepres.runs.folder import RunFolder, require_same
from deepres.training.environments import open_for, require_like, task_sizes
from deepres.training.evaluate import EVAL_SEED, Evaluation, Paths, evaluate
from deepres.training.learner import build_algorithm, kept_tensors

_PREFIX = "parameters/"


@dataclass(frozen=True)
class Policy:
    """A policy and what it was trained for.

        policy = deepres.Policy.load("runs/ant-crl-d64-s0")
        action = policy.act(obs)                    # obs [N, S + G] of torch, action [N, A] in [-1, 1]
        figures, paths = policy.evaluate()

    Its options are those of its run; `load` takes others.
    """

    network: ActorPolicy
    config: Config
    sizes: Sizes
    env_steps: int
    """Environment steps that it was trained for."""
    evaluation: dict[str, float] | None = None
    """The figures of its run's last evaluation, at their own env_steps, where it was loaded from a run that has one."""

    @classmethod
    @plain_torch()
    def load(cls, path: str | Path, **changes: Any) -> Policy:
        """The policy of a run's newest checkpoint that reads, or of a file that `save` wrote.

        path: a run's folder, a .safetensors file, or a file of `export` (.onnx), which acts through onnxruntime on the
        CPU. changes: options that say how it is computed and evaluated, set otherwise, e.g. device="cpu",
        eval_envs=512, eval_env="ant_big_maze_eval". Nothing at `path` changes. Raises FileNotFoundError, ValueError or
        CheckpointError in one sentence.
        """
        path = Path(path)
        if path.suffix == ".onnx" and not path.is_dir():
            return cls._from_onnx(path, changes)
        if path.suffix == ".pt2" and not path.is_dir():
            raise ValueError(
                f"{path} is a program of torch.export, which torch.export.load({path.name!r}).module() runs; pass a "
                "run's folder, or a file of Policy.save or of export as .onnx"
            )
        config, sizes, env_steps, tensors, evaluation = (
            _from_file(path) if path.is_file() else _from_run(path)
        )
        config = _changed(config, changes)
        device = pick_device(config.system.device)
        found = Sizes(**sizes) if sizes else task_sizes(config.env)
        names, network = _without_memory(config, found)
        network.actor.to_empty(device=device)
        with torch.no_grad():
            for name, p in kept_tensors(network.actor).items():
                saved = tensors.get(names[name])
                if saved is None or saved.shape != p.shape:
                    came = "nothing" if saved is None else str(list(saved.shape))
                    raise ValueError(
                        f"{path} does not hold this policy: {names[name]} must have shape {list(p.shape)}, got {came}; "
                        "restore its config.json, or load it with the version of deepres that wrote it"
                    )
                p.copy_(saved)
        return cls(network, config, found, env_steps, evaluation)

    @classmethod
    def _from_onnx(cls, path: Path, changes: dict[str, Any]) -> Policy:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; pass a file of `deepres export`")
        network, about = read_onnx(path)
        asked = "cpu" if changes.get("device", "auto") == "auto" else changes["device"]
        config = _changed(Config.from_dict(about["config"], str(path)), {**changes, "device": asked})
        if pick_device(config.system.device).type != "cpu":
            raise ValueError(
                f"{path} acts on the CPU, got device={config.system.device}; load the run it was exported from"
            )
        return cls(network, config, Sizes(**about["sizes"]), about["env_steps"], about["evaluation"])

    @plain_torch()
    def export(self, path: str | Path, format: str | None = None) -> Path:
        """Write what it computes without noise, in float32, for programs that know nothing of deepres.

        path: the file. format: "onnx" (opset 18, standard operators alone: obs [batch, S + G] -> action [batch, A], of
        a policy that plans H > 1 actions also plan [batch, H, A]) or "pt2" (torch.export: obs -> [batch, H * A]); by
        default as the file's suffix says. obs has one column more where the policy is clocked, see `act`.

        Metadata, all text: deepres_version, algorithm, env, eval_env, state_dim, goal_dim, action_dim, horizon,
        clocked, depth, width, env_steps; goal_slice ("0:2", where a state has what the goal speaks of) and dt (seconds
        of one action) where the environment can be opened here; action_low and action_high (JSON) where it is one of
        gymnasium's, which stretches [-1, 1] over them; success and success_env_steps of the run's last evaluation if it
        has one; deepres, JSON for `Policy.load`. Raises ImportError without onnx, ValueError, OSError.
        """
        path = Path(path)
        format = path.suffix[1:] if format is None else format
        if format not in WRITERS:
            raise ValueError(
                f"format must be one of {', '.join(WRITERS)}, got {format!r}; name the file policy.onnx"
            )
        network = self._plain()
        WRITERS[format](network, self._metadata(network), path)
        return path

    @plain_torch()
    def compiled(self, precision: str = "fp32") -> Policy:
        """This policy for one observation at a time: on one thread of the CPU, without noise, weights packed once.

        A row reads every weight once and in order; many rows are done one after another. precision: fp32, or bf16,
        which rounds the weights alone. `network.actor.act_into(obs, actions)` acts without allocating. Later changes
        of this policy's weights do not reach it. Raises ImportError without deepres._C, ValueError.
        """
        network = self._plain()
        actor = CompiledActor(network, precision)
        return replace(self, network=frozen(actor, network.horizon, network.clocked))

    def _plain(self) -> PlainNetwork:
        self._require_network()
        return PlainNetwork(self.network)

    def _require_network(self) -> None:
        if isinstance(self.network, FrozenPolicy):
            raise ValueError(
                "this policy only acts, its network is not there to be saved, exported or compiled; "
                "load the run that it came from"
            )

    def _metadata(self, actor: PlainNetwork) -> dict[str, str]:
        """See `export`."""
        config, sizes = self.config, self.sizes
        said: dict[str, Any] = {
            "deepres_version": __version__, "algorithm": config.algorithm_name,
            "env": config.env.name, "eval_env": config.env.eval_env or config.env.name,
            "state_dim": sizes.state, "goal_dim": sizes.goal, "action_dim": sizes.action,
            "horizon": actor.horizon, "clocked": actor.clocked, "depth": actor.depth, "width": actor.width,
            "env_steps": self.env_steps, "deepres": json.dumps(self._about()),
        }  # fmt: skip
        try:
            env = self.environments(1)
            said |= {"goal_slice": f"{env.goal_slice.start}:{env.goal_slice.stop}", "dt": env.dt}
            if env.action_bounds is not None:
                low, high = env.action_bounds
                said |= {"action_low": json.dumps(low), "action_high": json.dumps(high)}
        except Exception:
            pass  # no physics here, no display for a user's own environment: the network needs neither
        if self.evaluation:
            said["success"] = self.evaluation["success_any"]
            said["success_env_steps"] = int(self.evaluation["env_steps"])
        return {name: str(value) for name, value in said.items()}

    def _about(self) -> dict[str, Any]:
        """What a file says of the policy in it, beside its weights."""
        return {
            "config": self.config.to_dict(), "sizes": asdict(self.sizes), "env_steps": self.env_steps,
            "evaluation": self.evaluation,
        }  # fmt: skip

    @plain_torch()
    def save(self, path: str | Path) -> Path:
        """Write the policy into the file `path` (.safetensors): weights, options and sizes, a few MB at most depths.

        Raises OSError in one sentence if the disk refuses; what was at `path` stays then.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self._require_network()
        path = Path(path)
        tensors = self.tensors()
        draft = path.with_name(f".{path.name}.draft")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, draft, metadata={"deepres": json.dumps(self._about())})
        except SafetensorError as error:
            draft.unlink(missing_ok=True)
            raise OSError(f"cannot write the policy to {path}: {error}; save it on another disk") from None
        draft.replace(path)
        return path

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters on the CPU, by the names that they have in a checkpoint of its run."""
        self._require_network()
        names, _ = _without_memory(self.config, self.sizes)
        return {names[n]: p.detach().cpu().contiguous() for n, p in kept_tensors(self.network.actor).items()}

    @property
    def device(self) -> torch.device:
        return self.network.device

    @plain_torch()
    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [N, A] in [-1, 1] for obs [N, S + G], concat(state, goal): the policy's mean, or sampled with `noise`
        [N, H * A], standard normal. Of a policy that plans H > 1 actions at once these are the first of new plans;
        `plan` gives all, `player` keeps to them. One that is clocked (gcsl) wants one column more, the steps left of
        the episode after this one. Raises TypeError for what is no tensor, ValueError for another shape."""
        obs = self._checked(obs)
        return self.network.act(obs, self._checked_noise(noise, len(obs)))

    @plain_torch()
    def plan(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Chunks [N, H, A], the next H actions for obs [N, S + G]; see `act`."""
        obs = self._checked(obs)
        return self.network.plan(obs, self._checked_noise(noise, len(obs)))

    def player(self) -> Player:
        """Acts as in training and evaluation, open loop: player.act(obs, traj_id), traj_id [N] any whole numbers that
        change where an episode begins. With a horizon of 1 that is `act`."""
        return Player(self.network)

    def _checked(self, obs: Tensor) -> Tensor:
        clocked = self.network.clocked
        wanted = self.sizes.state + self.sizes.goal + clocked
        if not isinstance(obs, Tensor):
            raise TypeError(
                f"obs must be a torch tensor, got {type(obs).__name__}; pass torch.as_tensor(obs), of JAX's "
                "deepres.bridge.to_torch(obs)"
            )
        if obs.ndim != 2 or obs.shape[1] != wanted:
            raise ValueError(
                f"obs must have shape [N, {wanted}], a state of {self.sizes.state} and a goal of {self.sizes.goal} "
                f"numbers{' and the steps left of the episode' if clocked else ''}, got {list(obs.shape)}"
            )
        return obs.to(self.device, torch.float32)

    def _checked_noise(self, noise: Tensor | None, rows: int) -> Tensor | None:
        if noise is None:
            return None
        if not isinstance(noise, Tensor):
            raise TypeError(
                f"noise must be a torch tensor, got {type(noise).__name__}; pass torch.as_tensor(noise)"
            )
        wanted = [rows, self.network.horizon * self.sizes.action]
        if list(noise.shape) != wanted:
            raise ValueError(
                f"noise must have shape {wanted}, got {list(noise.shape)}; pass torch.randn{tuple(wanted)}"
            )
        return noise.to(self.device, torch.float32)

    def environments(self, num_envs: int | None = None) -> Environments:
        """Environments of the task that it is evaluated on; by default eval_envs of them."""
        options, schedule = self.config.env, self.config.schedule
        count = schedule.eval_envs if num_envs is None else num_envs
        env = open_for(options.evaluated, count, seed=schedule.seed, device=self.device)
        require_like(env, self.sizes, options)
        return env

    @plain_torch()
    def evaluate(
        self, seed: int | None = None, watch: Callable[[Any], None] | None = None
    ) -> tuple[Evaluation, Paths]:
        """Figures of eval_envs episodes without noise; without a seed, of the same starts and goals as in training."""
        seed = self.config.schedule.seed + EVAL_SEED if seed is None else seed
        return evaluate(self.environments(), self.network, seed=seed, watch=watch)


def _without_memory(config: Config, sizes: Sizes) -> tuple[dict[str, str], ActorPolicy]:
    """The policy on the device "meta", and of each of its parameters the name in a checkpoint."""
    with torch.device("meta"):
        algorithm = build_algorithm(config, sizes)
    full = {id(p): _PREFIX + name for name, p in kept_tensors(algorithm).items()}
    network = algorithm.policy()
    kept = kept_tensors(network.actor)
    if lost := [name for name, _ in network.actor.named_buffers() if name not in kept]:
        raise ValueError(
            f"what an actor computes with must be in its checkpoint, got {', '.join(lost)} as buffers that are not "
            "persistent; register them with persistent=True, or compute them in forward"
        )
    return {name: full[id(p)] for name, p in kept.items()}, network


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    """`config` with `changes`, of which none may belong to what was learned."""
    learned = {
        "env", "env_options", "goal_sampler", "network", "algorithm", *flags(config.network), *flags(config.algorithm)
    }  # fmt: skip
    if fixed := sorted(set(changes) & learned):
        raise ValueError(f"{', '.join(fixed)} belongs to what was learned and cannot change; leave it out")
    return config.replace(**changes)


Parts = tuple[Config, dict[str, int], int, dict[str, Tensor], dict[str, float] | None]


def _from_run(path: Path) -> Parts:
    folder = RunFolder(path)
    config = folder.read_config()
    found = checkpoints.find_shared(folder.checkpoints, lambda name: name.startswith(_PREFIX))
    try:
        require_same(Config.from_dict(found.config, str(folder.checkpoints)), config)
    except ValueError as error:
        raise ValueError(f"{folder.config} is not that of the policy beside it: {error}") from None
    rows = read_rows(folder.evaluations)
    return config, found.sizes, found.counters["env_steps"], found.tensors, rows[-1] if rows else None


def _from_file(path: Path) -> Parts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["deepres"])
            config, sizes, env_steps = (about[name] for name in ("config", "sizes", "env_steps"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a policy that deepres saved ({error}); pass a run's folder or a file of Policy.save"
        ) from None
    return Config.from_dict(config, str(path)), sizes, env_steps, tensors, about.get("evaluation")
