"""What is differentiated: the mean loss of a model on a batch, of any batch type."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.loss.batches import count_examples
from poise.curvature.loss.criterion import Criterion, as_criterion


class Objective(ABC):
    """The mean loss of a model on a batch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Float[Tensor, ""]:
        """Return the mean loss of the batch."""

    @abstractmethod
    def n_examples(self, batch: Any) -> int:
        """Return the number of examples of the batch."""

    @abstractmethod
    def weight(self, batch: Any) -> float:
        """Return what the batch's mean counts in a mean over batches."""


class LossFunction(Objective):
    """Any function of a model and a batch that returns a mean loss.

    Args:
        loss_fn: ``loss_fn(model, batch)`` returns the mean over the batch's examples.
        n_examples: number of examples of a batch; by default the first dimension of its first tensor.
    """

    def __init__(
        self, loss_fn: Callable[[nn.Module, Any], Tensor], n_examples: Callable[[Any], int] = count_examples
    ) -> None:
        self.loss_fn = loss_fn
        self._n_examples = n_examples

    def loss(self, model: nn.Module, batch: Any) -> Float[Tensor, ""]:
        """Return the mean loss of the batch."""
        return self.loss_fn(model, batch)

    def n_examples(self, batch: Any) -> int:
        """Return the number of examples of the batch."""
        return self._n_examples(batch)

    def weight(self, batch: Any) -> float:
        """Return the number of examples."""
        return float(self._n_examples(batch))


class Supervised(Objective):
    """A criterion of a model's outputs and of targets.

    Args:
        criterion: ``criterion(outputs, targets)`` returns a mean: ``nn.CrossEntropyLoss()``, ``F.mse_loss``, or any
            other function. Those two have their curvature in the outputs in closed form.
        inputs: what the model is called with: a key of the batch, several keys (given by name), or a function of the
            batch that returns a tensor, a tuple (given in order) or a mapping (given by name). By default the first
            part of a pair, or all of a mapping but its targets.
        targets: a key, or a function of the batch. By default the second part of a pair, or ``"labels"`` of a mapping.
        outputs: a function of what the model returns. By default that itself, or its ``logits``.

    Example:
        >>> Supervised(nn.CrossEntropyLoss(), targets="label", outputs=lambda o: o.logits[:, -1])  # doctest: +SKIP
    """

    def __init__(
        self,
        criterion: Criterion | Callable[[Tensor, Any], Tensor],
        inputs: str | Sequence[str] | Callable[[Any], Any] | None = None,
        targets: str | Callable[[Any], Any] | None = None,
        outputs: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.criterion = as_criterion(criterion)
        self._inputs = inputs
        self._targets = targets
        self._outputs = outputs or _tensor_of

    @property
    def curvature(self) -> str:
        """``"mse"`` or ``"ce"`` where the Hessian in the outputs has a closed form, else ``"other"``."""
        return self.criterion.curvature

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the model's outputs."""
        inputs = self._inputs_of(batch)
        if isinstance(inputs, Mapping):
            return self._outputs(model(**inputs))
        if isinstance(inputs, tuple):
            return self._outputs(model(*inputs))
        return self._outputs(model(inputs))

    def targets(self, batch: Any) -> Any:
        """Return the targets.

        Raises:
            KeyError: if the batch has none by the name in use.
            TypeError: if the batch is neither a pair nor a mapping and ``targets`` was not given.
        """
        if callable(self._targets):
            return self._targets(batch)
        if isinstance(batch, Mapping):
            return _value(batch, self._targets or "labels", "targets")
        if isinstance(batch, tuple | list) and len(batch) == 2 and self._targets is None:
            return batch[1]
        raise TypeError(
            f"a batch must be a pair (inputs, targets) or a mapping, got {_described(batch)}; "
            "for another kind give Supervised(criterion, inputs=..., targets=...) as loss_fn"
        )

    def loss(self, model: nn.Module, batch: Any) -> Float[Tensor, ""]:
        """Return the mean loss of the batch."""
        return self.loss_of_outputs(self.outputs(model, batch), batch)

    def loss_of_outputs(self, outputs: Tensor, batch: Any) -> Float[Tensor, ""]:
        """Return the mean loss of the batch, given the model's outputs."""
        return self.criterion.mean(outputs, self.targets(batch))

    def n_examples(self, batch: Any) -> int:
        """Return the number of examples of the batch: the first dimension of its inputs."""
        return count_examples(self._inputs_of(batch))

    def weight(self, batch: Any) -> float:
        """Return the number of terms of the criterion's mean (of examples, where it is not known)."""
        return self.criterion.n_terms(self.targets(batch), self.n_examples(batch))

    def _inputs_of(self, batch: Any) -> Any:
        chosen = self._inputs
        if callable(chosen):
            return chosen(batch)
        if isinstance(chosen, str):
            return _value(batch, chosen, "inputs")
        if chosen is not None:
            return {key: _value(batch, key, "inputs") for key in chosen}
        if isinstance(batch, Mapping):
            targets = self._targets or "labels"
            return {key: value for key, value in batch.items() if key != targets}
        if isinstance(batch, tuple | list):
            return batch[0]
        return batch


def as_objective(loss_fn: Any) -> Objective:
    """Return the objective that a ``loss_fn`` stands for.

    Args:
        loss_fn: an :class:`Objective`; a criterion (a module such as ``nn.CrossEntropyLoss()``, or a function of
            ``torch.nn.functional``) for batches of inputs and targets; or any ``loss_fn(model, batch)`` that returns a
            mean.

    Raises:
        TypeError: if it is none of these.
        ValueError: if the criterion does not average.
    """
    if isinstance(loss_fn, Objective):
        return loss_fn
    function = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
    if isinstance(loss_fn, Criterion | nn.Module) or getattr(function, "__module__", "") == "torch.nn.functional":
        return Supervised(loss_fn)
    if callable(loss_fn):
        return LossFunction(loss_fn)
    raise TypeError(f"loss_fn must be a criterion, an Objective or a function, got {type(loss_fn).__name__}")


def as_supervised(loss_fn: Any, what: str) -> Supervised:
    """Return the objective of ``loss_fn`` if it separates outputs and targets.

    Raises:
        TypeError: if it does not; ``what`` names what needs it.
    """
    objective = as_objective(loss_fn)
    if not isinstance(objective, Supervised):
        raise TypeError(
            f"{what} needs the model's outputs and the loss apart; got a loss_fn of model and batch. "
            "Give a criterion such as nn.CrossEntropyLoss(), or Supervised(criterion, inputs=..., targets=...)"
        )
    return objective


def _tensor_of(returned: Any) -> Tensor:
    if isinstance(returned, Tensor):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model returned {_described(returned)}, which is no tensor and has no logits; "
        "choose the tensor: Supervised(criterion, outputs=lambda returned: ...)"
    )


def _value(batch: Any, key: str, argument: str) -> Any:
    try:
        return batch[key]
    except (KeyError, TypeError, IndexError):
        raise KeyError(f"{argument}: the batch, {_described(batch)}, has no {key!r}") from None


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with keys {list(batch)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {len(batch)}"
    return f"{type(batch).__name__}"
