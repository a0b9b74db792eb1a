"""Trains on being asked to: FOLDER CONFIG.json, then a line new or resume on stdin for each run.

Imports once, then forks a process for each run that it is asked for, before JAX or OpenMP have threads. Says "ready",
and of every run the process's number and, when it has ended, its status.
"""

import os
import sys
from pathlib import Path

import jax  # noqa: F401
import mujoco.mjx  # noqa: F401
import safetensors.torch  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

from deepres import envs  # noqa: F401
from deepres.config import Config
from deepres.training.loop import train

folder, config = Path(sys.argv[1]), Config.from_file(Path(sys.argv[2]))
print("ready", flush=True)
for mode in sys.stdin:
    child = os.fork()
    if child == 0:
        train(config, folder, resume=mode.strip() == "resume", progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
