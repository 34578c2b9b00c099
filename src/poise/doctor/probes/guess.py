"""What the loss would be if the model did not look at its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poise.doctor.probes.logits import entropy
from poise.doctor.probes.probe import Probe
from poise.doctor.tap.loss_node import LossNode, loss_node

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink

_MOST_CLASSES = 20  # the few labels of a batch tell the entropy of more too low
_ROWS = 4096


class GuessProbe(Probe):
    """``guess_loss``: the loss of the best constant prediction of the batch.

    It is the entropy of the labels for cross-entropy (with up to 20 classes), the mean entropy of each output for
    binary cross-entropy, and the mean variance of each output for the squared error. It is recorded where the loss is
    the mean of one such function of torch and nothing else.
    """

    def loss_root(self, sink: Sink, backward: BackwardPass) -> None:
        """Measure the targets that the graph of the loss holds."""
        node = loss_node(backward.root)
        if node is not None and sink.is_first("guess", None):
            guess = loss_of_a_constant(node)
            if guess is not None:
                sink.observe("guess_loss", guess * node.factor)


def loss_of_a_constant(node: LossNode) -> Tensor | None:
    """Return the loss of the best constant prediction; ``None`` if too few targets are there to tell."""
    if node.kind == "classes":
        if node.classes > _MOST_CLASSES:
            return None
        return entropy(torch.bincount(node.target[:_ROWS].long(), minlength=node.classes)[: node.classes].float())
    target = node.target.float()
    columns = target.reshape(len(target), -1)[:_ROWS] if target.dim() else target.reshape(1, 1)
    if len(columns) < 2:
        return None
    if node.kind == "squares":
        return columns.var(0).mean()
    p = columns.mean(0)
    # The entropy of a fraction of n draws is too low by about 1 / 2n.
    bits = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) + ((p > 0) & (p < 1)) / (2 * len(columns))
    return bits.clamp_max(0.6931472).mean()
