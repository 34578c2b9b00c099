"""muParam (simple): learning rates that keep their optimum when a model is made wider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def mu_param_groups(
    model: nn.Module, base_width: int, lr: float = 1e-3, *, width: int | None = None
) -> list[dict[str, Any]]:
    r"""Return param groups in which linear layers learn slower as the model is wider.

    A linear layer whose fan-in grew with the width by :math:`m = \text{width} / \text{base width}` gets
    :math:`\eta / m`. Norms, biases, embeddings (also when tied to the head) and layers whose fan-in is no multiple
    of the width (they read the data) keep :math:`\eta`.

    Args:
        model: its ``nn.Linear`` and ``nn.MultiheadAttention`` weights are the linear layers.
        base_width: width of the small model at which ``lr`` was tuned.
        lr: the learning rate tuned there.
        width: the model's width; by default the most frequent fan-in of its linear layers.

    Returns:
        Two groups (unscaled and scaled; an empty one is left out) with ``params`` and ``lr``, for any torch optimizer.

    Raises:
        ValueError: if a width or ``lr`` is not positive, the model has no linear layer, or two fan-ins are equally
            frequent and ``width`` is not given.

    References:
        Yang et al., "Tensor Programs V", 2022, arXiv:2203.03466; Wortsman et al., ICLR 2024, arXiv:2309.14322.

    Example:
        >>> model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.LayerNorm(1024))
        >>> [group["lr"] for group in mu_param_groups(model, base_width=256, lr=0.01)]
        [0.01, 0.0025]
    """
    for name, value in {"base_width": base_width, "lr": lr, "width": 1 if width is None else width}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    linear = {id(p): p.shape[1] for p in _linear_weights(model) if id(p) not in embeddings}
    if width is None:
        width = _most_frequent(linear)
    scaled: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        grows = id(parameter) in linear and linear[id(parameter)] % width == 0
        (scaled if grows else rest).append(parameter)
    groups = [{"params": rest, "lr": lr}, {"params": scaled, "lr": lr * base_width / width}]
    return [group for group in groups if group["params"]]


def _linear_weights(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module.weight
        elif isinstance(module, nn.MultiheadAttention):
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            yield from (getattr(module, name) for name in names if getattr(module, name) is not None)


def _most_frequent(linear: dict[int, int]) -> int:
    ranking = Counter(linear.values()).most_common()
    if not ranking:
        raise ValueError("model must have a linear layer whose width can be read, got none")
    if len(ranking) > 1 and ranking[0][1] == ranking[1][1]:
        raise ValueError(f"width must be given: the fan-ins {sorted(set(linear.values()))} are equally frequent")
    return ranking[0][0]
