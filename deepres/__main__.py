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
        sys.exit(_without_tyro(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    run()


def _without_tyro(words: list[str]) -> str | int:
    """What `pip install deepres` alone can do: tell what is there. Returns the exit status, or why it is 1."""
    if words == ["--version"]:
        from deepres._version import __version__

        print(f"deepres {__version__}")
        return 0
    if words != ["doctor"]:
        return "deepres: the command line needs tyro; pip install 'deepres[envs]'"
    from deepres.config import Config
    from deepres.report.doctor import print_report

    print_report(Config())
    return 0


if __name__ == "__main__":
    main()
