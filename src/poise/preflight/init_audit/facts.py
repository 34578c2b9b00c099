"""Everything that the audit before the first step measured."""

from __future__ import annotations

from dataclasses import dataclass

from poise.preflight.curvature_limit.usable_lr import UsableLR
from poise.preflight.signal_propagation.depth_growth import DepthGrowth, FailingDepth
from poise.preflight.signal_propagation.hidden_state_gain import HiddenStateGain
from poise.preflight.signal_propagation.signal_propagation import SignalPropagation
from poise.preflight.signal_propagation.sublayer_bound import SublayerBound


@dataclass(frozen=True, slots=True)
class InitFacts:
    """All that an audit measured.

    Attributes:
        model: name of the model's class.
        parameters: number of trainable parameters.
        dtype: of the parameters.
        batch: number of examples.
        passed: the signals and gradients in the layers.
        growth: over depth.
        failing: where the range of number formats ends.
        gains: of recurrent layers.
        bounds: on the Jacobians of feed-forward sub-layers.
        lr: largest usable learning rates; ``None`` where curvature is not known.
        no_lr: the reason, in a sentence.
        set_lr: learning rate of the optimizer that will train the model; ``None`` without one.
        eps: epsilon of that optimizer; ``None`` if it has none.
        tied: whether an embedding's weights are also a head's.
        seed: of start vectors.
    """

    model: str
    parameters: int
    dtype: str
    batch: int
    passed: SignalPropagation
    growth: DepthGrowth
    failing: list[FailingDepth]
    gains: list[HiddenStateGain]
    bounds: list[SublayerBound]
    lr: UsableLR | None
    no_lr: str | None
    set_lr: float | None
    eps: float | None
    tied: bool
    seed: int

    @property
    def unit(self) -> str:
        """What depth is counted in: ``"block"`` or ``"layer"``."""
        return "block" if self.passed.are_blocks else "layer"
