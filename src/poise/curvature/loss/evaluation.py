"""A model's loss and outputs over batches, computed without leaving a trace in the model."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from poise.curvature.loss.autograd_graph import check_twice_differentiable
from poise.curvature.loss.batches import as_batches, to_device
from poise.curvature.loss.flat import FlatParameters
from poise.curvature.loss.objective import Objective, Supervised, as_objective
from poise.tools.random_states import RandomStates, preserved_random_states
from poise.tools.unwrap import unwrap

T = TypeVar("T")
_NO_DERIVATIVE = ("is not implemented", "not been implemented", "once_differentiable", "double backward")


class Evaluation:
    """The mean loss over batches at the parameters as they are now.

    The model's mode is left alone. Its buffers are replaced by copies while it runs, gradients are never accumulated,
    and random states are put back. The setting of ``torch.autocast`` is that at construction. A compiled or distributed
    model is run as the plain module inside.

    Args:
        model: the model.
        loss_fn: see :func:`poise.curvature.as_objective`.
        data: a batch or an iterable of batches, kept in memory.
        params: names of parameters or modules; by default all that require gradients.

    Attributes:
        flat: the parameters that vary.
        objective: the loss.
        n_examples: per batch.
        weights: fraction of each batch in the mean.

    Raises:
        ValueError: if there is no batch or a batch has no example, and as :class:`FlatParameters` does.
    """

    def __init__(self, model: nn.Module, loss_fn: Any, data: Any, params: Sequence[str] | None) -> None:
        self.model = unwrap(model)
        self.objective: Objective = as_objective(loss_fn)
        self.flat = FlatParameters(self.model, params)
        self._bound = _Bound(self.model)
        self._buffers = {f"model.{name}": b for name, b in self.model.named_buffers()}
        self._autocast = _Autocast(self.flat.device.type)
        self._plain_attention = False
        self._twice_differentiable = False
        self._draws = True
        self._take(data)

    def with_data(self, data: Any) -> Evaluation:
        """Return the same at the parameters as they are now, on other data.

        Args:
            data: a batch or an iterable of batches.
        """
        other = copy.copy(self)
        other._take(data)
        return other

    @functools.cached_property
    def _weights(self) -> list[float]:
        return [self.objective.weight(batch) for batch in self._batches]

    @property
    def total_weight(self) -> float:
        """The number of terms that the mean over all data averages."""
        return math.fsum(self._weights)

    @property
    def weights(self) -> list[float]:
        """The fraction of each batch in the mean."""
        return [1.0] if len(self._batches) == 1 else [w / self.total_weight for w in self._weights]

    @property
    def supervised(self) -> Supervised:
        """The objective, of which outputs are known."""
        return cast(Supervised, self.objective)

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, i: int) -> Any:
        """Return a batch, on the parameters' device."""
        return to_device(self._batches[i], self.flat.device)

    def loss(self, i: int, parameters: Sequence[Tensor] | None = None) -> Float[Tensor, ""]:
        """Return the loss of batch ``i`` times its fraction.

        Args:
            i: the batch.
            parameters: values in the place of the model's own.
        """
        batch = self.batch(i)
        return self.run(lambda model: self.objective.loss(model, batch), parameters) * self.weights[i]

    def checked_loss(self, i: int) -> Float[Tensor, ""]:
        """Return the loss of batch ``i`` times its fraction.

        Raises:
            TypeError: if the loss is no tensor.
            ValueError: if it is not a scalar, not finite or depends on no parameter.
        """
        batch = self.batch(i)
        loss = self.run(lambda model: self.objective.loss(model, batch))
        _check_loss(loss, i)
        return loss * self.weights[i]

    def output_and_gradient(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the tensor at which the backward pass of a batch's loss starts, and the gradient there.

        Where the criterion's curvature in the outputs has a closed form, these are the outputs, and a gradient whose
        first derivative in them is that closed form (further ones are wrong): cheaper than to differentiate the
        criterion twice. Otherwise the tensor is the loss.

        Args:
            i: the batch.

        Raises:
            TypeError: if the loss is no tensor.
            ValueError: if it is not a scalar, not finite or depends on no parameter.
        """
        batch, fraction = self.batch(i), self.weights[i]
        objective = self.objective
        if type(objective) is not Supervised or objective.curvature == "other":
            loss = self.run(lambda model: objective.loss(model, batch))
            _check_loss(loss, i)
            return loss, torch.full_like(loss, fraction)
        outputs = self.outputs_of(batch)
        with torch.autocast(self.flat.device.type, enabled=False):
            loss = objective.loss_of_outputs(outputs, batch)
            _check_loss(loss, i)
            (slope,) = torch.autograd.grad(loss, outputs)
            curvature = objective.criterion.hessian(outputs, objective.targets(batch))
            return outputs, fraction * (slope + curvature(outputs - outputs.detach()))

    def run(self, function: Callable[[nn.Module], T], parameters: Sequence[Tensor] | None = None) -> T:
        """Return ``function(model)`` with gradients on, the model's state kept apart.

        Args:
            function: uses the model.
            parameters: values in the place of the model's own.
        """
        state = {name: b.clone() for name, b in self._buffers.items()}
        if parameters is not None:
            state.update((f"model.{name}", p) for name, p in zip(self.flat.names, parameters, strict=True))
        with self._surroundings():
            if not state:
                return function(self.model)
            return torch.func.functional_call(self._bound, state, (function,))

    def outputs(self, i: int) -> Tensor:
        """Return the model's outputs on batch ``i``.

        Raises:
            ValueError: if they are not finite or depend on no parameter.
        """
        outputs = self.outputs_of(self.batch(i))
        _check_finite(outputs, "outputs", i)
        return outputs

    def outputs_of(self, batch: Any, parameters: Sequence[Tensor] | None = None) -> Tensor:
        """Return the model's outputs on any batch, in the parameters' precision.

        Args:
            batch: for the model.
            parameters: values in the place of the model's own.
        """
        return self.run(lambda model: self.supervised.outputs(model, batch), parameters).to(self.flat.dtype)

    def examine(self, function: Callable[[int], Tensor]) -> int:
        """Return about how many bytes the graph of ``function(i)`` holds for all batches, judged by the first.

        The first batch is evaluated twice for it, and a difference between the two reported.

        Args:
            function: of the index of a batch.

        Raises:
            ValueError: if the function is random.
        """
        states = RandomStates(self.flat.device)
        with torch.inference_mode(False), torch.enable_grad():
            try:
                first = function(0).detach()
                with _SavedBytes(self.flat.tensors) as saved:
                    second = function(0).detach()
            finally:
                self._draws = RandomStates(self.flat.device) != states
                if self._draws:
                    states.restore()
        difference = float((first - second).abs().max() / first.abs().max().clamp(min=torch.finfo(first.dtype).tiny))
        if difference > 100 * torch.finfo(first.dtype).eps:
            raise ValueError(
                f"two evaluations of one batch differ (by {difference:.1e}, relatively); curvature needs a loss "
                "without chance. Call model.eval(), or set the model's dropout to 0 where batch statistics are wanted"
            )
        return int(saved.total * sum(self.n_examples) / self.n_examples[0])

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Compute with gradients on, whatever the surroundings, and put random states back at the end."""
        with torch.inference_mode(False), torch.enable_grad(), self.random_states():
            yield

    def random_states(self) -> AbstractContextManager[None]:
        """Put random states back at the end, if an evaluation moves them."""
        return preserved_random_states(self.flat.device) if self._draws else nullcontext()

    def check_twice_differentiable(self, gradient: Sequence[Tensor]) -> None:
        """See, the first time, that a gradient can be differentiated once more.

        Raises:
            RuntimeError: if it cannot.
        """
        if not self._twice_differentiable:
            check_twice_differentiable(gradient)
            self._twice_differentiable = True

    def check_unchanged(self) -> None:
        """See that the parameters are those of the construction.

        Raises:
            RuntimeError: if not.
        """
        if self._current_versions() != self._versions:
            raise RuntimeError("the parameters changed since the operator was built; build it again after each step")

    def use_plain_attention(self, error: RuntimeError) -> None:
        """Turn to attention of elementary operations, if a fused kernel is what cannot be differentiated.

        Raises:
            RuntimeError: the given error if that is no cure, with advice where there is some.
        """
        if "scaled_dot_product" in str(error) and not self._plain_attention:
            warnings.warn(
                "the fused attention kernel has no second derivative; measuring with SDPBackend.MATH instead",
                stacklevel=5,
            )
            self._plain_attention = True
        elif any(sign in str(error) for sign in _NO_DERIVATIVE):
            raise RuntimeError(
                f"an operation in the model or the loss has no derivative that is needed here ({error}). The Hessian "
                "needs forward derivatives in no mode but 'linearize' and 'forward_over_reverse', and no second "
                "derivative in mode 'finite_difference'"
            ) from error
        else:
            raise error

    def _take(self, data: Any) -> None:
        self._batches = as_batches(data)
        self.n_examples = [self.objective.n_examples(batch) for batch in self._batches]
        if 0 in self.n_examples:
            raise ValueError(f"every batch needs an example; batch {self.n_examples.index(0)} is empty")
        self.__dict__.pop("_weights", None)
        self._versions = self._current_versions()

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        attention = sdpa_kernel(SDPBackend.MATH) if self._plain_attention else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), self._autocast(), attention:
            yield

    def _current_versions(self) -> list[tuple[int, int]]:
        return [(p._version, p.data_ptr()) for p in self.flat.tensors]


