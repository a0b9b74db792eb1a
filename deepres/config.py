"""Every hyperparameter of a run, in one frozen dataclass: its unit, its default, and where the default comes from.

Defaults are the published ones (arXiv 2503.14858, section 4 and its training script) unless a comment says ours.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from deepres.kernels.dispatch import BACKENDS
from deepres.kernels.info_nce.options import ENERGIES, FORMS
from deepres.kernels.residual_stack.options import ACTIVATIONS, PRECISIONS


@dataclass(frozen=True)
class Config:
    """One training run. Raises ValueError, naming the field, for a value that cannot be meant."""

    env: str = "ant"
    """Task to learn; `deepres envs` lists them."""
    eval_env: str | None = None
    """Task to evaluate on, e.g. a maze's eval layout; None is the one that is learned."""
    physics: Literal["auto", "c", "jax", "warp"] = "auto"
    """What steps the environments: MuJoCo's C engine on threads, or MJX's jax or warp; auto is the fastest here."""
    parity: bool = False
    """Bring back the quirks of the published tasks that are mended otherwise (see each task's class)."""
    num_envs: int = 512
    """Environments stepped side by side, in all processes together."""
    episode_length: int = 1000
    """Steps after which an episode is cut (truncated)."""
    auto_reset: Literal["fresh", "first"] = "fresh"
    """What follows an episode: a new start and goal, or the first ones for ever (the published runs)."""

    critic_depth: int = 64
    """Dense layers in the blocks of each critic encoder (phi and psi), stem and head not counted."""
    actor_depth: int = 64
    """The same for the actor; the paper keeps it at 512 beside a 1024-layer critic."""
    width: int = 256
    """Features of every hidden layer."""
    feature_dim: int = 64
    """Numbers that phi and psi end in."""
    skip_every: int = 4
    """Dense layers to a residual block; 0 leaves the skips out (ablation)."""
    activation: Literal["swish", "relu"] = "swish"
    """Swish, or ReLU (ablation)."""
    norm: bool = True
    """LayerNorm after every hidden Dense; False is the ablation."""

    energy: Literal["norm", "l2", "dot", "cosine"] = "norm"
    """How phi and psi are compared: minus the Euclidean distance, its square, dot product, cosine."""
    form: Literal["forward", "backward", "symmetric", "binary"] = "forward"
    """Form of the contrastive loss."""
    logsumexp_penalty: float = 0.1
    """Coefficient of the log-sum-exp penalty."""
    gamma: float = 0.99
    """Discount: a goal lies d steps ahead with probability proportional to gamma^d."""
    batch_size: int = 512
    """Pairs in a gradient step, in all processes together; each pair's goal is a negative for the others."""
    actor_lr: float = 3e-4
    """Adam step size of the actor."""
    critic_lr: float = 3e-4
    """Adam step size of the critic."""
    alpha_lr: float = 3e-4
    """Adam step size of the temperature."""
    target_entropy_per_action: float = -0.5
    """Entropy that the temperature aims at, nats for each action dimension."""

    total_steps: int = 100_000_000
    """Environment steps of the whole run, all environments together."""
    unroll_length: int = 62
    """Steps collected in each environment before a round of gradient steps."""
    gradient_steps: int = 800
    """Gradient steps in a round."""
    buffer_steps: int = 10_000
    """Steps of each environment that the replay ring holds."""
    min_buffer_steps: int = 1_000
    """Steps of each environment collected before learning starts."""

    eval_every: int = 50
    """Rounds between evaluations (ours); one also runs before the first round and after the last."""
    eval_envs: int = 128
    """Episodes in an evaluation, one for each environment."""
    stop_at_success: float | None = None
    """End the run at an evaluation in which this share of the episodes reached their goal (ours); None never does."""
    checkpoint_every: int = 50
    """Rounds between checkpoints (ours); one is also written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept (ours)."""
    save_buffer: bool = True
    """Write the replay buffer into checkpoints (ours): a resumed run then repeats the one not stopped, bit for bit."""

    seed: int = 0
    """Seeds the networks, the environments and every draw of the run."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Operands of the stack's products; sums, statistics and weights stay in fp32."""
    checkpoint: str = "none"
    """Activations kept for backward: none recomputed, "auto", or a number of blocks between those kept."""
    impl: str = "auto"
    """Kernels: auto, reference, or a backend that `deepres doctor` lists."""
    threads: int = 0
    """CPU threads of PyTorch and the CPU kernels; 0 leaves PyTorch's choice, under torchrun this process's share of
    the cores. The same number, the same bits."""
    device: str = "auto"
    """Where networks and buffer live: auto (CUDA if there is one), cpu, cuda, cuda:1."""

    buffer_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the replay ring keeps states and actions in (ours): up to 2^-8 (bf16) or 2^-11 of a number is lost."""
    buffer_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the replay ring lies (ours): auto is beside the networks, cpu is pinned host memory."""
    cuda_graph: bool = True
    """Replay a gradient step as a CUDA graph on a GPU (ours); False launches every kernel from Python."""
    overlap: bool = False
    """Collect the next round while this one learns (ours): actions are then those of a policy one round old."""
    warmup_steps: int = 0
    """Gradient steps over which the learning rates grow from 0 to their value (ours)."""
    max_grad_norm: float | None = None
    """Bound on the Euclidean norm of the actor's and of the critic's gradient (ours); None has none."""
    max_skipped: float = 0.01
    """Share of a round's gradient steps that may be skipped because loss or gradient is not finite (ours)."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """What follows a round with more of them (ours): stop, or return to the last checkpoint and learn slower."""
    rollback_lr_factor: float = 0.5
    """Multiplies the learning rates at every return to a checkpoint (ours)."""

    gather_negatives: bool = False
    """Under torchrun, compare with the goals of all processes (ours): the joint batch's loss; else each its share's."""
    rank_timeout: int = 1800
    """Seconds that a process waits for another under torchrun before it ends with a sentence (ours)."""

    wandb: bool = False
    """Log to Weights & Biases too (ours); WANDB_MODE=offline keeps it on this machine."""

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}")
        for name in ("actor_lr", "critic_lr", "alpha_lr", "logsumexp_penalty"):
            value = getattr(self, name)
            if not _finite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
        if not _finite(self.target_entropy_per_action):
            raise ValueError(
                f"target_entropy_per_action must be finite, got {self.target_entropy_per_action!r}"
            )
        for name, most in (("max_grad_norm", math.inf), ("rollback_lr_factor", 1.0)):
            value = getattr(self, name)
            if value is not None and not (_finite(value) and 0 < value <= most):
                upto = "" if most == math.inf else f" and up to {most:g}"
                raise ValueError(f"{name} must be a finite number above 0{upto}, got {value!r}")
        if not (_finite(self.max_skipped) and 0 <= self.max_skipped < 1):
            raise ValueError(f"max_skipped must be a share from 0 to below 1, got {self.max_skipped!r}")
        stop = self.stop_at_success
        if stop is not None and not (_finite(stop) and 0 < stop <= 1):
            raise ValueError(f"stop_at_success must be a share above 0 and up to 1, or None, got {stop!r}")
        if not (_finite(self.gamma) and 0 < self.gamma < 1):
            raise ValueError(f"gamma must lie strictly between 0 and 1, got {self.gamma!r}")
        for name in ("critic_depth", "actor_depth"):
            depth = getattr(self, name)
            if self.skip_every and depth % self.skip_every:
                raise ValueError(
                    f"{name} must be a multiple of skip_every={self.skip_every}, got {depth}; "
                    f"use {max(self.skip_every, depth - depth % self.skip_every)}"
                )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not isinstance(self.gather_negatives, bool):
            raise ValueError(f"gather_negatives must be True or False, got {self.gather_negatives!r}")
        if self.min_buffer_steps > self.buffer_steps:
            raise ValueError(
                f"min_buffer_steps must not exceed buffer_steps={self.buffer_steps}, got {self.min_buffer_steps}"
            )
        if self.unroll_length > self.buffer_steps:
            raise ValueError(
                f"unroll_length must not exceed buffer_steps={self.buffer_steps}, got {self.unroll_length}"
            )
        if self.checkpoint not in ("none", "auto") and not (
            str(self.checkpoint).isdigit() and int(self.checkpoint) > 0
        ):
            raise ValueError(
                f"checkpoint must be none, auto or a number of blocks >= 1, got {self.checkpoint!r}"
            )

    @property
    def checkpoint_blocks(self) -> str | int:
        """`checkpoint` as `deepres.residual_stack` takes it."""
        return int(self.checkpoint) if str(self.checkpoint).isdigit() else self.checkpoint

    @property
    def stack_options(self) -> dict[str, Any]:
        """What every residual stack of the run is called with."""
        return {
            "skip_every": self.skip_every,
            "activation": self.activation,
            "norm": self.norm,
            "precision": self.precision,
            "recompute": self.checkpoint_blocks,
            "impl": self.impl,
        }

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> Config:
        """The config that `values` holds; `source` is named when a field is unknown."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"{source} has fields this version does not know: {', '.join(unknown)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> Config:
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no run at {path.parent}: {path.name} is not there; pass a folder that `deepres train` wrote"
            ) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not readable as JSON ({error}); restore it from a copy") from None
        return cls.from_dict(values, str(path))


