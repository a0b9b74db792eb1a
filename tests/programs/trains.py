"""Trains: FOLDER new|resume CONFIG.json"""

import sys
from pathlib import Path

from deepres.config import Config
from deepres.training.loop import train

folder, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
train(Config.from_file(Path(sys.argv[3])), folder, resume=resume)
