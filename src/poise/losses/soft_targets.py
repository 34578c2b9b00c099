"""Cross entropy with targets that are learned while training: what the model says of a class when it is right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class SoftTargetLoss(nn.Module):
    r"""Cross entropy with dynamic soft targets, for an increment of new classes.

    For a sample of an old class :math:`y` that is predicted as :math:`\hat y`, the target is :math:`Q_y`, the mean
    prediction of the class's samples so far that were predicted right, with :math:`t_{\hat y} = 1/C` and then
    :math:`t_y = 1`; for a new class it is the model's own prediction, changed in the same way. Targets are divided by
    their sum, and no gradient passes through them. :meth:`update` moves :math:`Q` after the step; until then the loss
    uses that of the update before.

    Args:
        num_classes: :math:`C`, old and new ones.
        old_classes: those known before the increment.

    Raises:
        ValueError: if ``num_classes`` is below 1 or an old class is outside [0, ``num_classes``).

    References:
        Harun and Kanan, "Overcoming the stability gap in continual learning", TMLR 2024, arXiv:2306.01904.

    Example:
        >>> loss_fn = SoftTargetLoss(10, old_classes=range(6))
        >>> loss = loss_fn(model(x), y)
        >>> loss.backward(), optimizer.step(), loss_fn.update()
    """

    sums: Tensor
    counts: Tensor
    targets: Tensor
    is_old: Tensor

    def __init__(self, num_classes: int, old_classes: Iterable[int]) -> None:
        super().__init__()
        old = sorted({int(c) for c in old_classes})
        if num_classes < 1 or any(not 0 <= c < num_classes for c in old):
            raise ValueError(f"old_classes must lie in [0, {num_classes}), got {old}")
        self.num_classes = num_classes
        is_old = torch.zeros(num_classes, dtype=torch.bool)
        is_old[old] = True
        self.register_buffer("is_old", is_old)
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("targets", torch.full((num_classes, num_classes), 1 / num_classes))

    def reset(self) -> None:
        """Forget all predictions, at the start of an increment."""
        self.sums.zero_()
        self.counts.zero_()
        self.targets.fill_(1 / self.num_classes)

    def forward(self, logits: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Return the loss, and remember the predictions that were right.

        Raises:
            ValueError: if there are not ``num_classes`` logits, or a target lies outside [0, ``num_classes``).
        """
        if logits.shape[-1] != self.num_classes:
            raise ValueError(f"logits must have {self.num_classes} classes, got {logits.shape[-1]}")
        if len(target) and not (int(target.min()) >= 0 and int(target.max()) < self.num_classes):
            raise ValueError(f"target must lie in [0, {self.num_classes}), got {target.unique().tolist()[:10]}")
        with torch.no_grad():
            p = logits.softmax(1)
            predicted = p.argmax(1)
            soft = self.soft_targets(p, predicted, target)
            right = predicted == target
            self.sums.index_add_(0, target[right], p[right].to(self.sums.dtype))
            self.counts.index_add_(0, target[right], self.counts.new_ones(int(right.sum())))
        return F.cross_entropy(logits, soft)

    @torch.no_grad()
    def soft_targets(self, p: Tensor, predicted: Tensor, target: Tensor) -> Float[Tensor, "batch classes"]:
        """Return the targets of samples with predictions ``p``, in rows that sum to 1."""
        soft = torch.where(self.is_old[target][:, None], self.targets[target].to(p.dtype), p)
        soft.scatter_(1, predicted[:, None], 1 / self.num_classes)  # the prediction first: a right one is set to 1 next
        soft.scatter_(1, target[:, None], 1.0)
        return soft / soft.sum(1, keepdim=True)

    @torch.no_grad()
    def update(self) -> None:
        """Move the targets of old classes to the mean predictions; call it after the optimizer step."""
        seen = self.counts >= 0.5
        mean = self.sums / self.counts.clamp_min(1)[:, None]
        self.targets.copy_(torch.where(seen[:, None], mean, 1 / self.num_classes))
