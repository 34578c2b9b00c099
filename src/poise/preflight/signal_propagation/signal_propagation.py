"""One forward and one backward pass of a model before its first step, with all signals and gradients measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from poise.curvature.loss.batches import map_tensors, tensors_of
from poise.curvature.loss.objective import Objective
from poise.doctor.probes.activations import ActivationProbe
from poise.doctor.probes.attention import AttentionProbe
from poise.doctor.tap.discovery import is_compiled
from poise.doctor.tap.forward_observer import ForwardObservation, Logits
from poise.doctor.tap.shadow import undisturbed
from poise.nn.dropout_off import dropout_off
from poise.nn.surgery import kinds, matches
from poise.preflight.signal_propagation.cancelled_factor import CancelledFactor, is_cancelled
from poise.preflight.signal_propagation.jacobian_gain import Point, jacobian_gain
from poise.preflight.signal_propagation.norm_amplification import NormInput, is_norm_over_features, norm_input
from poise.preflight.signal_propagation.residual_stream import ResidualSum, is_embedding, residual_sum, rms
from poise.preflight.signal_propagation.scalar_products import FUNCTIONS, ScalarProducts

_CALLS = 4000  # of modules that are recorded: a recurrent cell written in Python is called at every time step
_ROWS = 64  # of which the mean cosine is taken


@dataclass(slots=True)
class Unit:
    """What one call of a block (or of a layer with weights) puts out.

    Attributes:
        name: of the module, with the number of the call from the second on.
        dtype: of the output.
        q: mean square of the output's entries.
        absmax: largest magnitude among them; infinite or NaN if one is.
        cosine: mean cosine between the vectors of different inputs (positions, of a sequence); ``None`` for one.
        grad_norm: norm of the loss's gradient in the output; ``None`` where no gradient arrives.
        grad_rms: root mean square of that gradient's entries.
        gain: of the Jacobian, of the output in the block's input (for layers, in the output of the one before);
            ``None`` where there is none.
    """

    name: str
    dtype: torch.dtype
    q: float
    absmax: float
    cosine: float | None
    grad_norm: float | None = None
    grad_rms: float | None = None
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionLogits:
    """Attention logits of one sample in one module.

    Attributes:
        name: of the module.
        largest: largest magnitude of a logit that is not masked.
        entropy: of the lowest head, as a fraction of that of uniform attention.
    """

    name: str
    largest: float
    entropy: float


@dataclass(frozen=True, slots=True)
class RectifiedUnits:
    """Units of a ReLU that are zero over the whole batch.

    Attributes:
        name: of the module.
        dead: their fraction.
        rows: how many values of each unit were seen.
    """

    name: str
    dead: float
    rows: int


@dataclass(slots=True)
class SignalPropagation:
    """Everything that was measured in the two passes, in the order of the forward pass.

    Attributes:
        loss: of the batch.
        units: the blocks (or layers).
        are_blocks: whether they are blocks, not single layers.
        residuals: sums of a shortcut and a branch.
        embeddings: standard deviation of what each embedding puts out.
        norms: the input of each normalisation over features.
        attention: logits.
        rectified: dead units.
        factors: in front of normalisations that divide them out.
        vectors: standard deviation of learned vectors that belong to no layer: class and register tokens, positions.
        output_rms: root mean square of the last output of each layer with weights.
        events: what was called, as (kind, name): ``"weight"``, ``"relu"``, ``"norm"``, ``"attention"``, ``"sum"``,
            ``"unit"`` (its end).
        parameter_grads: root mean square of each trainable parameter's gradient; ``None`` where none arrives.
    """

    loss: float = math.nan
    units: list[Unit] = field(default_factory=list)
    are_blocks: bool = False
    residuals: list[ResidualSum] = field(default_factory=list)
    embeddings: dict[str, float] = field(default_factory=dict)
    norms: list[NormInput] = field(default_factory=list)
    attention: list[AttentionLogits] = field(default_factory=list)
    rectified: list[RectifiedUnits] = field(default_factory=list)
    factors: list[CancelledFactor] = field(default_factory=list)
    vectors: dict[str, float] = field(default_factory=dict)
    output_rms: dict[str, float] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    parameter_grads: dict[str, float | None] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether loss, outputs and gradients are."""
        values = [self.loss, *(unit.absmax for unit in self.units), *(unit.grad_norm or 0.0 for unit in self.units)]
        return all(map(math.isfinite, values))


