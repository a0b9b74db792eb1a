"""The tasks, a file a family, and the models that they load from assets/."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
