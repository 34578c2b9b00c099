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
    center: Float[Tensor, " features"] | None = None,
    scale: Literal["match"] | None = "match",
) -> nn.Linear:
    r"""Set the output weights of new classes to the mean direction of their features, in place.

    .. math:: w_c = \frac{1}{n_c} \sum_{x \in c} \frac{\phi(x) - \mu}{\lVert \phi(x) - \mu \rVert}

    Random weights of new classes give a large first loss, whose gradient breaks the layers below. The paper's form is
    ``center=None, scale=None``, which is right only if features have a mean of about zero, as after a layer norm: after
    a ReLU all directions are alike, and new classes win everywhere. Then give the mean feature of old samples as
    ``center``, and keep the scale of the old rows.

    Args:
        layer: the output layer, wide enough already.
        features: what goes into it, for samples of the new classes, of the model in evaluation mode.
        labels: their classes.
        classes: those whose rows are set.
        center: :math:`\mu`, such as the mean feature of old samples. The bias then takes back what it shifts,
            :math:`-w_c \cdot \mu`.
        scale: ``"match"`` scales the rows to the mean norm of the others and gives them their mean bias; ``None``
            leaves norm (at most 1) and bias.

    Returns:
        The layer.

    Raises:
        TypeError: if ``layer`` is not an ``nn.Linear``.
        ValueError: if a class has no sample or no row, all its features are zero, or ``scale`` is unknown.

    References:
        Harun and Kanan, "Overcoming the stability gap in continual learning", TMLR 2024, arXiv:2306.01904.

    Example:
        >>> name, head = find_head(model)
        >>> old, new = head_inputs(model, head, old_x), head_inputs(model, head, new_x)
        >>> class_mean_init_(head, new, new_y, classes=[6, 7], center=old.mean(0))
    """
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be a torch.nn.Linear, got {type(layer).__name__}")
    if scale not in ("match", None):
        raise ValueError(f"scale must be 'match' or None, got {scale!r}")
    chosen = [int(c) for c in classes]
    missing = [c for c in chosen if not bool((labels == c).any())]
    outside = [c for c in chosen if not 0 <= c < layer.out_features]
    if missing or outside or not chosen:
        raise ValueError(f"classes must have samples and rows, got none for {missing or outside or chosen}")
    others = [i for i in range(layer.out_features) if i not in set(chosen)]
    moved = features if center is None else features - center
    for c in chosen:
        own = moved[labels == c]
        norms = own.norm(dim=1, keepdim=True)
        if not bool((norms > 0).any()):
            raise ValueError(f"features of class {c} must not all be zero, they have no direction")
        layer.weight[c] = (own / norms.clamp_min(torch.finfo(own.dtype).tiny)).mean(0)
    if scale == "match" and others:
        wanted = layer.weight[others].norm(dim=1).mean()
        layer.weight[chosen] *= wanted / layer.weight[chosen].norm(dim=1, keepdim=True).clamp_min(1e-12)
    if layer.bias is not None:
        if scale == "match" and others:
            layer.bias[chosen] = layer.bias[others].mean()
        if center is not None:
            layer.bias[chosen] -= layer.weight[chosen] @ center
    return layer
