"""Everything that an audit at initialisation measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

from poise.preflight.curvature_limit.usable_lr import UsableLR
from poise.preflight.signal_propagation.depth_growth import DepthGrowth, FailingDepth
from poise.preflight.signal_propagation.hidden_state_gain import HiddenStateGain
from poise.preflight.signal_propagation.signal_propagation import SignalPropagation


@dataclass(frozen=True, slots=True)
class InitFacts:
    """All that an audit measured.

    Attributes:
        model: name of the model's class.
        parameters: number of trainable parameters.
        dtype: of the parameters.
        batch: number of examples.
        passed: what went through the layers.
        growth: over depth.
        failing: where number formats end.
        gains: of recurrent layers.
        lr: largest usable learning rates; ``None`` where curvature is not known.
        no_lr: why not.
        optimizer: that will train the model.
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
    lr: UsableLR | None
    no_lr: str | None
    optimizer: Optimizer | None
    tied: bool
    seed: int
