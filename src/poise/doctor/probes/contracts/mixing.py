"""Whether batches are mixed: how much of what differs between examples differs between batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink

_BATCHES, _SMALLEST, _FEATURES, _CLASSES = 10, 8, 256, 64


class MixingProbe(Probe):
    """Events ``labels_unmixed`` and ``inputs_unmixed``: ten batches differ more than batches drawn at random do.

    The first holds the entropy of the labels of all batches together and the mean of the batches' own, in nats. The
    second the F statistic of an analysis of variance of the features between batches (1 on average where they are
    drawn at random), and the share of the variance that lies between batches; only where a batch norm makes it matter.
    """

    def __init__(self) -> None:
        self._counts: list[Float[Tensor, " cls"]] = []
        self._batches: list[tuple[int, Tensor, Tensor]] = []  # examples, mean and variance of the features
        self._told: set[str] = set()

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Count the labels of a batch."""
        target = call.target
        wanted = call.function in ("cross_entropy", "nll_loss") and call.input.dim() == 2 and target.dim() == 1
        if "labels" in self._told or not wanted or target.is_floating_point() or target.numel() < _SMALLEST:
            return
        classes = call.input.shape[1]
        if not 1 < classes <= _CLASSES or int(target.min()) < 0 or int(target.max()) >= classes:
            return
        self._counts.append(torch.bincount(target.detach().cpu(), minlength=classes).double())
        self._counts = [counts for counts in self._counts if len(counts) == classes]
        if len(self._counts) >= _BATCHES:
            self._compare_labels(sink, torch.stack(self._counts))

    def _compare_labels(self, sink: Sink, counts: Float[Tensor, "batch cls"]) -> None:
        together = float(_entropy(counts.sum(0)))
        within = float((counts.sum(1) * _entropy(counts)).sum() / counts.sum())
        present = int((counts.sum(0) > 0).sum())
        freedom = (len(counts) - 1) * (present - 1)
        # Twice the mutual information of batch and label, times the examples: chi squared where they are independent.
        if present > 1 and 2 * float(counts.sum()) * (together - within) > 3 * freedom and within < 0.6 * together:
            self._told.add("labels")
            facts = {"within": within, "together": together, "batches": len(counts)}
            sink.event(sink.run_step, "labels_unmixed", facts)

    def model_inputs(self, sink: Sink, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the features of a batch."""
        batch = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if "inputs" in self._told or batch is None or not batch.is_floating_point() or batch.dim() < 2:
            return
        if batch.shape[0] < _SMALLEST or not sink.is_first("mixing", None):
            return
        features = batch.detach().reshape(len(batch), -1)
        features = features[:, :: max(1, features.shape[1] // _FEATURES)].double()
        self._batches.append((len(batch), features.mean(0), features.var(0)))
        if len(self._batches) < _BATCHES:
            return
        self._told.add("inputs")
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for root in sink.names.roots for m in root.modules()):
            self._compare_inputs(sink)
        self._batches.clear()

    def _compare_inputs(self, sink: Sink) -> None:
        sizes, means, variances = zip(*self._batches, strict=True)
        if len({mean.shape for mean in means}) > 1 or len(set(sizes)) > 1:
            return
        between, within = torch.stack(means).var(0), torch.stack(variances).mean(0)
        varies = within > 0
        if not bool(varies.any()):
            return
        ratio = float((sizes[0] * between[varies] / within[varies]).median())
        share = float((between[varies] / (between[varies] + within[varies])).median())
        if ratio > 4 and share > 0.1:
            sink.event(sink.run_step, "inputs_unmixed", {"ratio": ratio, "share": share, "batches": len(means)})


def _entropy(counts: Tensor) -> Tensor:
    """Return the entropy, in nats, of what rows of counts were drawn from (with Miller's correction of the bias)."""
    draws = counts.sum(-1, keepdim=True).clamp_min(1)
    shares = counts / draws
    correction = ((counts > 0).sum(-1) - 1).clamp_min(0) / (2 * draws.squeeze(-1))
    return correction - torch.xlogy(shares, shares).sum(-1)
