"""How far a sweep has come, and how long it still takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from poise.preflight.sweeps.sweep_point import SweepPoint

Progress = Callable[[SweepPoint, int, int], None]
Key = tuple[int | None, float, int]

_WHOLE_SWEEP = 1e9  # seconds over which the speed is taken: runs of a sweep differ too much for a short window


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
        self._bar = sweep_bar(False if callable(progress) else show)
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
        """Take a point in, and tell of it if it is new."""
        with self._lock:
            if point.key in self.points or point.key not in self._wanted:
                return
            self.points[point.key] = point
            self._bar.update(self._task, completed=len(self.points))
            if self._tell is not None:
                self._tell(point, len(self.points), len(self.grid))


def sweep_bar(show: bool | None = None, console: Console | None = None) -> Bar:
    """Return a progress bar with the time that is left; by default it is shown on a terminal, on stderr."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal if show is None else show
    return Bar(*columns, console=console, disable=not shown, transient=True, speed_estimate_period=_WHOLE_SWEEP)
