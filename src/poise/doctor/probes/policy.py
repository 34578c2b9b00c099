"""What the graph of a loss says of a policy that is trained by its own actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from poise.doctor.probes.contracts.loss_shapes import difference_in
from poise.doctor.probes.probe import Probe
from poise.doctor.tap.bootstrap_terms import advantage_with_gradient, target_with_gradient
from poise.doctor.tap.policy_terms import policy_terms
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink

_CLIP = 0.2  # the usual range of ratios
_ACTING = 4  # calls of the model per backward pass, from which on it is taken to act
_REGRESSION = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}


class PolicyProbe(Probe):
    """Events ``policy_gradient`` and ``target_with_gradient``; how far a policy is from uniform, and how far it moves.

    ``policy_gradient``: the loss multiplies log-probabilities with factors that have no gradient and both signs, or
    several sizes where the model also acts (an environment moves between updates, or it is called four times as often
    as it is trained). Weighted likelihoods have factors of one sign and a model that does not act.

    ``policy_entropy``: mean entropy over that of the uniform distribution. ``policy_kl``: divergence of the policy from
    the one that took the actions, in nats, estimated from their ratios; ``policy_clipped``: fraction of the ratios
    outside 0.8 to 1.2.

    References:
        Schulman, Approximating KL divergence, 2020.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Look for a target that passes gradients on."""
        if call.function in _REGRESSION and target_with_gradient(call.input.grad_fn, call.target.grad_fn):
            self._tell(sink, "target_with_gradient", {"what": "target", "source": user_line()})

    def loss_root(self, sink: Sink, backward: BackwardPass) -> None:
        """Look for log-probabilities and their factors in the graph of the loss."""
        root = backward.root
        if not isinstance(root, Tensor) or root.grad_fn is None:
            return
        self._look_for_targets(sink, root.grad_fn)
        terms = policy_terms(root)
        if terms is None:
            return
        acts = sink.acting or backward.calls_per_backward >= _ACTING
        if (terms.signed and (terms.picked or acts)) or (terms.varied and acts):
            self._tell_policy(sink)
        if not (terms.varied and sink.is_first("policy", None)):
            return
        if terms.entropy is not None:  # of many states
            sink.observe("policy_entropy", terms.entropy)
        if terms.ratios is not None and terms.ratios.numel() > 1:
            ratio = terms.ratios.detach().float()
            sink.observe("policy_kl", (ratio - 1 - ratio.clamp_min(1e-12).log()).mean())
            sink.observe("policy_clipped", ((ratio - 1).abs() > _CLIP).float().mean())

    def _look_for_targets(self, sink: Sink, loss: Any) -> None:
        _, difference = difference_in(loss)
        sides = [] if difference is None else [before for before, _ in difference.next_functions if before is not None]
        if len(sides) == 2 and (target_with_gradient(*sides) or target_with_gradient(*sides[::-1])):
            self._tell(sink, "target_with_gradient", {"what": "target", "source": user_line()})
        elif advantage_with_gradient(loss):
            self._tell(sink, "target_with_gradient", {"what": "advantage", "source": user_line()})

    def _tell_policy(self, sink: Sink) -> None:
        if not sink.policy:
            sink.policy = True
            self._tell(sink, "policy_gradient", {"distribution": "log-probabilities in the loss"})

    def _tell(self, sink: Sink, kind: str, facts: dict[str, Any]) -> None:
        if kind not in self._told:
            self._told.add(kind)
            sink.event(sink.run_step, kind, facts)
