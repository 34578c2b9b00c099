"""The report of learning-rate curves, in words, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping

from poise.preflight.sweeps.lr_curve import LRCurve
from poise.preflight.sweeps.lr_sensitivity import lr_sensitivity
from poise.preflight.sweeps.max_trainable_lr import MaxTrainableLR, max_trainable_lr
from poise.report import Figure, Report, Table, line_chart

_HALF_DECADE = 3.4  # the steps of the usual grid 1, 3, 10, ... are factors of 3 and 3.33
_COLUMNS = ["Runs", "Best lr", "Loss there", "Sensitivity", "Over seeds", "Trains up to lr", "First failing lr"]


def lr_report(curves: Mapping[str, LRCurve], title: str = "Learning-rate sweep") -> Report:
    """Compare labelled learning-rate curves, for example one per model size.

    Args:
        curves: label -> curve.
        title: title of the report.

    Raises:
        ValueError: if there are no curves.

    References:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024,
        arXiv:2309.14322.
    """
    if not curves:
        raise ValueError("curves must hold at least one curve, got none")
    summary = " ".join(f"{label}: {_sentence(curve)}" for label, curve in curves.items())
    caption = (
        "Sensitivity is the mean excess loss over the learning rates of the grid, in units of the loss; "
        "diverged runs count as the loss at initialisation. It is not shown for fewer than 3 learning rates."
    )
    table = Table("Curves", _COLUMNS, [_row(label, curve) for label, curve in curves.items()], caption)
    return Report(title, summary, blocks=[lr_figure(curves), table])


def lr_figure(curves: Mapping[str, LRCurve], title: str = "Final loss over learning rate") -> Figure:
    """Draw the mean of each curve over seeds, with the range of the seeds as a band.

    Diverged runs are drawn at the loss at initialisation.

    Args:
        curves: the curves, by the label they get.
        title: title of the figure.
    """
    lines, bands = {}, {}
    for label, curve in curves.items():
        losses = curve.effective_losses
        lines[label] = (curve.lrs, losses.mean(axis=1))
        if losses.shape[1] > 1:
            bands[label] = (curve.lrs, losses.min(axis=1), losses.max(axis=1))
    figure = line_chart(title, lines, "learning rate", "final loss", bands=bands)
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def _sentence(curve: LRCurve) -> str:
    edge = max_trainable_lr(curve)
    if edge.lr is None:
        return f"no stable LR in range ({curve.lrs[0]:g} to {curve.lrs[-1]:g}); its sensitivity of 0 is meaningless."
    best = f"best at lr {curve.best_lr:g} (loss {curve.best_loss:.3f}), trains up to {edge.lr:g}"
    if edge.first_failing is None:
        return f"{best}, the end of the grid."
    close = " The optimum is within half a decade of it." if edge.first_failing <= _HALF_DECADE * curve.best_lr else ""
    return f"{best}, fails at {edge.first_failing:g}.{close}"


def _row(label: str, curve: LRCurve) -> list[float | str | None]:
    edge: MaxTrainableLR = max_trainable_lr(curve)
    row: list[float | str | None] = [label, curve.best_lr, curve.best_loss]
    if curve.lrs.size < 3:
        row += [None, None]
    else:
        found = lr_sensitivity(curve)
        row += [found.value, f"{min(found.per_seed):.3f} to {max(found.per_seed):.3f}"]
    return [*row, edge.lr, edge.first_failing]
