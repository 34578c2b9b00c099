"""`poise explain`: what poise knows about a cause."""

from __future__ import annotations

from typing import Annotated

import typer


def explain(
    cause: Annotated[str | None, typer.Argument(help="Id of a cause; all of them if left out.")] = None,
) -> None:
    """Explain a cause of instability: what it is, why it hurts, how it is detected, what cures it."""
    from rich.console import Console
    from rich.markdown import Markdown

    from poise.doctor import explain as explanation
    from poise.doctor import list_causes

    Console().print(Markdown(list_causes() if cause is None else explanation(cause)))
