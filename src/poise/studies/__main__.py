"""``python -m poise.studies``: run all studies with two sets of seeds and rewrite their results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from poise.studies.kit.results import RESULTS
from poise.studies.kit.runner import FIRST_SEEDS, run_study_twice
from poise.studies.kit.study import Budget
from poise.studies.registry import STUDIES
from poise.tools.progress_bar import fraction_bar


def main(
    slugs: Annotated[list[str] | None, typer.Argument(help="Studies to run; all by default.")] = None,
    budget: Annotated[Budget, typer.Option(help="How much work to spend.")] = "default",
    results: Annotated[Path, typer.Option(help="Results file to update.")] = RESULTS,
    out: Annotated[Path | None, typer.Option(help="Folder for one report per study.")] = None,
    seeds: Annotated[tuple[int, int], typer.Option(help="First seed of each of the two sets.")] = FIRST_SEEDS,
) -> None:
    """Run studies with two sets of seeds and record what came out; a study that fails does not stop the others."""
    console = Console()
    failed = [slug for slug in slugs or STUDIES if not _run(slug, budget, results, out, seeds, console)]
    if failed:
        console.print(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _run(slug: str, budget: Budget, results: Path, out: Path | None, seeds: tuple[int, int], console: Console) -> bool:
    try:
        with fraction_bar(slug, console=console) as progress:
            folder = None if out is None else out / slug
            report = run_study_twice(slug, budget, None, folder, progress, results, seeds)
    except Exception:  # whatever it is, it is shown, the others still run, and the exit code tells
        console.print_exception()
        return False
    console.print(f"{slug}: {report.verdict}")
    return True


if __name__ == "__main__":
    typer.run(main)
