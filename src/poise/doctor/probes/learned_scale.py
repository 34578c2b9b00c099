"""The standard deviation of a Gaussian that is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink


class LearnedScaleProbe(Probe):
    """``learned_std``: geometric mean of the standard deviations that a Gaussian log-likelihood is given.

    ``standard_residual``: RMS of the residuals in units of these deviations; 1 where they are right. Only where they
    are learned: in ``torch.distributions.Normal.log_prob`` and ``F.gaussian_nll_loss``.
    """

    def learned_scale(self, sink: Sink, scale: Tensor, residual: Tensor) -> None:
        """Measure both."""
        scale = scale.clamp_min(1e-30)
        sink.observe("learned_std", scale.log().mean().exp())
        sink.observe("standard_residual", (residual / scale).square().mean().sqrt())
