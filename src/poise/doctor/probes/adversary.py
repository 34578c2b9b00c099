"""Networks that compete: a discriminator, and the generator that it judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_LOSSES = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")
_SMALLEST = 4


class AdversaryProbe(Probe):
    """Event ``adversarial``, once, of the discriminator's timeline; there also what the generator last had.

    A discriminator's loss compares one batch with the same high target everywhere and one with the same low target
    between two steps; the generator's compares one batch with one target, and has an optimizer of its own.
    ``opponent_loss`` and ``opponent_grad_norm``: the generator's loss and gradient norm at its last sampled step.
    """

    def __init__(self) -> None:
        self._targets: set[bool] = set()  # of the batches with one target since the last step: are they high
        self._kinds: dict[str, set[bool]] = {}  # by timeline
        self._pair: tuple[str, str] | None = None  # discriminator, generator
        self._generator: tuple[float | Tensor | None, float | Tensor | None] = (None, None)

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Note a batch whose targets are all the same."""
        target = call.target
        if self._pair is not None or call.function not in _LOSSES or target.numel() < _SMALLEST:
            return
        low, high = float(target.min()), float(target.max())
        if low == high and 0 <= low <= 1 and low != 0.5:
            self._targets.add(low > 0.5)

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Tell from the targets since the last step whose optimizer steps."""
        targets, self._targets = self._targets, set()
        if self._pair is not None or not targets:
            return
        self._kinds.setdefault(timeline.prefix, set()).update({len(targets) == 2})
        judges = [prefix for prefix, kinds in self._kinds.items() if kinds == {True}]
        judged = [prefix for prefix, kinds in self._kinds.items() if kinds == {False}]
        if len(judges) == 1 and len(judged) == 1:
            self._pair = judges[0], judged[0]
            sink.event(timeline.step, "adversarial", {"timeline": judges[0]})

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Record beside the discriminator's numbers those of the generator."""
        if self._pair is None:
            return
        discriminator, generator = self._pair
        if timeline.prefix == generator:
            self._generator = sink.interval.loss(), timeline.grad_norm
        elif timeline.prefix == discriminator:
            for signal, value in zip(("opponent_loss", "opponent_grad_norm"), self._generator, strict=True):
                if value is not None:
                    sink.emit(timeline, signal, None, [value])
