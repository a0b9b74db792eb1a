"""A policy out of an ONNX file, acting through onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepres.deploy.files import INPUT, OUTPUT, PLAN
from deepres.deploy.plain import FrozenPolicy, frozen
from deepres.runs.checkpoint import CheckpointError


class OnnxActor(nn.Module):
    """obs [N, S + G] float32 on the CPU -> actions [N, H * A], by an onnxruntime session."""

    def __init__(self, session: Any, output: str):
        super().__init__()
        self.session, self.output = session, output

    def forward(self, obs: Tensor) -> Tensor:
        (found,) = self.session.run([self.output], {INPUT: obs.detach().numpy()})
        return torch.from_numpy(found).flatten(1)


def open_session(path: Path, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU. threads: that one call may use, by default as many as PyTorch's. Raises
    ImportError without onnxruntime, and its own exceptions for a file that it cannot read."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path} needs onnxruntime ({error}); pip install 'deepres[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_onnx(path: Path) -> tuple[FrozenPolicy, dict[str, Any]]:
    """The policy in `path`, and what `Policy.export` says about it in "deepres": config, sizes, env_steps, evaluation.

    Raises ImportError without onnxruntime, CheckpointError in one sentence for a file that `Policy.export` did not
    write.
    """
    try:
        session = open_session(path)
        about = json.loads(session.get_modelmeta().custom_metadata_map["deepres"])
        shapes = {one.name: one.shape for one in session.get_outputs()}
        output = PLAN if PLAN in shapes else OUTPUT
        horizon = shapes[PLAN][1] if PLAN in shapes else 1
        clocked = session.get_inputs()[0].shape[1] - about["sizes"]["state"] - about["sizes"]["goal"]
    except ImportError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own, which share no name
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} is not a policy that deepres exported ({reason}); pass a file of `deepres export`"
        ) from None
    return frozen(OnnxActor(session, output), horizon, bool(clocked)), about