# Fields that may change when a run is resumed; every other one shapes what the checkpoint holds or what the run means.
CHANGEABLE = frozenset({
    "total_steps", "stop_at_success", "eval_every", "eval_envs", "checkpoint_every", "keep_checkpoints",
    "save_buffer", "precision", "checkpoint", "impl", "threads", "device", "actor_lr", "critic_lr", "alpha_lr",
    "buffer_dtype", "buffer_device", "cuda_graph", "overlap", "warmup_steps", "max_grad_norm", "max_skipped",
    "on_divergence", "rollback_lr_factor",
    "rank_timeout", "eval_env", "physics", "wandb",
})  # fmt: skip

_AT_LEAST = {
    "num_envs": 1, "episode_length": 2, "critic_depth": 1, "actor_depth": 1, "width": 1, "feature_dim": 1,
    "skip_every": 0, "batch_size": 2, "total_steps": 1, "unroll_length": 1, "gradient_steps": 1,
    "buffer_steps": 2, "min_buffer_steps": 2, "eval_every": 1, "eval_envs": 1, "checkpoint_every": 1,
    "keep_checkpoints": 1, "seed": 0, "threads": 0, "warmup_steps": 0,
    "rank_timeout": 1,
}  # fmt: skip

_CHOICES = {
    "auto_reset": ("fresh", "first"),
    "physics": ("auto", "c", "jax", "warp"),
    "activation": ACTIVATIONS,
    "energy": ENERGIES,
    "form": FORMS,
    "precision": PRECISIONS,
    "impl": ("auto", *BACKENDS["residual_stack"]),
    "buffer_dtype": ("fp32", "bf16", "fp16"),
    "buffer_device": ("auto", "cpu", "cuda"),
    "on_divergence": ("stop", "rollback"),
}


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
