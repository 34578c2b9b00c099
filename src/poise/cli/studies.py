"""`poise studies` and `poise study`: the papers poise stands on, and what came out when their claims were tested."""

from __future__ import annotations

from typing import Annotated

import typer


def studies() -> None:
    """List the studies with the verdicts of their last run."""
    raise NotImplementedError


def study(slug: Annotated[str, typer.Argument(help="Name of a study, as `poise studies` lists it.")]) -> None:
    """Run a study and write its report."""
    raise NotImplementedError
