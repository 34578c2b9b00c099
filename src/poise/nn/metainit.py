"""MetaInit: norms of weights at which the loss is locally linear."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from poise.nn.scaled_loss import ScaledLoss, ScalingReport, derivatives, endless, without_a_trace


def metainit_(
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    lr: float = 0.1,
    momentum: float = 0.9,
    steps: int = 500,
    eps: float = 1e-5,
    seed: int = 0,
) -> ScalingReport:
    r"""Tune the norms of a model's weight matrices until gradients change little over a step, in place.

    The :func:`gradient_quotient` of all parameters is minimised over the norms :math:`n` of the tensors with two
    dimensions or more by :math:`v \leftarrow \mu v - \eta \operatorname{sign} \partial_n`, :math:`n \leftarrow n + v`;
    directions stay. A step takes at most half of a norm away, where the paper would let it turn negative.

    Nothing but these tensors changes. Dropout is off; a batch norm that trains uses the statistics of each batch.

    Args:
        model: float32 or float64.
        loss_fn: a criterion such as ``nn.CrossEntropyLoss()``, or any ``loss_fn(model, batch)`` that returns a mean.
        data: a batch, or an iterable of batches; real ones, or :func:`gaussian_batches` as in the paper.
        lr: change of a norm in the first step, :math:`\eta`. It is absolute: the paper's suits norms of ten and more,
            smaller ones jitter under it and need a smaller one.
        momentum: :math:`\mu`, in [0, 1).
        steps: number of steps; each costs about as much as ten of training.
        eps: keeps the quotient finite where a gradient vanishes.
        seed: of random numbers that the data or the model draw.

    Returns:
        The norms before and after, and the quotient at every step.

    Raises:
        TypeError: if a parameter is not float32 or float64.
        ValueError: if the loss or the quotient is not finite (the model is then as it was), nothing can be tuned, or an
            argument is out of range.

    References:
        Dauphin and Schoenholz, "MetaInit: Initializing learning by learning to initialize", NeurIPS 2019.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> report = metainit_(model, nn.CrossEntropyLoss(), gaussian_batches((16, 4), classes=3), steps=2)
        >>> sorted(report.norms)
        ['0.weight', '2.weight']
    """
    if not (0 < lr < math.inf and 0 < eps < math.inf and 0 <= momentum < 1 and steps >= 1):
        raise ValueError(
            "lr and eps must be positive, momentum must lie in [0, 1) and steps be at least 1, "
            f"got {lr}, {eps}, {momentum} and {steps}"
        )
    loss = ScaledLoss(model, loss_fn)
    norms = torch.tensor([p.double().norm().item() for p in loss.values], dtype=torch.float64)
    matrix = torch.tensor([p.ndim >= 2 for p in loss.values])
    tuned = matrix & (norms > 0)
    if not tuned.any():
        raise ValueError("model has no trainable tensor of two dimensions or more that is not zero")
    now, velocity, history = norms.clone(), torch.zeros_like(norms), []
    with without_a_trace(model, seed):
        for step, batch in zip(range(steps), endless(data), strict=False):
            factors = torch.where(tuned, now / norms, 1.0).requires_grad_()
            parameters = loss.scaled([f.to(p.device) for f, p in zip(factors, loss.values, strict=True)])
            quotient = gradient_quotient(loss(parameters, batch), parameters, eps)
            history.append((step, quotient.item()))
            if not math.isfinite(history[-1][1]):
                raise ValueError(f"the gradient quotient is {history[-1][1]} at step {step}")
            (slope,) = derivatives(quotient, [factors])
            velocity = momentum * velocity - lr * slope.sign()
            now = torch.maximum(now + velocity, now / 2)
    final = torch.where(tuned, now / norms, 1.0)
    changed = loss.apply(final.tolist())
    skipped = {
        name: "it has fewer than two dimensions" if not is_matrix else "it is zero"
        for name, is_matrix, done in zip(loss.names, matrix, tuned, strict=True)
        if not done
    }
    norms_of = {name: pair for name, pair in changed.items() if name not in skipped}
    return ScalingReport("MetaInit", norms_of, skipped, {"gradient quotient": history})


def gradient_quotient(loss: Float[Tensor, ""], parameters: Sequence[Tensor], eps: float = 1e-5) -> Float[Tensor, ""]:
    r"""Return how much the gradient changes over a step along itself, as a fraction of it, averaged over N entries.

    .. math:: \frac1N \Big\lVert \frac{g - Hg}{g + \epsilon \operatorname{sign} g} - 1 \Big\rVert_1,
        \qquad \operatorname{sign} 0 = 1

    It is about the mean of :math:`|Hg / g|`: zero where the loss is linear. It can be differentiated.

    Args:
        loss: with a graph back to the parameters.
        parameters: what it is differentiated by.
        eps: :math:`\epsilon`.

    References:
        Dauphin and Schoenholz, NeurIPS 2019.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = (torch.tensor([0.5, 0.25]) * x.square()).sum()  # H = diag(1, 0.5)
        >>> round(gradient_quotient(loss, [x]).item(), 4)
        0.75
    """
    g = derivatives(loss, parameters, create_graph=True)
    half_square = torch.stack([x.square().sum() for x in g]).sum() / 2
    hg = derivatives(half_square, parameters, create_graph=True)
    terms = [((x - y) / (x + torch.where(x >= 0, eps, -eps)) - 1).abs().sum() for x, y in zip(g, hg, strict=True)]
    return torch.stack(terms).sum() / sum(p.numel() for p in parameters)


def gaussian_batches(
    shape: Sequence[int], classes: int, seed: int = 0
) -> Iterator[tuple[Float[Tensor, "batch *shape"], Int64[Tensor, " batch"]]]:
    """Yield batches of normal inputs and random labels, on the CPU and without end: MetaInit needs no data.

    Args:
        shape: of the inputs, with the batch first.
        classes: number of classes.
        seed: of the numbers.

    Raises:
        ValueError: if ``classes`` is below 1 or ``shape`` is empty.
    """
    if classes < 1 or not shape:
        raise ValueError(f"classes must be at least 1 and shape not empty, got {classes} and {tuple(shape)}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(*shape, generator=generator), torch.randint(classes, (shape[0],), generator=generator)
