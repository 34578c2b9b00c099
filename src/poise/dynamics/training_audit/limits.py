"""Where the local analysis of an audit does not apply, in words."""

from __future__ import annotations

from poise.dynamics.edge_of_stability.local_point import LocalPoint
from poise.tools.number import number

_NOTICEABLE = 1e-3


def at_rest(point: LocalPoint, sharpness: float) -> bool:
    """Whether a step can hardly lower the loss: the gain along the gradient is below 0.1 % of it, or it is fitted.

    Args:
        point: loss and gradient.
        sharpness: largest eigenvalue of the Hessian.
    """
    return point.interpolates or (sharpness > 0 and point.gain(sharpness) <= _NOTICEABLE * abs(point.loss))


def limits_of_the_analysis(point: LocalPoint, sharpness: float, batch_size: int, n: int, adaptive: bool) -> str:
    """Return a list in Markdown of what this audit does not cover.

    Args:
        point: loss, gradient and kinks.
        sharpness: largest eigenvalue of the Hessian.
        batch_size: examples a step.
        n: number of examples.
        adaptive: whether the optimizer is.
    """
    lines = [_rest(point, sharpness), _fit(point), _kinks(point)]
    lines.append(
        "**Near this point only.** The edge is that of the quadratic model of the loss at the present weights. Above "
        "it a run first moves away along the sharpest direction. Whether it then diverges, or comes back to a flatter "
        "place (as full-batch runs at the edge of stability do), is decided by higher derivatives."
    )
    if batch_size < n:
        lines.append(
            "**Mean square against a typical run.** Limits with noise are those of the mean of the squared distance "
            "over all runs. Rare bad batches can blow that up while a typical run still returns. They are of SGD "
            "without momentum, with batches drawn at random without replacement."
        )
    if adaptive:
        lines.append(
            "**A frozen preconditioner.** What the optimizer divides by is taken as it is now; it adapts while the "
            "run goes on, which damps growth that would otherwise go on. Parameters whose divisor is within rounding "
            "of zero beside the largest one count as fixed."
        )
    lines.append(
        "**Nothing random.** Dropout and other random layers have to be off for an audit; while training they add "
        "noise that is not counted here. Statistics of BatchNorm follow the mode of the model."
    )
    return "\n".join(f"- {line}" for line in lines)


def _rest(point: LocalPoint, sharpness: float) -> str:
    if at_rest(point, sharpness):
        return f"**At rest.** The gradient's norm is {number(point.grad_norm)}: this is (nearly) a stationary point."
    return (
        f"**Not at rest.** The gradient's norm is {number(point.grad_norm)} and the weights still move, so the "
        "sharpness will change: it often rises until it meets the edge. Audit again later."
    )


def _fit(point: LocalPoint) -> str:
    if point.interpolates:
        return f"**It fits.** The mean loss is {number(point.loss)}, so the theory of noise at a minimum applies."
    return (
        f"**Not an interpolating minimum.** The mean loss is {number(point.loss)}. SGD does not come to rest here, and "
        "the limits with mini-batches are approximate: they take every example as fitted."
    )


def _kinks(point: LocalPoint) -> str:
    if not point.kinks:
        return "**Smooth.** No operation with a kink was met on the way to the loss."
    return (
        f"**Kinks.** The loss has bends where {', '.join(point.kinks)} switches. The Hessian does not include that, so "
        "the true curvature over one step may be larger."
    )
