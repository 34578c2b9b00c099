"""The command line: `poise run train.py` and what belongs to it."""

from poise.cli.app import main

__all__ = ["main"]
