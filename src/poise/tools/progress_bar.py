"""The progress bar of everything that takes more than a second or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_WHOLE_RUN = 1e9  # seconds over which the speed is averaged: parts of one job differ too much for a short window


class _Done(ProgressColumn):
    """``3/12`` for what is counted, a percentage for what is a fraction of 1."""

    def render(self, task: Task) -> Text:
        """Return what is done as text."""
        if task.total is None:
            return Text("")
        if task.total == 1:
            return Text(f"{task.percentage:.0f} %", style="progress.percentage")
        return Text(f"{task.completed:.0f}/{task.total:.0f}", style="progress.download")


def progress_bar(show: bool | None = None, console: Console | None = None) -> Progress:
    """Return Rich's progress bar: what is done, the time it took, the time that is left; it disappears at the end.

    Args:
        show: whether to show it; by default on a terminal only.
        console: where; standard error by default.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Done(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not (console.is_terminal if show is None else show)
    return Progress(*columns, console=console, disable=hidden, transient=True, speed_estimate_period=_WHOLE_RUN)


@contextmanager
def fraction_bar(
    name: str, show: bool | None = None, console: Console | None = None
) -> Iterator[Callable[[float, str], None]]:
    """Show a bar for one job, and yield the function that moves it: ``progress(fraction, words)``.

    Args:
        name: what is done.
        show: whether to show it; by default on a terminal only.
        console: where; standard error by default.
    """
    with progress_bar(show, console) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda fraction, words: bar.update(task, completed=fraction, description=f"{name}: {words}")
