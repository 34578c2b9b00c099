"""Run the code of the tutorials and record what it prints and draws: `python docs/make_figures.py [PAGE ...]`.

The pages hold code only; docs/hooks.py puts the recorded outputs below it and refuses to build if the code has changed
since. Everything runs in a temporary folder that holds a copy of examples/, so that paths in the outputs are short.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from plotly.graph_objects import Figure as PlotlyFigure
from runnable import Block, find_blocks

from poise.report import Figure

_DOCS = Path(__file__).resolve().parent
_WIDTH = "80"

# Pictures of the reports that a page's commands write: name, report, width and height in pixels.
_PICTURES = {
    "doctor": [("report.png", "demo/trial/report.html", 1000, 1860), ("run.png", "demo/run/report.html", 1000, 1500)]
}


def record_page(name: str) -> None:
    """Run the blocks of one tutorial and write their outputs."""
    blocks = find_blocks((_DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8"))
    scope: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory(prefix="poise-docs-") as folder, contextlib.chdir(folder):
        shutil.copytree(_DOCS.parent / "examples", "examples", ignore=shutil.ignore_patterns("__pycache__"))
        outputs = {}
        for block in blocks:
            print(f"{name}: {block.name or 'unnamed block'}", file=sys.stderr)
            text, figures = run_python(block, scope) if block.language == "python" else (run_console(block), [])
            if block.name is not None:
                outputs[block.name] = {"digest": block.digest, "text": text, "figures": figures}
        for picture in _PICTURES.get(name, []):
            take_picture(*picture)
    path = _DOCS / "outputs" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"made": made(), "blocks": outputs}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def made() -> dict[str, Any]:
    """Return when the outputs were made, and with what."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("poise", "torch", "numpy")}}
    return {"date": datetime.now(UTC).date().isoformat(), "versions": versions}


def run_python(block: Block, scope: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Run a block as a notebook cell would: the value of a last expression is shown."""
    tree = ast.parse(block.code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<{block.name}>", "exec"), scope)
        value = None if last is None else eval(compile(ast.Expression(last.value), f"<{block.name}>", "eval"), scope)
        if value is not None and not isinstance(value, Figure):
            print(repr(value))
    return printed.getvalue(), [plain_figure(value)] if isinstance(value, Figure) else []


def plain_figure(figure: Figure) -> dict[str, Any]:
    """Return a figure of a report as plain JSON types; four digits are enough for a figure."""
    drawn = PlotlyFigure(figure.figure).update_layout(template="none", title=None)
    plain = json.loads(drawn.to_json(engine="json"), parse_float=lambda number: float(f"{float(number):.4g}"))
    return {"title": figure.title, "figure": plain, "alt": figure.alt, "caption": figure.caption}


def run_console(block: Block) -> str:
    """Run the commands of a block as a terminal would show them."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": _WIDTH,
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    out = []
    for command in block.commands:
        done = subprocess.run(
            command,
            shell=True,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        # A terminal overwrites the text before a carriage return.
        out.append(re.sub(r"^.*\r(?!\n)", "", done.stdout, flags=re.MULTILINE).strip("\n"))
    return "\n".join(out) + "\n"


def take_picture(name: str, page: str, width: int, height: int) -> None:
    """Write a picture of a report, as a Chromium on this machine shows it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        raise FileNotFoundError(f"pictures need a browser, one of {', '.join(names)}")
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
        "--disable-background-networking --disable-component-update --disable-sync --virtual-time-budget=10000"
    )
    target = _DOCS / "images" / name
    command = [browser, *options.split(), f"--window-size={width},{height}", f"--screenshot={target}"]
    subprocess.run([*command, Path(page).resolve().as_uri()], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pages = sys.argv[1:] or [path.stem for path in sorted((_DOCS / "tutorials").glob("*.md")) if path.stem != "index"]
    for page in pages:
        record_page(page)
