"""`poise report`: the report of a recorded run, made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its run.db.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the HTML; beside the run by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON instead.")] = False,
    select: Annotated[list[str] | None, typer.Option(help="Look for this cause only; repeatable.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Do not look for this cause; repeatable.")] = None,
) -> None:
    """Diagnose a recorded run again, also one that was killed or still goes on, and write its report."""
    from rich.console import Console

    from poise.doctor import diagnose, run_report
    from poise.store import read_run

    path = run / "run.db" if run.is_dir() else run
    record = read_run(path)
    findings = diagnose(record, select or (), ignore or ())
    if as_json:
        print(json.dumps([f.to_dict() for f in findings], indent=1))
        return
    made = run_report(record, findings)
    target = out or path.parent / "report.html"
    made.save(target)
    console = Console()
    console.print(made)
    console.print(f"report  {target}", highlight=False)