def signal_propagation(
    model: nn.Module, objective: Objective, batch: Any, units: dict[nn.Module, str], are_blocks: bool, seed: int = 0
) -> SignalPropagation:
    """Run a model forward and backward on a batch and return its signals and gradients; the model does not change.

    Dropout is off, batch norms that train use the statistics of the batch. Frozen parameters take part, so that
    gradients are measured in the whole depth.

    Args:
        model: plain, not compiled or distributed.
        objective: the loss.
        batch: on the model's device.
        units: the modules whose outputs count as depth, with their names.
        are_blocks: whether they are blocks, not single layers.
        seed: of the random vectors that measure Jacobians.

    Raises:
        TypeError: if the loss is no tensor.
        ValueError: if it is not a scalar, or depends on no parameter.
    """
    found = SignalPropagation(are_blocks=are_blocks, vectors=_learned_vectors(model))
    watch = _Watch(model, units, found, objective.n_examples(batch))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(undisturbed([model]))
        stack.enter_context(dropout_off(model))
        stack.enter_context(_without_recurrent_dropout(model))
        stack.enter_context(_all_differentiable(model))
        if is_compiled(model):  # parts may be, though the whole is plain; compiled code would be built around the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        with watch.observing():
            loss = objective.loss(model, batch)
        _check_loss(loss)
        found.loss = float(loss.detach())
        watch.measure_gains(seed)
        grads = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    found.parameter_grads = {
        name: None if grad is None else rms(grad) for name, grad in zip(trainable, grads, strict=True)
    }
    return found


def depth_units(model: nn.Module, blocks: tuple[str, ...] | None) -> tuple[dict[nn.Module, str], bool]:
    """Return the modules whose outputs count as depth, with their names, and whether they are blocks.

    Blocks are siblings of one class that have parts of their own; without them, layers with weights.

    Args:
        model: the model.
        blocks: names of modules, or patterns of them; found if ``None``.

    Raises:
        ValueError: if no module matches.
    """
    if blocks is not None:
        chosen = {m: name for name, m in model.named_modules() if name and matches(name, blocks)}
        if not chosen:
            raise ValueError(f"blocks must name modules of the model, none matches {blocks}; it has {kinds(model)}")
        return chosen, True
    found = _blocks_below(model, "")
    if len(found) >= 2:
        return found, True
    return {m: name for name, m in model.named_modules() if is_weight_layer(m)}, False


def is_weight_layer(module: nn.Module) -> bool:
    """Whether a module multiplies by weights of its own: it has a matrix or a kernel, no parts, and no table."""
    if is_embedding(module) or any(True for _ in module.children()):
        return False
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _blocks_below(module: nn.Module, prefix: str) -> dict[nn.Module, str]:
    children = [(f"{prefix}{name}", child) for name, child in module.named_children()]
    kinds: dict[type[nn.Module], int] = {}
    for _, child in children:
        kinds[type(child)] = kinds.get(type(child), 0) + 1
    out: dict[nn.Module, str] = {}
    for kind in kinds:
        siblings = [(name, child) for name, child in children if type(child) is kind]
        inner: dict[nn.Module, str] = {}
        for name, child in siblings:
            inner |= _blocks_below(child, f"{name}.")
        alike = len(siblings) >= 2 and all(_could_be_block(child) for _, child in siblings)
        # A few parts with many blocks each (an encoder and a decoder) are not the blocks themselves.
        out |= {child: name for name, child in siblings} if alike and _coarse(len(siblings), len(inner)) else inner
    return out


def _coarse(siblings: int, inner: int) -> bool:
    return siblings >= 3 or inner < 3 * siblings


