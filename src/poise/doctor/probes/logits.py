"""What cross-entropy is given: logits and labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink

_ROWS = 256
_CLASSES = 256  # beyond that the table of predictions against labels is not kept
_LABELS = 8  # for each class, that the table holds: fewer would make any prediction seem to determine the label


class LogitProbe(Probe):
    """Scale of the output logits, and whether labels keep their meaning.

    ``logit_lse`` (mean log-sum-exp), ``logit_mean``, ``logit_max`` (largest absolute value);
    ``logits_are_probabilities``: 1 if every row lies in [0, 1] and sums to 1. ``label_entropy`` of the batch in nats,
    ``label_ignored`` (fraction), ``classes``; from a decaying table of predictions against labels ``label_agreement``
    (accuracy) and ``label_purity`` (how well a prediction determines the label, whichever it is): labels that were
    permuted halfway keep their purity and lose their agreement. The table holds about eight labels for each class.

    ``softmax_collapse``: fraction of rows whose ``sum(exp(z - max(z)))`` is exactly 1 in the precision of the softmax,
    so that all classes but one were absorbed; ``zero_losses``: fraction of rows (those not ignored) whose loss is
    exactly 0.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None

    def loss_inputs(self, sink: Sink, logits: Tensor, target: Tensor, ignore_index: int) -> None:
        """Measure up to 256 rows."""
        if logits.dim() == 1:
            logits, target = logits.unsqueeze(0), target.unsqueeze(0)
        if logits.numel() == 0:
            return
        exact = logits.movedim(1, -1).reshape(-1, logits.shape[1])[:_ROWS]
        exact = exact.to(torch.promote_types(exact.dtype, torch.float32))  # what a softmax computes in
        rows = exact.float()
        self._scale(sink, rows)
        sink.observe("softmax_collapse", ((exact - exact.amax(-1, keepdim=True)).exp().sum(-1) == 1).float().mean())
        if not target.is_floating_point():
            self._labels(sink, exact, target.reshape(-1)[:_ROWS], ignore_index)

    def _scale(self, sink: Sink, rows: Float[Tensor, "row cls"]) -> None:
        sink.observe("classes", float(rows.shape[1]))
        sink.observe("logit_lse", torch.logsumexp(rows, dim=-1).mean())
        sink.observe("logit_mean", rows.mean())
        low, high = torch.aminmax(rows)
        sink.observe("logit_max", torch.maximum(-low, high))
        like = (low >= 0) & (high <= 1) & ((rows.sum(-1) - 1).abs().amax() < 1e-3)
        sink.observe("logits_are_probabilities", like.float())

    def _labels(
        self, sink: Sink, rows: Float[Tensor, "row cls"], labels: Int[Tensor, " row"], ignore_index: int
    ) -> None:
        classes = rows.shape[1]
        ignored, within = labels == ignore_index, labels.clamp(0, classes - 1)
        weights = (~ignored & (labels == within)).float()
        sink.observe("label_ignored", ignored.float().mean())
        counts = torch.zeros(classes, device=rows.device).index_add_(0, within, weights)
        sink.observe("label_entropy", entropy(counts))
        if classes <= _CLASSES:
            self._agreement(sink, rows.argmax(-1), within, weights, classes)
        losses = torch.log_softmax(rows, -1).gather(1, within[:, None].long())[:, 0]
        sink.observe("zero_losses", ((losses == 0) * weights).sum() / weights.sum().clamp_min(1))

    def _agreement(self, sink: Sink, predicted: Tensor, labels: Tensor, weights: Tensor, classes: int) -> None:
        table = self._table
        if table is None or table.shape[0] != classes or table.device != predicted.device:
            table = torch.zeros(classes, classes, device=predicted.device)
        kept = (1 - weights.sum() / (_LABELS * classes)).clamp_min(0)  # a large batch needs no others
        table.mul_(kept).view(-1).index_add_(0, predicted * classes + labels, weights)
        self._table = table
        total = table.sum().clamp_min(1e-12)
        sink.observe("label_agreement", table.diagonal().sum() / total)
        sink.observe("label_purity", table.amax(1).sum() / total)


def entropy(counts: Float[Tensor, " cls"]) -> Float[Tensor, ""]:
    """Estimate the entropy, in nats, of what ``counts`` were drawn from.

    The entropy of the fractions themselves is too low by about (K - 1) / 2n, for n draws with K different classes; it
    cannot exceed the logarithm of the number of classes.

    References:
        Miller, Note on the bias of information estimates, 1955.
    """
    draws = counts.sum().clamp_min(1)
    fractions = counts / draws
    correction = ((counts > 0).sum() - 1).clamp_min(0) / (2 * draws)
    return (correction - torch.xlogy(fractions, fractions).sum()).clamp_max(math.log(len(counts)))
