"""The `deepres` command, also as `python -m deepres`."""

import os
import sys


def main() -> None:
    # Read once, when torch loads OpenMP: its workers sleep after their work, and XLA's find a core (docs/decisions.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from deepres.commands.main import main as run
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        sys.exit("deepres: the command line needs tyro; pip install 'deepres[envs]'")
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
