"""`poise monitor`: watch a deployed classifier over files of new rows, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from poise.shift import ChunkEstimate

ALERT = 3

monitor = typer.Typer(help="Watch a deployed classifier over files of new rows, without labels.", no_args_is_help=True)


@monitor.command()
def fit(
    reference: Annotated[Path, typer.Argument(help="Labelled rows that the classifier was not trained on.")],
    out: Annotated[Path, typer.Option(help="Folder of the monitor.")],
    y_true: Annotated[str, typer.Option(help="Column of labels.")],
    y_score: Annotated[list[str], typer.Option(help="Column of the score; of several classes CLASS=COLUMN, repeated.")],
    y_pred: Annotated[str | None, typer.Option(help="Column of predictions; from the scores by default.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of times, for chunks by time.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Input of the classifier; repeatable.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric; repeatable. accuracy and roc_auc by default.")
    ] = None,
    chunk: Annotated[str, typer.Option(help="Rows per chunk, or a period such as 1D, 1W, 1M.")] = "10000",
    method: Annotated[str, typer.Option(help="weighted, m-cbpe or cbpe.")] = "weighted",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Fit a monitor to a labelled reference (CSV, Parquet or Arrow) and keep it in a folder.

    For example: `poise monitor fit reference.parquet --out monitor --y-true employed --y-score probability`
    """
    from poise.shift import CBPE, MCBPE, Monitor, WeightedCBPE
    from poise.tools.nearest_name import did_you_mean

    methods = {"weighted": WeightedCBPE, "m-cbpe": MCBPE, "cbpe": CBPE}
    if method not in methods:
        raise ValueError(f"--method {method!r} is not known; {did_you_mean(method, methods)}")
    size: Any = int(chunk) if chunk.isdigit() else chunk
    estimator = methods[method](metric or ["accuracy", "roc_auc"], chunk=size, seed=seed)
    roles = {"y_true": y_true, "y_score": _scores(y_score), "y_pred": y_pred, "timestamp": timestamp}
    made = Monitor.fit(out, reference, estimator, **roles, features=feature)
    values = ", ".join(f"{name} {value:.4f}" for name, value in made.estimator.reference_values_.items())
    print(f"monitor {out}: {len(made.estimator.reference_):,} rows of reference, {values}")


@monitor.command()
def run(
    folder: Annotated[Path, typer.Argument(help="The monitor's folder.")],
    files: Annotated[list[Path], typer.Argument(help="New rows: CSV, Parquet or Arrow, in the order of their rows.")],
    finish: Annotated[
        bool, typer.Option(help="Estimate what remains at the end, though the chunk is not full.")
    ] = False,
) -> None:
    """Estimate the performance on new rows; the exit code is 3 if a metric is beyond its threshold, else 0.

    Files that were read before are not read again; after an interruption the same command continues.
    """
    from poise.shift import Monitor

    made = Monitor(folder)
    found = made.run(files, finish=finish, progress=_show)
    alerts = sum(estimate.alert for chunk in found for estimate in chunk.metrics)
    print(f"{len(found)} chunks, {alerts} alerts; all estimates are in {folder / 'estimates.csv'}")
    if alerts:
        raise typer.Exit(ALERT)


def _scores(given: list[str]) -> str | dict[Any, str]:
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [text.partition("=") for text in given]
    if not all(equals and column for _, equals, column in pairs):
        raise ValueError(f"--y-score must be one column, or CLASS=COLUMN for each class, got {given}")
    return {int(label) if label.lstrip("-").isdigit() else label: column for label, _, column in pairs}


def _show(chunk: ChunkEstimate) -> None:
    values = "  ".join(
        f"{e.metric} {e.value:.4f} [{e.low:.4f}, {e.high:.4f}]{' ALERT' if e.alert else ''}" for e in chunk.metrics
    )
    span = f"{chunk.first_time[:10]}  " if chunk.first_time else ""
    support = f"  {chunk.overlap}" if chunk.overlap and not chunk.fallback else ""
    print(f"chunk {chunk.chunk}  {span}{chunk.rows:,} rows  {values}{support}", flush=True)
