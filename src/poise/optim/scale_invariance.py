"""Which parameters of a model are scale-invariant, found by scaling them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

Invariance = Literal["channel", "layer"]

_FACTORS = (0.5, 2.0)


def scale_invariant_parameters(
    model: nn.Module, example: Any, tolerance: float = 0.01, seed: int = 0
) -> dict[str, Invariance]:
    r"""Return the names of the parameters whose scale does not matter, by the measurement :math:`f(cw) = f(w)`.

    A parameter is scaled, everything else left alone, and the outputs are compared. How much a change of its size could
    have done is measured by random changes of the same size: the parameter is scale-invariant if scaling does less than
    ``tolerance`` of that. The model and its buffers are untouched, and all evaluations use the same random numbers.

    Parameters that are zero, or whose random changes do nothing (a bias before a normalisation), are left out: they
    have no direction that matters.

    Args:
        model: in training mode, because batch statistics are what makes weights before a batch norm scale-invariant.
        example: a batch: a tensor or any object for ``model(example)``, a tuple for ``model(*example)``, a mapping for
            ``model(**example)``. Tensors in the output (also in tuples, lists and mappings) are compared.
        tolerance: largest fraction of the effect, in (0, 1). The epsilon of normalisation layers breaks exact
            invariance.
        seed: of the random changes and of the model's own random numbers.

    Returns:
        Name to ``"channel"`` where every output channel can be scaled by itself, to ``"layer"`` where only the tensor
        as a whole can. The values are those of the param group key ``scale_invariant`` of :class:`AdamP`.

    Raises:
        ValueError: if the model is not in training mode, ``tolerance`` is not in (0, 1), or the output holds no
            floating-point tensor or NaN.

    References:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
        arXiv:2006.08217; van Laarhoven, 2017, arXiv:1706.05350.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        >>> scale_invariant_parameters(model, torch.randn(16, 8))
        {'0.weight': 'channel'}
    """
    if not model.training:
        raise ValueError("model must be in training mode, because batch statistics make weights scale-invariant")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), got {tolerance!r}")
    measure = _Measurement(model, example, seed)
    found: dict[str, Invariance] = {}
    for name, parameter in model.named_parameters():
        kind = _invariance(measure, name, parameter.detach(), tolerance)
        if kind is not None:
            found[name] = kind
    return found


class _Measurement:
    """Outputs of a model with one parameter replaced."""

    def __init__(self, model: nn.Module, example: Any, seed: int) -> None:
        self.model, self.example, self.seed = model, example, seed
        self.devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self.generator = torch.Generator().manual_seed(seed)
        self.base = self._outputs({})
        if not len(self.base) or not all(torch.isfinite(out).all() for out in self.base):
            raise ValueError("the output of model(example) must hold finite floating-point tensors")
        self.size = _norm(self.base)
        self.noise = 100 * max(torch.finfo(out.dtype).eps for out in self.base)

    def change(self, name: str, value: Tensor) -> float:
        """Return how much the outputs change, relative to their size, when a parameter takes another value."""
        out = self._outputs({name: value})
        return _norm([a - b for a, b in zip(out, self.base, strict=True)]) / max(self.size, 1e-300)

    def random_like(self, weight: Tensor) -> Tensor:
        """Return a random tensor of the norm of ``weight``."""
        x = torch.randn(weight.shape, generator=self.generator).to(weight)
        return x * (weight.norm() / x.norm())

    @torch.no_grad()
    def _outputs(self, replaced: Mapping[str, Tensor]) -> list[Tensor]:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.random.fork_rng(list(self.devices)), _as_given(self.example) as (args, kwargs):
            torch.manual_seed(self.seed)
            out = functional_call(self.model, {**buffers, **replaced}, args, kwargs, tie_weights=True)
        return [x.detach().clone() for x in _tensors(out) if x.is_floating_point()]


def _invariance(measure: _Measurement, name: str, weight: Tensor, tolerance: float) -> Invariance | None:
    if not weight.is_floating_point() or weight.numel() == 0 or not weight.any():
        return None
    usual = {c: measure.change(name, weight + abs(c - 1) * measure.random_like(weight)) for c in _FACTORS}
    if min(usual.values()) <= measure.noise:
        return None

    def invariant(scaled: Callable[[float], Tensor]) -> bool:
        return all(measure.change(name, scaled(c)) <= tolerance * usual[c] for c in _FACTORS)

    if not invariant(lambda c: c * weight):
        return None
    if weight.ndim < 2:
        return "layer"
    odd = (torch.arange(weight.shape[0], device=weight.device) % 2).view(-1, *[1] * (weight.ndim - 1)).bool()
    each = invariant(lambda c: torch.where(odd, c * weight, weight))
    return "channel" if each and weight.shape[0] > 1 else "layer"


@contextmanager
def _as_given(example: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    if isinstance(example, Mapping):
        yield (), dict(example)
    elif isinstance(example, tuple):
        yield example, {}
    else:
        yield (example,), {}


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Mapping):
        return [t for value in out.values() for t in _tensors(value)]
    if isinstance(out, Sequence) and not isinstance(out, str):
        return [t for value in out for t in _tensors(value)]
    return []


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum().cpu() for t in tensors]).sum().sqrt())
