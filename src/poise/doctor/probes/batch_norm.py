"""How many values a batch normalisation has for its statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink


class BatchNormProbe(Probe):
    """``bn_values[m]``: values per channel from which a BatchNorm in training mode takes its mean and variance.

    ``SyncBatchNorm`` is left out: it has the values of other processes as well.
    """

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Count them."""
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(module, nn.SyncBatchNorm):
            return
        if module.training and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            sink.observe("bn_values", args[0].numel() / max(args[0].shape[1], 1), module)
