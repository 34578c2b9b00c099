"""The commands of `poise`, one file each, and how errors are shown."""

from __future__ import annotations

import sys

import typer

from poise.cli.explain import explain
from poise.cli.fuse import fuse
from poise.cli.monitor import monitor
from poise.cli.preflight import preflight
from poise.cli.quick_options import quick_options
from poise.cli.report import report
from poise.cli.run import ScriptInterrupted, run
from poise.cli.runs import runs
from poise.cli.studies import studies, study
from poise.cli.trial import trial

app = typer.Typer(
    name="poise",
    help="Find out why something that learns is unstable, fix it, and prove that the fix works.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

# Everything after the script belongs to the script, options included.
_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}

app.command(context_settings=_OPEN)(run)
app.command(context_settings=_OPEN)(trial)
app.command()(preflight)
app.add_typer(monitor, name="monitor")
app.command()(runs)
app.command()(report)
app.command()(explain)
app.command()(fuse)
app.command()(studies)
app.command()(study)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and end.", is_eager=True),
) -> None:
    if version:
        from poise import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a mistake of the user is reported in one line, without a stack trace."""
    try:
        quick = quick_options(run, sys.argv[2:]) if sys.argv[1:2] == ["run"] else None
        if quick is None:
            # Not app(): Typer would leave an exception hook of its own that the script would see.
            typer.main.get_command(app)()
        else:
            run(quick, quick.script, **quick.options)  # type: ignore[arg-type]  # it has the args that are read
    except (ValueError, OSError) as error:
        print(f"poise: error: {error}", file=sys.stderr)
        sys.exit(2)
    except ScriptInterrupted:
        sys.excepthook = lambda *_: None  # the message is printed; only the interpreter ends a process as Ctrl-C does
        raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        print("poise: interrupted", file=sys.stderr)
        sys.exit(130)
