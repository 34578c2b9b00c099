"""Wall time and CPU time in seconds."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seconds:
    """A length of time, or a point in time, on both clocks.

    Args:
        wall: seconds of wall time.
        cpu: seconds of CPU time of this process, all its threads together.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    @property
    def busy(self) -> float:
        """Seconds in which the process ran: fewer than the wall time where it had to wait for other processes."""
        return max(0.0, min(self.wall, self.cpu))


def cpu_seconds() -> float:
    """Return the CPU time of this process so far; a call takes up to a microsecond."""
    # On Windows that clock ticks sixty times a second, which is too coarse to add up milliseconds with.
    return time.perf_counter() if sys.platform == "win32" else time.process_time()


def now() -> Seconds:
    """Return the present time on both clocks."""
    return Seconds(time.perf_counter(), cpu_seconds())
