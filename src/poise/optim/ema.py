"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SHORTEST = 20
"""Updates that the memory of an average must at least span to smooth a transient of tens of updates."""


class EMA:
    r"""A second copy of a model whose weights follow the first slowly.

    .. math:: \bar\theta \leftarrow d \bar\theta + (1 - d) \theta

    Floating buffers are averaged like weights, so that running statistics of BatchNorm belong to the averaged network
    as nearly as an average can (``torch.optim.swa_utils.update_bn`` makes them exact); integer buffers are copied.
    With ``every=k`` an update is made at each k-th call, with :math:`d^k`: the same horizon at a k-th of the cost.

    A model that keeps learning can be served by its average: evaluate :attr:`module`, train the model. A step of the
    trained weights reaches the average to 63 % after :math:`1 / (1 - d)` updates, so that the average hides transients
    that are shorter and lags behind in tasks that are not much longer; see :meth:`check_horizon`.

    Args:
        model: the model that is trained. Its copy, ``ema.module``, starts with the same weights, in evaluation mode.
        decay: :math:`d` per call of :meth:`update`, in [0, 1].
        every: calls of :meth:`update` between two updates.
        warmup: use :math:`\min(d, (1 + t) / (10 + t))` at update :math:`t`, so that random initial weights are
            forgotten sooner.
        skip_nonfinite: leave an update out if a weight of the model is NaN or infinite, which would never leave the
            average again. The check reads all weights once more.

    Attributes:
        module: the averaged model, for evaluation: dropout and batch statistics are off, as after ``eval()``; its
            parameters require no gradient.
        skipped: updates that were left out.

    Raises:
        ValueError: if ``decay`` is outside [0, 1] or ``every`` is below 1.

    References:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992;
        D'Angelo et al., NeurIPS 2024, arXiv:2310.04415; Soutif-Cormerais et al., "Improving online continual learning
        performance and stability with temporal ensembles", CoLLAs 2023, arXiv:2306.16817.

    Example:
        >>> ema = EMA(model, decay=0.999)
        >>> for x, y in loader:
        ...     loss_fn(model(x), y).backward()
        ...     optimizer.step()
        ...     ema.update()
        >>> evaluate(ema.module)
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        every: int = 1,
        *,
        warmup: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.decay, self.every, self.steps, self.skipped = decay, every, 0, 0
        self.warmup, self.skip_nonfinite = warmup, skip_nonfinite
        self._model, self._is_swapped = model, False
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self._wide = self._widen()

    @torch.no_grad()
    def update(self) -> None:
        """Count a training step, and move the average when it is time; call it after ``optimizer.step()``.

        Raises:
            RuntimeError: if a tensor of the model has another shape than before (call :meth:`sync_structure`), or the
                averaged weights are in the model at present.

        Warns:
            UserWarning: at the first update that is left out.
        """
        if self._is_swapped:
            raise RuntimeError("update must not be called within applied(): the model holds the averaged weights")
        self.steps += 1
        if self.steps % self.every:
            return
        fraction = 1 - self._decay_now() ** self.every
        ours, theirs = _tensors(self.module), _tensors(self._model)
        self._require_structure(ours, theirs)
        if self.skip_nonfinite and not all(bool(t.isfinite().all()) for t in theirs if t.is_floating_point()):
            self._skip()
            return
        groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
        for index, (average, current) in enumerate(zip(ours, theirs, strict=True)):
            if average.is_floating_point():
                wide = self._wide.get(index, average)
                averages, currents = groups.setdefault((wide.dtype, wide.device), ([], []))
                averages.append(wide)
                currents.append(current.to(wide.dtype))
            else:
                average.copy_(current)
        for averages, currents in groups.values():
            torch._foreach_lerp_(averages, currents, fraction)
        for index, wide in self._wide.items():
            ours[index].copy_(wide)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Put the averaged weights into the model itself for a while, for code that evaluates only that.

        Raises:
            RuntimeError: if they are there already.
        """
        if self._is_swapped:
            raise RuntimeError("applied() must not be entered twice: the model holds the averaged weights")
        self._swap()
        self._is_swapped = True
        try:
            yield self._model
        finally:
            self._swap()
            self._is_swapped = False

    @torch.no_grad()
    def sync_structure(self) -> None:
        """Follow a model whose tensors have grown, such as a head with new rows.

        What the average holds stays; what is new is copied from the model.

        Raises:
            RuntimeError: if the model has other tensors, or one has fewer entries in some dimension than its average.
        """
        kept = dict(_named_tensors(self.module))
        wide = {name: self._wide[i] for i, name in enumerate(kept) if i in self._wide}
        module = copy.deepcopy(self._model).requires_grad_(False).eval()
        if kept.keys() != dict(_named_tensors(module)).keys():
            names = sorted(kept.keys() ^ dict(_named_tensors(module)).keys())
            raise RuntimeError(f"the model must have the tensors that the average has, only one has {names[:5]}")
        for name, tensor in _named_tensors(module):
            old = kept[name]
            if any(a > b for a, b in zip(old.shape, tensor.shape, strict=True)):
                raise RuntimeError(f"{name} must not shrink, got {tuple(tensor.shape)} after {tuple(old.shape)}")
            tensor[tuple(slice(n) for n in old.shape)] = old
        self.module, self._wide = module, self._widen()
        for index, (name, _) in enumerate(_named_tensors(module)):
            if name in wide:
                self._wide[index][tuple(slice(n) for n in wide[name].shape)] = wide[name]

    def check_horizon(self, updates_per_task: int) -> None:
        """Warn if the average's memory does not fit the length of a task.

        Args:
            updates_per_task: updates on one task, or between two changes of the data.

        Warns:
            UserWarning: if :math:`1 / (1 - d)` is above a third of it (the average lags behind on new data), or below
                20 (it smooths nothing).
        """
        horizon = float("inf") if self.decay == 1 else 1 / (1 - self.decay)
        if horizon > updates_per_task / 3:
            warnings.warn(
                f"the average remembers {horizon:.0f} updates and a task has {updates_per_task}: it will lag behind on "
                f"new data; a decay of at most {max(0.0, 1 - 3 / updates_per_task):.4g} fits",
                UserWarning,
                stacklevel=2,
            )
        elif horizon < _SHORTEST * (1 - 1e-9):
            warnings.warn(
                f"the average remembers {horizon:.0f} updates only: drops of tens of updates will show; a decay of at "
                f"least {1 - 1 / _SHORTEST:.4g} hides them",
                UserWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        wide = {index: tensor.clone() for index, tensor in self._wide.items()}
        return {"module": self.module.state_dict(), "steps": self.steps, "wide": wide, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.module.load_state_dict(state["module"])
        self.steps, self.skipped = state["steps"], state.get("skipped", 0)
        self._wide = {index: tensor.clone() for index, tensor in state["wide"].items()}

    def _decay_now(self) -> float:
        if not self.warmup:
            return self.decay
        updates = self.steps // self.every
        return min(self.decay, (1 + updates) / (10 + updates))

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warnings.warn(
                f"the model has NaN or infinite weights at step {self.steps}: the average leaves such updates out",
                UserWarning,
                stacklevel=3,
            )

    def _require_structure(self, ours: list[Tensor], theirs: list[Tensor]) -> None:
        if len(ours) == len(theirs) and all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True)):
            return
        mine, current = dict(_named_tensors(self.module)), dict(_named_tensors(self._model))
        odd = [n for n in {**mine, **current} if n not in mine or n not in current or mine[n].shape != current[n].shape]
        raise RuntimeError(f"{odd[0]} of the model does not have the shape of its average: call sync_structure()")

    @torch.no_grad()
    def _swap(self) -> None:
        for a, b in zip(_tensors(self.module), _tensors(self._model), strict=True):
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)

    def _widen(self) -> dict[int, Tensor]:
        """Float32 copies of the half-precision tensors, by their position."""
        narrow = {torch.float16, torch.bfloat16}
        return {i: t.detach().float() for i, t in enumerate(_tensors(self.module)) if t.dtype in narrow}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
