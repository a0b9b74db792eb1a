"""What a trained policy does, as pictures: a video of some episodes, and every episode's path from above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepres.train import Run
