"""When the command line began to load: what a run costs its user begins there."""

from poise.tools.clock import now

STARTED = now()
