"""Write the page of the command line from the help texts of its commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import mkdocs_gen_files
import typer

from poise.cli.app import app


def table(context: typer.Context, kind: str) -> str:
    """Return the arguments (or options) of a command as a table; empty if there are none."""
    rows = []
    for parameter in context.command.params:
        record = parameter.get_help_record(context)
        if parameter.param_type_name == kind and record is not None:
            name, text = (part.replace("|", "\\|") for part in record)
            rows.append(f"| `{name}` | {text} |\n")
    return f"| {kind} | |\n|---|---|\n{''.join(rows)}\n" if rows else ""


def leaves(group: typer.core.TyperGroup, prefix: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Yield every command with its full name, those of a sub-command each by itself."""
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from leaves(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


group = typer.main.get_command(app)
with mkdocs_gen_files.open("cli.md", "w") as page:
    page.write(f"# Command line\n\n{group.help}\n\n")
    for name, command in leaves(group, "poise"):
        context = command.context_class(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        page.write(f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n\n")
        page.write(f"```text\n{usage}\n```\n\n{table(context, 'argument')}{table(context, 'option')}")
    page.write(
        "## Exit codes\n\n`poise run` ends with the script's own exit code, except that `--check` "
        "turns 0 into 3 if an error was found. `poise monitor run` ends with 3 "
        "if a metric is beyond its threshold. A mistake in the command line ends with 2 and one line "
        "that explains it.\n"
    )
