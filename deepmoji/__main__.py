"""`python -m deepmoji` is the command, which `torchrun -m deepmoji` needs."""

from deepmoji.cli import main

if __name__ == "__main__":
    main()