class PlainAttentionFallback(Generic[T]):
    """Something built from an evaluation, built again with plain attention where a fused kernel stops it.

    Args:
        build: builds it.
        evaluation: what it is built from.
    """

    def __init__(self, build: Callable[[], T], evaluation: Evaluation) -> None:
        self._build = build
        self._evaluation = evaluation
        with evaluation.measuring():
            try:
                self._built = build()
            except RuntimeError as error:
                evaluation.use_plain_attention(error)
                self._built = build()

    def use(self, action: Callable[[T], Tensor]) -> Tensor:
        """Return ``action`` of what was built.

        Raises:
            RuntimeError: if the parameters changed since, or an operation lacks a derivative that is needed.
        """
        self._evaluation.check_unchanged()
        # What measuring() does, without its generator: this runs once a product.
        with torch.inference_mode(False), torch.enable_grad(), self._evaluation.random_states():
            try:
                return action(self._built)
            except RuntimeError as error:
                self._evaluation.use_plain_attention(error)
                self._built = self._build()
                return action(self._built)


class _Bound(nn.Module):
    """Lets ``functional_call`` reach a model that any function uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        return function(self.model)


class _Autocast:
    """The autocast setting at construction."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._enabled = torch.is_autocast_enabled(device)
        self._dtype = torch.get_autocast_dtype(device)

    def __call__(self) -> torch.autocast:
        # Without the cache: it may hold casts made where no gradient was wanted.
        return torch.autocast(self._device, self._dtype, self._enabled, cache_enabled=False)


class _SavedBytes:
    """Counts what autograd saves, each storage once, the parameters not at all."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in parameters}
        self.total = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor

    def __enter__(self) -> _SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def _check_loss(loss: Any, i: int) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__} for batch {i}")
    if loss.ndim:
        raise ValueError(f"loss_fn must return a scalar, got shape {tuple(loss.shape)} for batch {i}; average it")
    _check_finite(loss, "loss", i)


def _check_finite(value: Tensor, what: str, i: int) -> None:
    # A sum is finite only if all of its terms are (save overflow, which is no better), and costs one pass.
    if not math.isfinite(value.detach().sum()):
        got = f"is {value.item()}" if value.ndim == 0 else "have NaN or infinite entries"
        raise ValueError(f"the {what} of batch {i} {got}; curvature needs finite values")
    if not value.requires_grad:
        raise ValueError(f"the {what} of batch {i} depends on none of the parameters; it may have been detached")
