"""`poise runs`: the recorded runs of a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer


def runs(folder: Annotated[Path, typer.Argument(help="Folder to search, with all below it.")] = Path("runs")) -> None:
    """List recorded runs, newest first."""
    from rich.console import Console
    from rich.table import Table

    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist; `poise run` makes runs/ where it runs")
    found = sorted(folder.rglob("run.db"), key=lambda p: p.stat().st_mtime, reverse=True)
    if not found:
        print(f"no runs in {folder}")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "started", "steps", "found"):
        table.add_column(name, overflow="fold", justify="right" if name == "steps" else "left")
    for path in found:
        table.add_row(*_row(path))
    Console().print(table)


def _row(path: Path) -> tuple[str, str, str, str]:
    from poise.store import RunFileError, read_run

    try:
        record = read_run(path)
        steps = len(record["lr"])
    except RunFileError as error:
        return str(path.parent), "", "", f"unreadable: {error}"
    started = record.meta.get("started")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if isinstance(started, int | float) else ""
    return str(path.parent), when, str(steps), _found(path.parent / "findings.json")


def _found(path: Path) -> str:
    if not path.exists():
        return "(not finished)"
    try:
        findings = [f["cause"] for f in json.loads(path.read_text(encoding="utf-8")) if f["severity"] != "info"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"findings.json is unreadable: {error}"
    return ", ".join(findings[:3]) or "nothing"
