"""The `deepres` command, also as `python -m deepres`."""

import sys


def main() -> None:
    try:
        from deepres.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        sys.exit("deepres: the command line needs tyro; pip install 'deepres[envs]'")
    run()


if __name__ == "__main__":
    main()
