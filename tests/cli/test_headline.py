"""The first line that `poise run` prints at its end counts what the user has paid."""

import io
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from poise.cli.summary import print_summary
from poise.doctor.cost import Cost
from poise.tools.clock import Seconds


def test_the_headline_says_what_was_paid_in_seconds():
    """A run of 30 steps, in which start and report are most of it."""
    cost = Cost(Seconds(0.25, 0.25), Seconds(0.05, 0.05), Seconds(0.2, 0.2), Seconds(2.5, 2.5))
    tap = SimpleNamespace(timelines={1: None}, counts={"step": 30})
    out = io.StringIO()
    session = SimpleNamespace(
        tap=tap, findings=[], cost=cost, out=Path("run"), record=object(), has_report=True, shown=str
    )
    print_summary(session, Console(file=out, width=200))
    assert (
        "nothing wrong found  in 30 steps; watching added 0.50 s to 2.0 s (25.0%): "
        "start 0.25 s, steps 0.05 s, report 0.20 s" in out.getvalue()
    )
