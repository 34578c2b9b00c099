"""Section of a report: how mini-batch noise limits the learning rate, batch size by batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.sgd_noise.second_moment_operator import SecondMomentOperator
from poise.dynamics.sgd_noise.sgd_stability import SGDStability
from poise.dynamics.systems.lyapunov_exponent import LyapunovEstimate, lyapunov_of_product
from poise.report import Figure, Table, Text, line_chart

_TITLE = "Batch-noise stability"
_SIGNS = {1: "a typical run leaves", 0: "undecided", -1: "a typical run returns"}
_MEANING = (
    "Stable in mean square means that the squared distance from this minimum, averaged over all runs, stays bounded. "
    "It is the stricter demand: above its limit rare bad batches can blow up the mean while a typical run returns. "
    "What a typical run does is decided by the sign of the Lyapunov exponent, the mean growth of the logarithm of the "
    "distance per step. Both describe SGD without momentum close to a minimum that fits every example; further away "
    "the loss is not quadratic, and neither applies."
)


def batch_noise_section(
    stability: SGDStability,
    lr: float | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    steps: int = 500,
    generator: torch.Generator | None = None,
) -> list[Text | Table | Figure]:
    """Return text, a table and a figure of the stable learning rate over the batch size.

    Args:
        stability: what :func:`sgd_stability` returned.
        lr: learning rate in question; that of ``stability`` by default.
        batch_sizes: sizes for the table, from 1 to n; powers of four, n and the present size by default.
        steps: steps behind each Lyapunov exponent, which are of the exact operator and need ``lr``.
        generator: of their batches.

    Raises:
        ValueError: if a batch size is out of range.
    """
    lr = stability.lr if lr is None else lr
    sizes = sorted(set(batch_sizes or _usual_sizes(stability)) | {stability.batch_size})
    limits = _limits(stability, sizes)
    table = _table(stability, sizes, limits, lr, steps, generator)
    return [Text(f"{_verdict(stability, lr)} {_MEANING}", _TITLE), table, _figure(stability, sizes, limits, lr)]


def sgd_lyapunov_exponent(
    operator: SecondMomentOperator, *, steps: int = 2000, burn_in: int = 200, generator: torch.Generator | None = None
) -> LyapunovEstimate:
    """Return the Lyapunov exponent of linearised SGD: negative if a typical run returns to the minimum.

    Args:
        operator: examples, learning rate, batch size and sampling.
        steps: steps that count.
        burn_in: steps before them.
        generator: of the batches.

    References:
        Chemnitz and Engel (2024), arXiv:2407.20209.
    """
    multiply = _random_steps(operator)
    return lyapunov_of_product(multiply, operator.eigenvalues, steps=steps, burn_in=burn_in, generator=generator)


def _random_steps(operator: SecondMomentOperator) -> Callable[[Tensor, torch.Generator], Tensor]:
    n, outputs, rank = operator.coordinates.shape
    rows = operator.coordinates.view(n * outputs, rank)

    def multiply(v: Float[Tensor, "repeats rank"], generator: torch.Generator) -> Float[Tensor, "repeats rank"]:
        weights = _batches(operator, len(v), generator) / operator.batch_size
        return v - operator.lr * ((v @ rows.mT) * weights.repeat_interleave(outputs, dim=1)) @ rows

    return multiply


def _batches(operator: SecondMomentOperator, repeats: int, generator: torch.Generator) -> Float[Tensor, "repeats n"]:
    """Return how often each example is in each of several random batches."""
    n, size = operator.n, operator.batch_size
    counts = torch.zeros(repeats, n, dtype=torch.float64)
    if operator.sampling == "bernoulli":
        return (torch.rand(repeats, n, generator=generator) < size / n).double()
    if operator.sampling == "replacement":
        drawn = torch.randint(n, (repeats, size), generator=generator)
    else:
        drawn = torch.rand(repeats, n, generator=generator).topk(size, dim=1).indices
    return counts.scatter_add_(1, drawn, torch.ones(repeats, size, dtype=torch.float64))


def _usual_sizes(stability: SGDStability) -> list[int]:
    sizes = [4**k for k in range(20) if 4**k < stability.n]
    return [*sizes, stability.n]


def _limits(stability: SGDStability, sizes: Sequence[int]) -> dict[str, list[float]]:
    """Return curves of the limit over the batch size: exact and estimated, or bounds where these are too large."""
    limits = {"gradient descent": [stability.lr_gd] * len(sizes)}
    if stability.coherence is not None and stability.operator is not None:
        limits["coherence estimate"] = [stability.coherence.lr_coherence(size) for size in sizes]
        limits["exact"] = [stability.operator.at(batch_size=size).critical_lr(tol=1e-6) for size in sizes]
    else:
        bound = [stability.moments.lr_bound(size, stability.sampling) for size in sizes]
        limits["moment bound"] = [min(stability.lr_gd, value) for value in bound]
    return limits


def _table(
    stability: SGDStability,
    sizes: Sequence[int],
    limits: dict[str, list[float]],
    lr: float | None,
    steps: int,
    generator: torch.Generator | None,
) -> Table:
    columns = ["Batch size", *(f"Limit of lr, {name}" for name in limits)]
    rows: list[list[object]] = [list(row) for row in zip(sizes, *limits.values(), strict=True)]
    if lr is not None and stability.operator is not None:
        columns += [f"Lyapunov exponent at lr {lr:g}", "So"]
        for row, size in zip(rows, sizes, strict=True):
            operator = stability.operator.at(lr=lr, batch_size=size)
            found = sgd_lyapunov_exponent(operator, steps=steps, burn_in=max(50, steps // 10), generator=generator)
            row += [found.value, _SIGNS[found.sign]]
    source = "exact" if stability.operator is not None else f"bounds, estimated from {stability.used} examples"
    caption = f"Largest learning rate that is stable in mean square; {stability.n} examples, {source}."
    return Table("Largest stable learning rate by batch size", columns, rows, caption)


def _verdict(stability: SGDStability, lr: float | None) -> str:
    if lr is None:
        return "No learning rate was given; the table holds the largest stable one for each batch size."
    limit, kind = _present_limit(stability)
    size = stability.batch_size
    words = f"At batch size {size} the {kind} is {limit:.3g}; the learning rate {lr:.3g} is {lr / limit:.2g} of it."
    smallest = stability.batch_min(lr)
    if smallest is None:
        return f"{words} No batch size is stable there: gradient descent has its limit at {stability.lr_gd:.3g}."
    least = "The smallest stable batch size" if stability.operator is not None else "The smallest the bounds allow"
    return f"{words} {least} at this learning rate is {smallest}."


def _present_limit(stability: SGDStability) -> tuple[float, str]:
    if stability.lr_exact is not None:
        return stability.lr_exact, "limit in mean square"
    return min(stability.lr_gd, stability.lr_moment), "bound above which the mean square grows"


def _figure(stability: SGDStability, sizes: Sequence[int], limits: dict[str, list[float]], lr: float | None) -> Figure:
    at = np.asarray(sizes, dtype=float)
    curves = {name: (at, np.asarray(values)) for name, values in limits.items()}
    chart = line_chart("Stable learning rate over batch size", curves, "batch size", "learning rate", log_y=True)
    chart.figure.update_xaxes(type="log")
    if lr is None:
        return chart
    marker = {"size": 12, "symbol": "x"}
    chart.figure.add_trace(go.Scatter(x=[stability.batch_size], y=[lr], name="now", mode="markers", marker=marker))
    alt = f"{chart.alt} Now: batch size {stability.batch_size} at learning rate {lr:.3g}."
    return Figure(chart.title, chart.figure, alt, chart.caption)
