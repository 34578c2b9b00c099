"""`poise run`: execute a script under the watch and report what made it unstable."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from poise.cli.launch_hint import launch_hint

if TYPE_CHECKING:
    from poise.doctor import Script, Session, Settings

_ERROR_FOUND = 3


def run(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="The script, followed by its own arguments.", metavar="SCRIPT [ARGS]")],
    module: Annotated[bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for `python -m`.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; a new one under runs/ by default.")] = None,
    remedy: Annotated[list[str] | None, typer.Option(help="Apply NAME[=VALUE] to the live run; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Add this to every seed that the script sets.")] = None,
    overhead: Annotated[float, typer.Option(help="Fraction of the run's time that watching may take.")] = 0.03,
    select: Annotated[list[str] | None, typer.Option(help="Only this cause; repeatable.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Leave this cause out; repeatable.")] = None,
    stop_on: Annotated[str | None, typer.Option(help="End the run once something of this severity is found.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 if an error was found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    keep_args: Annotated[bool, typer.Option("--keep-args", help="Record arguments that look like secrets.")] = False,
) -> None:
    """Run a training script, unchanged, and find what makes it unstable.

    The exit code is the script's own; with `--check` it is 3 if the script succeeded and an error was found.

    What is recorded of the script's arguments leaves out keys, tokens and passwords; `--keep-args` keeps them.
    """
    from poise.cli.started import STARTED
    from poise.tools.clock import now

    before_torch = now()
    import torch  # noqa: F401  # timed separately: the script would import it too, so it is no cost of the watch

    plain = now() - before_torch
    from poise.doctor import Script, Settings, launch, parse_remedy
    from poise.doctor.masking import Masking
    from poise.doctor.stderr import print_line

    program = Script(script, context.args, module)
    remedies = [parse_remedy(spec) for spec in remedy or ()]
    masking = Masking(context.args, keep_args)
    meta = {"script": script, "args": masking.args, "module": module, "seed": seed, "started": time.time()}
    settings = Settings(overhead, select or (), ignore or (), stop_on, remedies, meta, masking)  # type: ignore[arg-type]
    session = _open(out, program, settings)
    hint = launch_hint(program)
    if hint and not quiet:
        print_line(f"poise: {hint}")
    stderr = sys.stderr  # the script may put something else there
    session.count_since(STARTED, plain)
    ending = launch(
        program, session, seed, lambda: _report(session, as_json, stderr) if session.recording and not quiet else None
    )
    if ending.how == "interrupted":
        raise ScriptInterrupted
    worst = any(f.severity == "error" for f in session.findings)
    _exit_with(_ERROR_FOUND if check and ending.code == 0 and worst else ending.code)


class ScriptInterrupted(BaseException):
    """Ctrl-C ended the script, and its traceback is printed: the process must end as Python ends it."""


def _open(out: Path | None, script: Script, settings: Settings) -> Session:
    from poise.doctor import Session

    # Of a distributed run the first process records; the others apply the remedies.
    recording = os.environ.get("RANK", "0") == "0"
    try:
        return Session(out or _new_folder(script), settings, recording)
    except FileExistsError:
        raise
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="poise-"))
        print(f"poise: {error}; recording to {folder} instead", file=sys.stderr)
        return Session(folder, settings, recording)


def _new_folder(script: Script) -> Path:
    stem = Path("runs") / f"{script.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number, folder = 1, stem
    while folder.exists():
        number, folder = number + 1, stem.with_name(f"{stem.name}-{number}")
    return folder


def _report(session: Session, as_json: bool, stderr: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, none, or a pipe without a reader:
        sys.stdout.flush()  # the interpreter will report it at the end
    if stderr is None:
        return
    try:
        _print(session, as_json, stderr)
        stderr.flush()
    except (OSError, ValueError):
        _discard(stderr)


def _print(session: Session, as_json: bool, stderr: TextIO) -> None:
    if as_json:
        print(json.dumps([f.to_dict() for f in session.findings]), file=stderr)
        return
    from rich.console import Console

    from poise.cli.summary import print_summary

    # Into a file, lines go as they are: only a terminal has a width.
    print_summary(session, Console(file=stderr, soft_wrap=not stderr.isatty()))


def _discard(stderr: TextIO) -> None:
    """Discard what is left in the buffer of a closed stream, so that the exit code stays the script's."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stderr.fileno())


def _exit_with(code: int) -> None:
    # Not typer.Exit: the script's own exit code is passed on as it is.
    sys.exit(code)
