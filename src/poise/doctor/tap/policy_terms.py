"""Find log-probabilities that a loss multiplies with numbers that have no gradient: the mark of a policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise.doctor.tap.graph import op_name, parents, saved

_NODES = 4000  # of the graph that are visited
# What is linear in each of its differentiable arguments, or only picks some of them.
_LINEAR = {
    "add", "alias", "cat", "clamp", "clampmax", "clampmin", "clone", "expand", "index", "max", "maximum", "mean", "min",
    "minimum", "neg", "permute", "reshapealias", "rsub", "select", "slice", "split", "squeeze", "stack", "sub", "sum",
    "t", "tocopy", "transpose", "unbind", "unsafeview", "unsqueeze", "view", "where",
}  # fmt: skip
_PICKS = {"gather", "index", "select", "nllloss", "nllloss2d"}
_LOGARITHMS = {"log", "logsoftmax", "logsigmoidforward"}
_STATES = 8
_FEWEST = 4  # log-probabilities, one by one, whose factors are compared


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """Log-probabilities times factors without a gradient.

    Args:
        low: smallest factor.
        high: largest factor.
        varied: whether the factors differ among each other, and are not just 0 and 1.
        picked: whether the log-probabilities are those of chosen classes.
        entropy: mean entropy of the distributions over its largest possible value; ``None`` where it is not known.
        ratios: probability of the actions over what it was when they were taken; ``None`` where there are none.
    """

    low: float
    high: float
    varied: bool
    picked: bool
    entropy: Tensor | None
    ratios: Tensor | None

    @property
    def signed(self) -> bool:
        """Whether some log-probabilities are to rise and others to fall, which no likelihood of data asks for."""
        return self.varied and self.low < 0 < self.high


def policy_terms(root: Any) -> PolicyTerms | None:
    """Return the log-probabilities in a loss and the range of their factors; ``None`` where there are none.

    Args:
        root: the loss, with its graph.
    """
    if not isinstance(root, Tensor) or root.grad_fn is None:
        return None
    walk = _Walk()
    walk.follow(root.grad_fn)
    return walk.found()


class _Walk:
    """A walk from a loss down through what is linear."""

    def __init__(self) -> None:
        self._factors: list[tuple[float, float, bool]] = []  # smallest, largest, whether it has several values
        self._picked = True
        self._entropy: Tensor | None = None
        self._ratios: Tensor | None = None

    def follow(self, loss: Any) -> None:
        pending: list[tuple[Any, Tensor | None, bool, bool]] = [(loss, None, False, False)]
        visited = 0
        while pending and visited < _NODES:
            node, factor, picked, as_ratio = pending.pop()
            visited += 1
            name = op_name(node)
            before = parents(node)
            if name in ("nllloss", "nllloss2d", *_LOGARITHMS) or _is_normalised(node):
                self._log_probability(node, factor, picked or name.startswith("nllloss"))
            elif name in ("mul", "div") and len(before) == 1:
                pending.append((before[0], _times(factor, node), picked, as_ratio))
            elif name == "exp" and factor is not None and not as_ratio and len(before) == 1:
                if op_name(before[0]) in ("sub", "add", "squeeze", "view") and self._ratios is None:
                    self._ratios = saved(node, "result")
                pending.append((before[0], factor, picked, True))
            elif name == "pow" and factor is not None and not as_ratio and factor.numel() > 1:
                self._add(factor)  # a Gaussian's log-probability, written by hand
                self._picked = False
            elif name in _LINEAR or name in _PICKS:
                pending += [(parent, factor, picked or name in _PICKS, as_ratio) for parent in before]

    def found(self) -> PolicyTerms | None:
        if not self._factors:
            return None
        low, high = min(f[0] for f in self._factors), max(f[1] for f in self._factors)
        values = {f[0] for f in self._factors}
        varied = any(f[2] for f in self._factors) or (len(self._factors) >= _FEWEST and len(values) > 2)
        return PolicyTerms(low, high, varied, self._picked, self._entropy, self._ratios)

    def _log_probability(self, node: Any, factor: Tensor | None, picked: bool) -> None:
        if factor is None:
            return
        self._add(factor)
        self._picked = self._picked and (picked or op_name(node) == "log")
        source = node if op_name(node) == "logsoftmax" else next(iter(parents(node)), None)
        logarithms = saved(source, "result") if op_name(source) in ("logsoftmax", "softmax") else None
        if self._entropy is None and isinstance(logarithms, Tensor) and is_telling(logarithms):
            self._entropy = normalised_entropy(logarithms, is_logarithm=op_name(source) == "logsoftmax")

    def _add(self, factor: Tensor) -> None:
        low, high = (float(t) for t in torch.aminmax(factor.detach()))
        several = low != high and not bool(((factor == 0) | (factor.abs() == 1)).all())
        self._factors.append((low, high, several))


def is_telling(rows: Tensor) -> bool:
    """Return whether there are enough distributions for their mean entropy to be that of the policy."""
    return rows.shape[-1] > 1 and rows.numel() >= _STATES * rows.shape[-1]


def normalised_entropy(p: Tensor, is_logarithm: bool) -> Tensor:
    """Return the mean entropy of the rows of ``p`` (probabilities, or their logarithms) as a fraction of uniform."""
    log = p.float() if is_logarithm else p.float().clamp_min(1e-12).log()
    return -(log.exp() * log.clamp_min(-50.0)).sum(-1).mean() / torch.tensor(float(p.shape[-1])).log()


def _times(factor: Tensor | None, node: Any) -> Tensor | None:
    """Return the factor with that of one more product; ``None`` as long as there are constants only."""
    other = saved(node, "other")
    if other is None:
        other = saved(node, "self")
    if not isinstance(other, Tensor) or other.is_sparse:
        return factor
    other = other.detach()
    if op_name(node) == "div":
        other = other.sign()  # what matters is the sign
    if factor is None:
        # A constant has no part in the range, except among several terms.
        return other
    if factor.numel() > 1 and other.numel() > 1:
        return factor if factor.numel() >= other.numel() else other
    return factor * other


def _is_normalised(node: Any) -> bool:
    """Return whether a node is ``logits - logsumexp(logits)``, as `torch.distributions` makes it."""
    return op_name(node) == "sub" and any(op_name(before) == "logsumexp" for before in parents(node))
