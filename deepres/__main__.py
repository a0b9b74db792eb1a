"""`python -m deepres` is the `deepres` command."""

from deepres.cli import main

if __name__ == "__main__":
    main()
