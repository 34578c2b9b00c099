"""The command line: `poise run train.py` and what belongs to it."""

from poise.tools.clock import now

STARTED = now()  # before anything else is loaded: the cost of a run is counted from here

from poise.cli.app import main  # noqa: E402

__all__ = ["STARTED", "main"]
