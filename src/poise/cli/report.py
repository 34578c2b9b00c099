"""`poise report`: the report of a recorded run, made again."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from poise.report import Finding, Report


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its run.db.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the HTML; beside the run by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON instead.")] = False,
    select: Annotated[list[str] | None, typer.Option(help="Only this cause; repeatable.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Leave this cause out; repeatable.")] = None,
) -> None:
    """Diagnose a recorded run again, also a killed or a running one; write its report and findings.json."""
    from rich.console import Console

    from poise.doctor.diagnose import choose_causes
    from poise.doctor.session import FINDINGS_FILE, REPORT_FILE, RUN_FILE, write_findings

    choose_causes(select or (), ignore or ())
    path = run / RUN_FILE if run.is_dir() else run
    findings, made = _read(path, select or (), ignore or ())
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
        return
    target = out or path.parent / REPORT_FILE
    made.save(target)
    write_findings(target.with_name(FINDINGS_FILE), findings)
    console = Console()
    console.print(made)
    console.print(f"report  {target}", highlight=False, markup=False, soft_wrap=True)


def _read(path: Path, select: Sequence[str], ignore: Sequence[str]) -> tuple[list[Finding], Report]:
    from poise.doctor import diagnose, run_report
    from poise.store import RunFileError, read_run

    record = read_run(path)
    try:
        findings = diagnose(record, select, ignore)
        return findings, run_report(record, findings)
    except RunFileError:
        raise
    except Exception as error:  # a damaged file that opens may hold anything
        kind, line = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
        raise RunFileError(
            f"run file {path} is damaged, or poise has a bug: what it holds cannot be diagnosed "
            f"({kind}: {error}, in {Path(line.filename).name}, line {line.lineno})"
        ) from error
