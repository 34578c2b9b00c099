"""Output weights of new classes from their own samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@torch.no_grad()
def class_mean_init_(
    layer: nn.Linear,
    features: Float[Tensor, "samples features"],
    labels: Int64[Tensor, " samples"],
    classes: Iterable[int],
    *,
    old_features: Float[Tensor, "old_samples features"] | None = None,
    scale: Literal["match"] | None = "match",
    most: float = 0.02,
) -> nn.Linear:
    r"""Set the output weights of new classes to the mean direction of their features, in place.

    .. math:: w_c = \frac{1}{n_c} \sum_{x \in c} \frac{\phi(x) - \mu}{\lVert \phi(x) - \mu \rVert}

    Random weights of new classes give a large first loss, whose gradient breaks the layers below. The paper's form is
    ``old_features=None, scale=None``, which is right only if features have a mean of about zero, as after a layer norm:
    after a ReLU all directions are alike, and new classes win everywhere. With the features of old samples, their mean
    is
    :math:`\mu` (else 0), and the bias of each new class is set so that it wins at most a fraction ``most`` of them.

    Args:
        layer: the output layer, wide enough already.
        features: what goes into it, for samples of the new classes, of the model in evaluation mode.
        labels: their classes.
        classes: those whose rows are set.
        old_features: the same of samples of old classes.
        scale: ``"match"`` scales the rows to the mean norm of the others and gives them their mean bias; ``None``
            leaves norm (at most 1) and bias.
        most: fraction of the old samples that each new class may win, in (0, 1); without ``old_features`` or a bias it
            has no effect.

    Returns:
        The layer.

    Raises:
        TypeError: if ``layer`` is not an ``nn.Linear``.
        ValueError: if a class has no sample or no row, all its features are zero, ``scale`` is unknown or ``most``
            is outside (0, 1).

    References:
        Harun and Kanan, "Overcoming the stability gap in continual learning", TMLR 2024, arXiv:2306.01904.

    Example:
        >>> name, head = find_head(model)
        >>> old, new = head_inputs(model, head, old_x), head_inputs(model, head, new_x)
        >>> class_mean_init_(head, new, new_y, classes=[6, 7], old_features=old)
    """
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be a torch.nn.Linear, got {type(layer).__name__}")
    if scale not in ("match", None):
        raise ValueError(f"scale must be 'match' or None, got {scale!r}")
    if not 0 < most < 1:
        raise ValueError(f"most must lie in (0, 1), got {most}")
    chosen = [int(c) for c in classes]
    missing = [c for c in chosen if not bool((labels == c).any())]
    outside = [c for c in chosen if not 0 <= c < layer.out_features]
    if missing or outside or not chosen:
        raise ValueError(f"classes must have samples and rows, got none for {missing or outside or chosen}")
    others = [i for i in range(layer.out_features) if i not in set(chosen)]
    moved = features if old_features is None else features - old_features.mean(0)
    for c in chosen:
        own = moved[labels == c]
        norms = own.norm(dim=1, keepdim=True)
        if not bool((norms > 0).any()):
            raise ValueError(f"features of class {c} must not all be zero, they have no direction")
        layer.weight[c] = (own / norms.clamp_min(torch.finfo(own.dtype).tiny)).mean(0)
    if scale == "match" and others:
        wanted = layer.weight[others].norm(dim=1).mean()
        layer.weight[chosen] *= wanted / layer.weight[chosen].norm(dim=1, keepdim=True).clamp_min(1e-12)
    if layer.bias is not None and others:
        if scale == "match":
            layer.bias[chosen] = layer.bias[others].mean()
        if old_features is not None:
            best = layer(old_features)[:, others].amax(1, keepdim=True)
            room = best - old_features @ layer.weight[chosen].T
            layer.bias[chosen] = room.quantile(most, dim=0)
    return layer
