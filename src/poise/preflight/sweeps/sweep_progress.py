"""The progress of a sweep, and the time that is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from poise.preflight.sweeps.sweep_point import SweepPoint
from poise.tools.progress_bar import progress_bar

Progress = Callable[[SweepPoint, int, int], None]
Key = tuple[int | None, float, int]


class SweepTally:
    """The points of a sweep so far. Points may come from several threads, and twice.

    Args:
        grid: what is to be run.
        points: what is there already; points beside the grid do not count.
        progress: called with every new point, the points done and those in all; or whether to show a bar.
    """

    def __init__(
        self, grid: Sequence[Key], points: Iterable[SweepPoint], progress: Progress | bool | None = None
    ) -> None:
        self.grid = list(grid)
        self._wanted = set(grid)
        self.points = {point.key: point for point in points if point.key in self._wanted}
        self._tell = progress if callable(progress) else None
        self._lock = threading.Lock()
        show = None if callable(progress) else progress
        self._bar = progress_bar(False if callable(progress) else show)
        self._task = self._bar.add_task("sweep", total=len(self.grid), completed=len(self.points))

    def __enter__(self) -> SweepTally:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    @property
    def missing(self) -> list[Key]:
        """What has not been run yet, in the order of the grid."""
        return [key for key in self.grid if key not in self.points]

    def add(self, point: SweepPoint) -> None:
        """Add a point, and report it if it is new."""
        with self._lock:
            if point.key in self.points or point.key not in self._wanted:
                return
            self.points[point.key] = point
            self._bar.update(self._task, completed=len(self.points))
            if self._tell is not None:
                self._tell(point, len(self.points), len(self.grid))
