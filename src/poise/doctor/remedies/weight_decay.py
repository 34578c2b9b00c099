"""Set the weight decay.

## What it does
Groups that decay already step with ``weight_decay = VALUE``; groups that the script exempted (decay 0, as is usual for
biases and gains) stay exempt. If no group decays, all of them do. Default 0.1. Around the step only. Whether the decay
is decoupled or added to the gradient is the optimizer's way, as before.

## When it helps
Against slow growth: output logits that drift away, queries and keys whose norms grow until attention saturates,
weights whose size makes the effective learning rate vanish. 0 takes a decay away that pulls weights to zero.

## What it costs
A pull to zero of strength learning rate times ``VALUE``; too strong a pull underfits. If no group was exempted by the
script, biases and gains decay as well.

## Making it permanent
Pass ``weight_decay=`` where the optimizer is made, for the matrices only.

## References
Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017, arXiv:1711.05101.
Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv:2309.14322.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.group_values import GroupValues
from poise.doctor.remedies.remedy import Remedy, Values


class WeightDecay(Remedy):
    """Step with ``weight_decay = value`` in the groups that decay, or in all if none does.

    Args:
        value: the new weight decay, at least 0. Default 0.1.
    """

    name = "weight_decay"
    default = 0.1
    values = Values(above=0.0, closed=True)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._decay = GroupValues("weight_decay")

    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Set the weight decay."""
        any_decays = any(group.get("weight_decay") for group in optimizer.param_groups)
        if not self._decay.apply(optimizer, lambda decay: self.value if decay or not any_decays else None):
            self.note(f"{type(optimizer).__name__} has no weight_decay, so weight_decay changes nothing there")

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the script's weight decay back."""
        self._decay.restore(optimizer)

    def code(self) -> str:
        """Return the change of the weight decay."""
        return (
            "# once, after the optimizer is made\n"
            'any_decays = any(group["weight_decay"] for group in optimizer.param_groups)\n'
            "for group in optimizer.param_groups:\n"
            '    if group["weight_decay"] or not any_decays:\n'
            f'        group["weight_decay"] = {self.value!r}\n'
        )
