"""`poise fuse`: average checkpoints that were fine-tuned from the same model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from poise.optim import FuseInfo


class DType(StrEnum):
    """Dtypes that checkpoints are written in."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


def fuse(
    checkpoints: Annotated[list[Path], typer.Argument(help="Safetensors or torch checkpoints.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write it; the file extension decides the format.")],
    weight: Annotated[list[float] | None, typer.Option(help="Weight of a checkpoint; once for each, in order.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Names to leave out, as 'head.*'; repeatable.")] = None,
    base: Annotated[Path | None, typer.Option(help="Checkpoint from which all were fine-tuned.")] = None,
    scale: Annotated[float, typer.Option(help="How much of the mean change is added to the base.")] = 1.0,
    dtype: Annotated[DType | None, typer.Option(help="Dtype of the result; needed if the inputs differ.")] = None,
    force: Annotated[bool, typer.Option(help="Fuse checkpoints that seem to be unrelated.")] = False,
) -> None:
    """Average the weights of checkpoints that were fine-tuned from the same model, and print how they differ."""
    import torch
    from rich.console import Console

    from poise.optim import fuse as fuse_models
    from poise.optim import save_checkpoint
    from poise.tools.progress_bar import fraction_bar

    console = Console()
    with fraction_bar("fusing", console=console) as progress:
        result, info = fuse_models(
            checkpoints,
            weight or None,
            exclude=exclude or (),
            base=base,
            scale=scale,
            dtype=getattr(torch, dtype.value) if dtype else None,
            force=force,
            progress=progress,
        )
    assert isinstance(result, dict)  # the inputs are files
    save_checkpoint(result, out)
    _print_info(info, checkpoints, base is not None, console)
    console.print(f"fused  {out}", highlight=False)


def _print_info(info: FuseInfo, checkpoints: list[Path], has_base: bool, console: Console) -> None:
    from rich.table import Table

    from_what = "from the base" if has_base else "from their mean"
    table = Table(
        "checkpoint", f"distance {from_what}", *(str(i + 1) for i in range(info.n)), title="Cosines of changes"
    )
    for i, path in enumerate(checkpoints):
        cosines = (f"{float(info.cosines[i, j]):.2f}" for j in range(info.n))
        table.add_row(f"{i + 1}  {path.name}", f"{float(info.norms[i]):.4g}", *cosines)
    console.print(table)
    console.print(f"{len(info.averaged)} tensors averaged, {len(info.taken)} integer tensors by their largest value")
    if info.excluded:
        console.print(
            f"{len(info.excluded)} left out: {', '.join(info.excluded[:5])}{' ...' * (len(info.excluded) > 5)}"
        )
    if has_base and info.n > 1:
        unrelated = info.n**-0.5
        console.print(
            f"the mean change is {info.shrink:.2f} of a single one "
            f"({unrelated:.2f}: the changes are unrelated; 1: they are equal)"
        )
