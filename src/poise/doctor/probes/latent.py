"""The latent variables of a variational autoencoder: how many of them the data inform."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink

_NODES = 5_000  # of a graph that are searched, nearest to the loss first
_GRAPHS = 3  # that are searched in vain before none is searched any more
_INFORMED = 0.95  # standard deviation of a posterior below which it is not the prior


class LatentProbe(Probe):
    """``latent_active``: share of the latent variables whose posterior is narrower than the prior, N(0, 1).

    Recognised in the graph of the loss as ``mean + exp(c * log_variance) * noise``, where ``c`` is a number and the
    noise has no gradient. A variable counts as active where its standard deviation, averaged over the batch, is below
    0.95.

    References:
        Kingma and Welling, Auto-encoding variational Bayes, 2014.
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016 (active units).
    """

    def __init__(self) -> None:
        self._is_known = False
        self._graphs = 0

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Search the graph for a reparameterised sample."""
        root = backward.root
        if not isinstance(root, Tensor) or (not self._is_known and self._graphs >= _GRAPHS):
            return
        self._graphs += 1
        deviation = _posterior_deviation(root.grad_fn)
        if deviation is None or not sink.is_first("latent", None):
            return
        self._is_known = True
        by_variable = deviation.detach().float().reshape(deviation.shape[0], -1).mean(0)
        sink.observe("latent_active", (by_variable < _INFORMED).float().mean())


def _posterior_deviation(root: Any) -> Tensor | None:
    """Return ``exp(c * log_variance)`` of the first ``mean + exp(c * log_variance) * noise`` below ``root``."""
    queue: deque[Any] = deque([root])
    seen: set[Any] = set()
    while queue and len(seen) < _NODES:
        node = queue.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        if node.name().startswith("AddBackward") and len(parents) == 2 and None not in parents:
            for product in parents:
                exponential = _noise_times(product)
                if exponential is not None:
                    return _result_of(exponential)
        queue.extend(parents)
    return None


def _result_of(exponential: Any) -> Tensor | None:
    """Return what a node of an exponential has computed: one row per example."""
    try:
        result: Tensor = exponential._saved_result
    except RuntimeError:
        return None  # freed by an earlier backward pass, or overwritten
    return result if result.dim() > 1 else None


def _noise_times(node: Any) -> Any:
    """Return the node of ``exp(c * x)`` where ``node`` multiplies it by something without a gradient."""
    if not node.name().startswith("MulBackward"):
        return None
    (factor,) = [parent for parent, _ in node.next_functions if parent is not None][:1] or [None]
    if factor is None or sum(parent is None for parent, _ in node.next_functions) != 1:
        return None
    if not factor.name().startswith("ExpBackward"):
        return None
    scaled = factor.next_functions[0][0]
    is_scaled = scaled is not None and scaled.name().startswith(("MulBackward", "DivBackward"))
    return factor if is_scaled and scaled.next_functions[-1][0] is None else None
