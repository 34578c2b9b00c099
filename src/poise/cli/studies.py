"""`poise studies` and `poise study`: the papers poise stands on, and what came out when their claims were tested."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

_STYLES = {"reproduced": "green", "partly": "yellow", "refuted": "red", "not tested": "dim"}


def studies() -> None:
    """List the studies with the verdicts of their last recorded run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from poise.studies import list_studies

    table = Table(box=None, pad_edge=False)
    for name in ("study", "asks", "verdict", "claims", "last run"):
        table.add_column(name, overflow="fold")
    for listing in list_studies():
        verdict = listing.verdict or "not run"
        counts = Counter(listing.claims.values())
        claims = ", ".join(f"{n} {v}" for v, n in counts.items())
        table.add_row(
            listing.slug, listing.title, Text(verdict, _STYLES.get(verdict, "dim")), claims, listing.date or ""
        )
    Console().print(table)


def study(
    slug: Annotated[str, typer.Argument(help="Name of a study, as `poise studies` lists it.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; the study's own by default.")] = None,
    budget: Annotated[str, typer.Option(help="tiny (seconds), default (up to three minutes) or full.")] = "default",
    out: Annotated[Path | None, typer.Option(help="Folder for the report; runs/study-SLUG by default.")] = None,
) -> None:
    """Run a study, print what came out, and write its report."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from poise.studies import run_study

    folder = out or Path("runs") / f"study-{slug}"
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(slug, total=1.0)

        def progress(share: float, words: str) -> None:
            bar.update(task, completed=share, description=f"{slug}: {words}")

        made = run_study(slug, budget, seeds, folder, progress)  # type: ignore[arg-type]
    console.print(made)
    console.print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)
