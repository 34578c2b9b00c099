"""``python -m poise.studies.clinic``: write the clinic's scripts, check that faults do harm, score a tool's answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from poise.studies.clinic.corpus import cases, export, faults
from poise.studies.clinic.runner import Run, serving
from poise.studies.clinic.scoring import Answer, score

app = typer.Typer(add_completion=False, help=__doc__)


@app.command("export")
def export_scripts(folder: Annotated[Path, typer.Argument(help="Where to write the scripts and labels.json.")]) -> None:
    """Write every script of the clinic, and what is known of it."""
    labels = export(folder)
    print(f"{len(cases())} scripts in {folder}; what is known of them is in {labels}")


@app.command("score")
def score_answers(
    answers: Annotated[Path, typer.Argument(help='JSON: {"name of a script": ["cause", ...], ...}, likeliest first.')],
) -> None:
    """Score a tool's answers: how often the right cause comes first, and how often a healthy script is alarmed."""
    given = json.loads(answers.read_text(encoding="utf-8"))
    result = score(Answer(case, tuple(causes)) for case, causes in given.items())
    table = Table("measure", "fraction", "runs")
    table.add_row("cause named first", f"{result.top1:.3f}", str(len(result.first)))
    table.add_row("cause among the first three", f"{result.top3:.3f}", str(len(result.first)))
    table.add_row("precision of first causes", f"{result.precision:.3f}", str(len(result.precise)))
    table.add_row("healthy scripts with an alarm", f"{result.false_alarms:.3f}", str(len(result.alarmed)))
    Console().print(table)


@app.command("check")
def check_harm(
    names: Annotated[list[str] | None, typer.Argument(help="Cases to check; all by default.")] = None,
    seed: Annotated[int, typer.Option(help="The argument of the scripts.")] = 0,
) -> None:
    """Run faulty scripts and their healthy versions, and show what each fault does to the score."""
    chosen = [case for case in faults() if not names or case.name in names]
    healthy: dict[str, Run] = {}
    table = Table("case", "score", "healthy", "harm")
    with serving() as server:
        for case in chosen:
            if case.script not in healthy:
                healthy[case.script] = server.run(cases()[case.script], seed, watched=False)
            run, twin = server.run(case, seed, watched=False), healthy[case.script]
            seen = "visible" if math.isnan(run.score) or run.score < twin.score else "not in the score"
            table.add_row(case.name, f"{run.score:g}", f"{twin.score:g}", f"{seen}, expected: {case.harm}")
    Console().print(table)


if __name__ == "__main__":
    app()
