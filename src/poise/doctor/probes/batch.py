"""The batch that the model is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink

_ELEMENTS = 1 << 18


class BatchProbe(Probe):
    """A fingerprint of the first tensor that a root module is called with.

    ``batch_size``: its first dimension. Of numbers: ``input_mean``, ``input_std``, ``input_absmax`` and
    ``input_nonfinite`` (a count). Of token ids: ``token_entropy`` in nats, and ``token_repeats``, the fraction of
    tokens equal to the one before.
    """

    def model_inputs(self, sink: Sink, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the batch."""
        batch = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if batch is None or batch.numel() == 0 or not sink.is_first("batch", None):
            return
        batch = batch.detach()
        sink.observe("batch_size", float(batch.shape[0]) if batch.dim() else 1.0)
        if batch.is_floating_point():
            self._numbers(sink, batch)
        elif batch.dtype in (torch.int64, torch.int32) and batch.dim() >= 2:
            self._tokens(sink, batch)

    def _numbers(self, sink: Sink, batch: Tensor) -> None:
        flat = batch.reshape(-1)[:_ELEMENTS].float()
        finite = torch.isfinite(flat)
        sink.observe("input_nonfinite", (~finite).sum())
        values = torch.where(finite, flat, 0.0)
        sink.observe("input_mean", values.mean())
        sink.observe("input_std", values.std(correction=0))
        sink.observe("input_absmax", values.abs().amax())

    def _tokens(self, sink: Sink, batch: Tensor) -> None:
        tokens = batch.reshape(-1)[:_ELEMENTS]
        _, counts = torch.unique(tokens, return_counts=True) if tokens.device.type == "cpu" else (None, None)
        if counts is not None:  # on a device the number of distinct tokens would have to be waited for
            fractions = counts / counts.sum()
            sink.observe("token_entropy", -(fractions * fractions.log()).sum())
        sink.observe("token_repeats", (batch[..., 1:] == batch[..., :-1]).float().mean())
