"""`poise explain`: the documentation of a cause, a rule of an audit, or a remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from poise.rules.contents import Group

_FORMULA = re.compile(r":math:`")  # a terminal shows formulas as they are written


def explain(
    name: Annotated[
        str | None, typer.Argument(help="Id of a cause or of an audit's rule, or name of a remedy; all if left out.")
    ] = None,
) -> None:
    """Explain a cause, a rule of an audit, or a remedy: what it is, why it hurts, how it is detected, what cures it."""
    from rich.console import Console
    from rich.markdown import Markdown

    from poise.rules import catalogue
    from poise.rules import explain as explanation
    from poise.rules.contents import contents

    console = Console()
    if name is None:
        _list(contents(catalogue()), console)
    else:
        console.print(Markdown(_FORMULA.sub("`", explanation(name))))


def _list(groups: list[Group], console: Console) -> None:
    from rich.table import Table

    chapter, width = None, 0
    for group in groups:
        if group.chapter != chapter:
            chapter = group.chapter
            width = max(len(name) for other in groups if other.chapter == chapter for name, _ in other.entries)
            console.print(f"\n[bold]{chapter.replace('`', '')}[/]", highlight=False)
        if group.heading:
            console.print(f"\n{group.heading[:1].upper()}{group.heading[1:]}", style="italic", highlight=False)
        table = Table.grid(padding=(0, 1))
        table.add_column(min_width=width + 1, no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for name, title in group.entries:
            table.add_row(f" {name}", title)
        console.print(table, highlight=False)
    console.print("\n`poise explain NAME` explains one of them.", highlight=False)
