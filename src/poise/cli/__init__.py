"""The command line: `poise run train.py` and what belongs to it."""

import poise.cli.started  # noqa: F401 - before anything else
from poise.cli.app import main

__all__ = ["main"]