def _could_be_block(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    has_parts = any(True for _ in module.children())
    return has_parts and not isinstance(module, containers) and any(True for _ in module.parameters())


class _Watch:
    """Observes one forward pass."""

    def __init__(self, model: nn.Module, units: dict[nn.Module, str], found: SignalPropagation, examples: int) -> None:
        self.model, self.units, self.found, self.examples = model, units, found, examples
        self.products = ScalarProducts()
        self.names = {module: name or type(module).__name__ for name, module in model.named_modules()}
        self.stack: list[nn.Module] = []
        self.starts: list[Point | None] = []  # where the modules on the stack began
        self.spans: list[tuple[Unit, Point, Point]] = []
        self.before: Point | None = None  # the end of the last unit
        self.calls: dict[str, int] = {}
        self.on = False
        self.busy = False
        self.failures: list[Exception] = []

    @contextmanager
    def observing(self) -> Iterator[None]:
        handle = self.model.register_forward_pre_hook(_differentiable_inputs, with_kwargs=True)
        observation = ForwardObservation(self, failed=self.failures.append)
        observation.start()
        self.on = True
        try:
            with _Functions(self):
                yield
        finally:
            self.on = False
            observation.stop()
            handle.remove()
        if self.failures:
            raise self.failures[0]

    @property
    def name(self) -> str:
        return self.names[self.stack[-1]] if self.stack else "loss"

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        self.busy = True
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                yield
        finally:
            self.busy = False

    def observes(self) -> bool:
        """Return whether what is computed now belongs to the forward pass of the model."""
        return self.on and not self.busy

    @property
    def _is_observing(self) -> bool:
        return self.observes() and len(self.found.events) < _CALLS

    # ---- modules -----------------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward of a module begins."""
        if module not in self.names:
            return
        self.stack.append(module)
        given = next(filter(None, map(Point.of, tensors_of((args, kwargs)))), None) if module in self.units else None
        self.starts.append(given)
        if self._is_observing and is_norm_over_features(module) and args and isinstance(args[0], Tensor):
            self.found.events.append(("norm", self.names[module]))
            with self._measuring():
                self.found.norms.append(norm_input(self.names[module], module, args[0], self.examples))

        if self._is_observing and not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
            self._factor_before(module, args[0])

    def _factor_before(self, module: nn.Module, x: Tensor) -> None:
        """Write down a factor on a module's input that its output does not show."""
        product, name = self.products.of(x), self.names[module]
        has_parts = any(True for _ in module.children())
        if product is None or has_parts or any(factor.name == name for factor in self.found.factors):
            return
        with self._measuring():
            # Not the module itself: its hooks have seen this call already.
            if is_cancelled(lambda y: _first_tensor(module.forward(y)), x.detach(), product.factor):
                self.found.factors.append(CancelledFactor(name, product.factor))

    def exit(self, module: nn.Module) -> None:
        """A module's call is over."""
        if self.stack and self.stack[-1] is module:
            self.stack.pop()
            self.starts.pop()

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward of a module has returned."""
        if not self._is_observing or module not in self.names:
            return
        start = self.starts[-1]
        tensor = _first_tensor(output)
        if tensor is None:
            return
        name = self.names[module]
        if is_embedding(module):
            with self._measuring():
                self.found.embeddings.setdefault(name, float(tensor.double().std()) if tensor.numel() > 1 else 0.0)
        if is_weight_layer(module):
            self.found.events.append(("weight", name))
            with self._measuring():
                self.found.output_rms[name] = rms(tensor)
        if module in self.units:
            self.found.events.append(("unit", name))
            self._unit(name, tensor, start)

    def _unit(self, name: str, output: Tensor, start: Point | None) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        label = name if self.calls[name] == 1 else f"{name} (call {self.calls[name]})"
        with self._measuring():
            unit = Unit(label, output.dtype, rms(output) ** 2, float(output.abs().max()), mean_cosine(output))
        self.found.units.append(unit)
        if not output.requires_grad:
            return

        def keep(grad: Tensor) -> None:
            unit.grad_norm = rms(grad) * math.sqrt(grad.numel())
            unit.grad_rms = rms(grad)

        output.register_hook(keep)
        end = Point.of(output)
        begin = start if self.found.are_blocks or self.before is None else self.before
        if begin is not None and end is not None:
            self.spans.append((unit, begin, end))
        self.before = end

    def measure_gains(self, seed: int) -> None:
        """Take products with the Jacobians of the units, before the loss's own gradient."""
        if not self.found.finite:
            return
        for unit, start, end in self.spans:
            unit.gain = jacobian_gain(start, end, seed)
        for unit in self.found.units:  # the products called their hooks too
            unit.grad_norm = unit.grad_rms = None

    # ---- functions ---------------------------------------------------------------------------------------------------

    def attention(self, logits: Logits) -> None:
        """Attention is computed."""
        if not self._is_observing or not self.stack:
            return
        with self._measuring():
            seen = _Observations()
            AttentionProbe().attention(cast(Any, seen), None, *logits())
            largest, entropy = seen.values["attention_logit_max"], seen.values["attention_entropy"]
            self.found.attention.append(AttentionLogits(self.name, largest, entropy))
        self.found.events.append(("attention", self.name))

    def rectified(self, output: Tensor) -> None:
        """A ReLU was computed: :class:`_Functions` also reaches those to which a model kept a reference."""

    def over_dimension(self, function: str, given: Tensor, dim: int) -> None:
        """What runs over the batch is looked for in training."""

    def relu(self, output: Tensor) -> None:
        """A ReLU was computed."""
        if self._is_observing:
            self.found.events.append(("relu", self.name))
            self._rectified(output)

    def _rectified(self, output: Tensor) -> None:
        with self._measuring():
            seen = _Observations()
            ActivationProbe().rectified(cast(Any, seen), None, output, "")
            if "dead_units" in seen.values:
                rows = output.numel() // output.shape[1 if output.dim() >= 4 else -1]
                self.found.rectified.append(RectifiedUnits(self.name, seen.values["dead_units"], rows))

    def add(self, a: Any, b: Any, factor: Any = 1) -> None:
        """A sum is about to be taken (then an operand may be overwritten)."""
        if not self._is_observing or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return
        with self._measuring():
            found = residual_sum(self.name, a, b, float(factor), self.products)
        if found is not None:
            self.found.events.append(("sum", self.name))
            self.found.residuals.append(found)


class _Functions(TorchFunctionMode):
    """Observes every sum and every ReLU, also by functions to which a model kept a reference."""

    _SUM = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
    _RELU = (torch.relu, torch.relu_, F.relu, Tensor.relu, Tensor.relu_)

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        product = None
        if func in FUNCTIONS and self._watch.observes():
            product = self._watch.products.read(func, args)
        if func in self._SUM and len(args) == 2:
            self._watch.add(args[0], args[1], kwargs.get("alpha", 1))
        output = func(*args, **kwargs)
        if product is not None:
            self._watch.products.keep(product, output)
        if func in self._RELU:
            self._watch.relu(output)
        return output


class _Observations:
    """Replaces the doctor's sink for a probe that measures a single thing."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def observe(self, signal: str, value: float | Tensor, module: nn.Module | None = None, site: str = "") -> None:
        self.values[signal] = float(value)


def mean_cosine(output: Tensor) -> float | None:
    """Return the mean cosine between vectors of different inputs; ``None`` if there is one, or a vector is zero.

    Args:
        output: images keep one vector per example, everything else has its vectors along the last dimension.
    """
    rows = output.flatten(1) if output.dim() >= 4 else output.reshape(-1, output.shape[-1]) if output.dim() else None
    if rows is None or len(rows) < 2:
        return None
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS)).long().unique()].double()
    # Scaled first: the squares of what has grown by 1e200 overflow.
    rows = rows / rows.abs().amax(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    n = len(rows)
    mean = (rows.sum(0).square().sum() - n) / (n * (n - 1))
    return float(mean) if mean.isfinite() else None


def _learned_vectors(model: nn.Module) -> dict[str, float]:
    """Return the standard deviation of each parameter that belongs to no layer, norm or table."""
    return {
        name: float(p.detach().double().std())
        for name, p in model.named_parameters()
        if p.ndim >= 1 and p.numel() > 1 and p.is_floating_point() and _is_free(model, name)
    }


def _is_free(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return "weight" not in owner._parameters and not isinstance(owner, nn.RNNBase | nn.MultiheadAttention)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    elif isinstance(getattr(output, "last_hidden_state", None), Tensor):
        output = output.last_hidden_state
    plain = isinstance(output, Tensor) and not output.is_nested and output.is_floating_point() and output.numel() > 0
    return output if plain else None


def _differentiable_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Let gradients reach the model's own inputs: a shortcut may begin there."""
    return map_tensors(_differentiable, tuple(args)), {k: map_tensors(_differentiable, v) for k, v in kwargs.items()}


def _differentiable(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.requires_grad:
        return tensor
    return tensor.detach().requires_grad_().clone()  # a clone, because a model may overwrite its input


@contextmanager
def _all_differentiable(model: nn.Module) -> Iterator[None]:
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point() and not p.is_inference()]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def _without_recurrent_dropout(model: nn.Module) -> Iterator[None]:
    # cuDNN differentiates recurrent layers in training mode only; then their own dropout has to be off.
    stacks = [(m, m.dropout, m.training) for m in model.modules() if isinstance(m, nn.RNNBase)]
    try:
        for module, _, _ in stacks:
            module.dropout, module.training = 0.0, True
        yield
    finally:
        for module, dropout, training in stacks:
            module.dropout, module.training = dropout, training


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        hint = "; for a model that returns its loss give loss_fn=lambda model, batch: model(**batch).loss"
        raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}{hint}")
    if loss.ndim:
        raise ValueError(f"loss_fn must return a scalar, got shape {tuple(loss.shape)}; average it")
    if not loss.requires_grad:
        raise ValueError("the loss depends on none of the model's parameters; it may have been detached")
