"""A cohort of small networks with one hidden layer, trained side by side as one batched network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
}
"""By name."""

_SATURATED = -1.7580993408473766  # of a self-normalising unit: what alpha dropout puts in the place of a dropped one


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Weights of several networks ``x -> act(x W + b) -> h V + c``, stacked along the first axis.

    Attributes:
        w: of the hidden layers.
        b: their biases.
        v: of the outputs.
        c: their biases.
    """

    w: Float[Tensor, "members inputs units"]
    b: Float[Tensor, "members units"]
    v: Float[Tensor, "members units"]
    c: Float[Tensor, " members"]

    def __len__(self) -> int:
        return len(self.w)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All weights."""
        return self.w, self.b, self.v, self.c

    def members(self, chosen: Sequence[int]) -> Cohort:
        """Return some of the networks."""
        index = torch.tensor(list(chosen), device=self.w.device)
        return Cohort(*(part[index] for part in self.parts))


def joined(cohorts: Sequence[Cohort]) -> Cohort:
    """Return one cohort of the members of several."""
    return Cohort(*(torch.cat(parts) for parts in zip(*(cohort.parts for cohort in cohorts), strict=True)))


def random_cohort(inputs: int, units: int, generators: Sequence[torch.Generator], like: Tensor) -> Cohort:
    """Draw networks with Glorot-normal weights and zero biases, each from its own generator.

    Args:
        inputs: columns of the inputs.
        units: of the hidden layer.
        generators: one a member, of the CPU.
        like: gives dtype and device.
    """

    def glorot(fan_in: int, fan_out: int) -> Tensor:
        scale = (2 / (fan_in + fan_out)) ** 0.5
        draws = [torch.randn(fan_in, fan_out, generator=g, dtype=like.dtype) * scale for g in generators]
        return torch.stack(draws).to(like.device)

    members = len(generators)
    w, v = glorot(inputs, units), glorot(units, 1)[..., 0]
    return Cohort(w, like.new_zeros(members, units), v, like.new_zeros(members))


def hidden(x: Tensor, cohort: Cohort, activation: str) -> Float[Tensor, "members rows units"]:
    """Return the hidden layer of each member.

    Args:
        x: of shape (rows, inputs), or (members, rows, inputs).
        cohort: the networks.
        activation: a name of :data:`ACTIVATIONS`.
    """
    return ACTIVATIONS[activation](torch.baddbmm(cohort.b[:, None], x.expand(len(cohort), *x.shape[-2:]), cohort.w))


def output(h: Tensor, cohort: Cohort) -> Float[Tensor, "members rows"]:
    """Return the output of each member from its hidden layer."""
    return torch.baddbmm(cohort.c[:, None, None], h, cohort.v[..., None])[..., 0]


@dataclass(frozen=True, slots=True)
class Training:
    """How a cohort is trained.

    Args:
        lr: of Adam.
        batch: rows a step.
        patience: epochs without a better validation loss after which a member stops.
        max_epochs: most epochs.
        l2: factors of the squared norms of hidden and output weights.
        dropout: probability of alpha dropout after the hidden layer.
    """

    lr: float
    batch: int
    patience: int
    max_epochs: int
    l2: tuple[float, float]
    dropout: float = 0.0


Loss = Callable[[Tensor, Tensor], Tensor]
"""From predictions (members, rows) and targets (rows,) to one loss an entry."""


def train_cohort(
    cohort: Cohort,
    x: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    loss: Loss,
    activation: str,
    training: Training,
    order: torch.Generator,
    generators: Sequence[torch.Generator],
) -> tuple[Cohort, Float[Tensor, " members"]]:
    """Train all members with Adam; return each with the weights of its best epoch, and its loss on validation rows.

    Members share the order of batches and nothing else: each is what it would be if it were trained alone. The loss
    that stops a member early includes its penalty; the one returned does not.

    Args:
        cohort: where training starts.
        x: inputs of training and validation rows, as in :func:`hidden`.
        target: of both.
        loss: of each entry.
        activation: of the hidden layer.
        training: settings.
        order: of batches.
        generators: of dropout, one a member.
    """
    parts = [part.clone().requires_grad_() for part in cohort.parts]
    own = Cohort(*parts)
    optimizer = torch.optim.Adam(parts, lr=training.lr, foreach=True, eps=1e-7)
    best = [part.detach().clone() for part in parts]
    lowest = x[0].new_full((len(cohort),), float("inf"))
    waited = torch.zeros(len(cohort), dtype=torch.long, device=lowest.device)
    running = torch.ones(len(cohort), dtype=torch.bool, device=lowest.device)
    rows = x[0].shape[-2]
    for _ in range(training.max_epochs):
        permutation = torch.randperm(rows, generator=order).to(lowest.device)
        keep = _kept(rows, cohort.w.shape[-1], training.dropout, generators, x[0])
        for chosen in permutation.split(training.batch):
            h = hidden(x[0][..., chosen, :], own, activation)
            if keep is not None:
                h = _alpha_dropout(h, keep[:, chosen], training.dropout)
            fit = loss(output(h, own), target[0][chosen]).mean(-1)
            optimizer.zero_grad(set_to_none=True)
            (fit + _penalty(own, training.l2)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            now = _mean_loss(own, x[1], target[1], loss, activation) + _penalty(own, training.l2)
            better = running & (now < lowest)  # false where it is NaN
            lowest = torch.where(better, now, lowest)
            for kept, part in zip(best, parts, strict=True):
                kept[better] = part[better]
            waited = torch.where(better, 0, waited + 1)
            running &= (waited < training.patience) & now.isfinite()
        if not running.any():
            break
    found = Cohort(*best)
    return found, _mean_loss(found, x[1], target[1], loss, activation)


def _mean_loss(cohort: Cohort, x: Tensor, target: Tensor, loss: Loss, activation: str) -> Tensor:
    return loss(output(hidden(x, cohort, activation), cohort), target).mean(-1)


def _penalty(cohort: Cohort, l2: tuple[float, float]) -> Float[Tensor, " members"]:
    return l2[0] * cohort.w.square().sum((-2, -1)) + l2[1] * cohort.v.square().sum(-1)


def _kept(rows: int, units: int, rate: float, generators: Sequence[torch.Generator], like: Tensor) -> Tensor | None:
    if rate == 0:
        return None
    masks = [torch.rand(rows, units, generator=g, dtype=like.dtype) >= rate for g in generators]
    return torch.stack(masks).to(like.device)


def _alpha_dropout(h: Tensor, keep: Tensor, rate: float) -> Tensor:
    # Mean and variance of a self-normalising layer are kept.
    q = 1 - rate
    a = (q + _SATURATED**2 * q * rate) ** -0.5
    return a * torch.where(keep, h, _SATURATED) - a * rate * _SATURATED


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return squared errors."""
    return (prediction - target).square()


def cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Return cross-entropies of binary targets."""
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, target.expand_as(logit), reduction="none")
