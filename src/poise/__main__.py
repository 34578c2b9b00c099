"""`python -m poise` is the same as `poise` (torchrun needs it: `torchrun ... -m poise run train.py`)."""

from poise.cli import main

if __name__ == "__main__":
    main()
