"""`poise studies` and `poise study`: the papers that poise builds on, and the tests of their claims."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

_STYLES = {"reproduced": "green", "partly": "yellow", "refuted": "red", "not tested": "dim", "not settled": "magenta"}


def studies() -> None:
    """List the studies with the verdicts of their last recorded run."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from poise.studies import list_studies

    # Two lines a study: in a table of 80 columns a question would be broken into six lines of two words.
    console = Console(highlight=False)
    for listing in list_studies():
        verdict = listing.verdict or "not run"
        counts = Counter(listing.claims.values())
        sets = "one set of seeds" if listing.seed_sets == 1 else ""
        facts = "  ".join(filter(None, [", ".join(f"{n} {v}" for v, n in counts.items()), listing.date, sets]))
        parts = ((listing.slug, "bold cyan"), "  ", (verdict, _STYLES.get(verdict, "dim")), (f"  {facts}", "dim"))
        console.print(Text.assemble(*parts, overflow="fold"))
        console.print(Padding(Text(listing.title), (0, 0, 0, 2)))


def study(
    slug: Annotated[str, typer.Argument(help="Name of a study, as `poise studies` lists it.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; the study's own by default.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed; the others follow it.")] = 0,
    budget: Annotated[str, typer.Option(help="tiny (seconds), default (up to three minutes) or full.")] = "default",
    out: Annotated[Path | None, typer.Option(help="Folder for the report; runs/study-SLUG by default.")] = None,
) -> None:
    """Run a study, print its result, and write its report."""
    from rich.console import Console

    from poise.studies import run_study
    from poise.tools.progress_bar import fraction_bar

    folder = out or Path("runs") / f"study-{slug}"
    console = Console()
    with fraction_bar(slug, console=console) as progress:
        made = run_study(slug, budget, seeds, folder, progress, seed=seed)  # type: ignore[arg-type]
    console.print(made)
    console.print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)
