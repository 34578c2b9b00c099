"""The time at which the command line began to load: the cost of a run is counted from there."""

from poise.tools.clock import now

STARTED = now()
