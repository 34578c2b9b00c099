"""One step of an optimizer as a map of the weights and of what the optimizer remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from poise.curvature.loss.evaluation import Evaluation
from poise.dynamics.edge_of_stability.ascent import Ascent, unwrap_sam
from poise.dynamics.systems.map import Map
from poise.dynamics.systems.system import check_state

Gradient = Callable[[Tensor], Tensor]
Slots = dict[str, Tensor]
Settings = dict[str, Tensor]
Rule = Callable[[Tensor, Slots, Gradient, Settings], tuple[Tensor, Slots]]


class OptimizerMap(Map):
    """One full-batch step of an optimizer, from :func:`optimizer_map`.

    Attributes:
        slots: what the state holds after the weights, each as long as they, such as ``"exp_avg"``.
        start: the state at the time of construction, of shape ((1 + slots) * weights,).
    """

    def __init__(self, step: Callable[[Tensor], Tensor], slots: Sequence[str], start: Tensor) -> None:
        super().__init__(step)
        self.slots = tuple(slots)
        self.start = start

    def state(self, weights: Float[Tensor, " P"], **slots: Float[Tensor, " P"]) -> Float[Tensor, " n"]:
        """Return the state of given weights; slots that are not given are zero.

        Raises:
            ValueError: if a slot is unknown or a shape is wrong.
        """
        weights = check_state("weights", weights)
        expected = (self.start.numel() // (1 + len(self.slots)),)
        unknown = slots.keys() - set(self.slots)
        if unknown:
            raise ValueError(f"slots must be among {self.slots}, got {sorted(unknown)}")
        parts = [weights, *(slots.get(name, torch.zeros_like(weights)) for name in self.slots)]
        for name, part in zip(("weights", *self.slots), parts, strict=True):
            if part.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, got {tuple(part.shape)}")
        return torch.cat(parts)


def optimizer_map(
    optimizer: Optimizer, model: nn.Module, loss_fn: Any, data: Any, hold: Sequence[str] = ()
) -> OptimizerMap:
    """Return one full-batch step of an optimizer as a map of the state (weights, and what the optimizer remembers).

    Settings, and the bias corrections of Adam, are those of the optimizer's next step and stay so: the map does not
    depend on time. Model and optimizer are not touched.

    Adam and RMSprop divide by the root of a mean of squares, which is zero at a minimum and has no derivative there.
    That mean changes slowly; hold it (``hold=["exp_avg_sq"]``, ``hold=["square_avg"]``) to find out whether the
    optimizer is stable with the preconditioner it has now.

    Args:
        optimizer: ``SGD``, ``Adam``, ``AdamW`` or ``RMSprop`` of torch, or a SAM around one of them (with its radius in
            the param groups, as ``poise.optim.SAM``).
        model: the model whose parameters it trains; those it does not train stay fixed.
        loss_fn: see :func:`poise.curvature.as_objective`.
        data: a batch or an iterable of batches; the loss is the mean over all.
        hold: slots that stay what they are now and are left out of the state.

    Raises:
        TypeError: if the optimizer's step is not known here.
        ValueError: if a setting is not supported, a parameter is not the model's, or the loss is random or not finite.
    """
    base, ascent = unwrap_sam(optimizer)
    rule = _RULES.get(type(base))
    if rule is None:
        known = ", ".join(kind.__name__ for kind in _RULES)
        raise TypeError(
            f"optimizer must be exactly one of {known}, or a SAM around one, got {type(optimizer).__name__}; "
            "write its step as a function of a flat state and give that to Map"
        )
    _check_settings(optimizer)
    evaluation = Evaluation(model, loss_fn, data, _names(optimizer, model))
    evaluation.examine(evaluation.checked_loss)
    slots = _slots(base, evaluation)
    _check_hold(hold, slots)
    settings = _settings(base, evaluation, hold)
    gradient = _mean_gradient(evaluation)
    if ascent is not None:
        gradient = _ascended(gradient, settings["rho"], ascent)
    free = [name for name in slots if name not in hold]
    held = {f"held {name}": slots[name] for name in hold}

    def step(state: Tensor) -> Tensor:
        weights, *memory = state.chunk(1 + len(free))
        after, new = rule(weights, dict(zip(free, memory, strict=True)) | held, gradient, settings)
        return torch.cat([after, *(new[name] for name in free)])

    start = torch.cat([evaluation.flat.vector(), *(slots[n] for n in free)])
    return OptimizerMap(step, free, start)


def _sgd(w: Tensor, slots: Slots, gradient: Gradient, s: Settings) -> tuple[Tensor, Slots]:
    g = gradient(w) + s["weight_decay"] * w
    if not slots:
        return w - s["lr"] * g, {}
    v = s["momentum"] * slots["momentum_buffer"] + torch.where(s["momentum"] == 0, 1.0, 1.0 - s["dampening"]) * g
    direction = torch.where(s["nesterov"] != 0, g + s["momentum"] * v, v)
    return w - s["lr"] * direction, {"momentum_buffer": v}


def _adam(w: Tensor, slots: Slots, gradient: Gradient, s: Settings) -> tuple[Tensor, Slots]:
    decoupled = s["decoupled_weight_decay"] != 0
    g = gradient(w) + torch.where(decoupled, 0.0, s["weight_decay"]) * w
    m = s["beta1"] * slots["exp_avg"] + (1 - s["beta1"]) * g
    v = _mean_square(slots, "exp_avg_sq", s["beta2"], g)
    root = (v / s["correction2"]).sqrt() + s["eps"]
    kept = 1 - s["lr"] * torch.where(decoupled, s["weight_decay"], 0.0)
    return kept * w - s["lr"] * (m / s["correction1"]) / root, {"exp_avg": m, "exp_avg_sq": v}


def _rmsprop(w: Tensor, slots: Slots, gradient: Gradient, s: Settings) -> tuple[Tensor, Slots]:
    g = gradient(w) + s["weight_decay"] * w
    v = _mean_square(slots, "square_avg", s["alpha"], g)
    b = s["momentum"] * slots["momentum_buffer"] + g / (v.sqrt() + s["eps"])
    return w - s["lr"] * b, {"square_avg": v, "momentum_buffer": b}


def _mean_square(slots: Slots, name: str, decay: Tensor, g: Tensor) -> Tensor:
    held = slots.get(f"held {name}")
    return decay * slots[name] + (1 - decay) * g**2 if held is None else held


_RULES: dict[type[Optimizer], Rule] = {SGD: _sgd, Adam: _adam, AdamW: _adam, RMSprop: _rmsprop}
_MEMORY = {SGD: ("momentum_buffer",), Adam: ("exp_avg", "exp_avg_sq"), RMSprop: ("square_avg", "momentum_buffer")}
_MEAN_SQUARES = ("exp_avg_sq", "square_avg")
_UNSUPPORTED = ("maximize", "amsgrad", "centered")


def _check_hold(hold: Sequence[str], slots: Slots) -> None:
    allowed = [name for name in slots if name in _MEAN_SQUARES]
    if isinstance(hold, str) or set(hold) - set(allowed):
        raise ValueError(f"hold must be a list of names among {allowed}, got {hold!r}")
    for name in hold:
        if not slots[name].any():
            raise ValueError(f"hold: {name} is all zero; let the optimizer take a step first")


def _check_settings(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for name in _UNSUPPORTED:
            if group.get(name):
                raise ValueError(f"{name}=True is not supported: write the step as a function and give that to Map")


def _names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the names of the parameters that the optimizer trains."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name: id(p) for name, p in model.named_parameters() if id(p) in trained}
    missing = len(trained) - len(set(names.values()))
    if missing:
        raise ValueError(f"optimizer must train parameters of the model only; {missing} of its parameters are not")
    return list(names)


def _slots(optimizer: Optimizer, evaluation: Evaluation) -> Slots:
    """Return what the optimizer remembers, zeros where it has not begun."""
    names = next(names for kind, names in _MEMORY.items() if isinstance(optimizer, kind))
    if isinstance(optimizer, SGD) and not any(group["momentum"] for group in optimizer.param_groups):
        return {}
    states = [optimizer.state.get(p, {}) for p in evaluation.flat.tensors]
    return {name: evaluation.flat.join([state.get(name) for state in states]) for name in names}


def _settings(optimizer: Optimizer, evaluation: Evaluation, hold: Sequence[str]) -> Settings:
    """Return every setting as a vector with one entry per weight."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rows = [_numbers(groups[id(p)], optimizer.state.get(p, {}), hold) for p in evaluation.flat.tensors]
    return {
        name: evaluation.flat.join(
            [torch.full_like(p, row[name]) for p, row in zip(evaluation.flat.tensors, rows, strict=True)]
        ).detach()
        for name in rows[0]
    }


def _numbers(group: Mapping[str, Any], state: Mapping[str, Any], hold: Sequence[str]) -> dict[str, float]:
    numbers = {k: float(v) for k, v in group.items() if isinstance(v, int | float | Tensor) and k != "params"}
    if "betas" in group:
        beta1, beta2 = (float(b) for b in group["betas"])
        taken = int(state.get("step", 0))
        # A held mean of squares is that of the steps taken; one that moves is corrected for the step to come.
        of_squares = taken if "exp_avg_sq" in hold else taken + 1
        numbers |= {
            "beta1": beta1,
            "beta2": beta2,
            "correction1": 1 - beta1 ** (taken + 1),
            "correction2": 1 - beta2**of_squares,
            "decoupled_weight_decay": float(group.get("decoupled_weight_decay", False)),
        }
    return numbers


def _mean_gradient(evaluation: Evaluation) -> Gradient:
    return lambda w: _Gradient.apply(w, evaluation)


class _Gradient(torch.autograd.Function):
    """The gradient of the mean loss; its derivative in any direction is a Hessian product by double backward.

    Torch's own forward derivative of a gradient lacks some operations, ``mse_loss`` and fused attention among them.
    """

    @staticmethod
    def forward(w: Tensor, evaluation: Evaluation) -> Tensor:
        return _total(evaluation, w, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Evaluation], output: Tensor) -> None:
        ctx.evaluation = inputs[1]
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, v: Tensor, _: None) -> Tensor:
        return _total(ctx.evaluation, ctx.saved_tensors[0], v)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return _total(ctx.evaluation, ctx.saved_tensors[0], u), None  # the Hessian is its own transpose


def _total(evaluation: Evaluation, w: Tensor, v: Tensor | None) -> Tensor:
    """Return the gradient at ``w``, or the Hessian times ``v``, summed over the batches."""
    flat, total = evaluation.flat, torch.zeros_like(w)
    for i in range(len(evaluation)):
        gradient = torch.func.grad(lambda parameters, i=i: evaluation.loss(i, parameters))
        if v is None:
            total += flat.join(gradient(tuple(flat.split(w))))
        else:
            total += flat.join(torch.func.vjp(gradient, tuple(flat.split(w)))[1](tuple(flat.split(v)))[0])
    return total


def _ascended(gradient: Gradient, rho: Tensor, ascent: Ascent) -> Gradient:
    """Return the gradient at the point that SAM climbs to."""

    def at_the_top(w: Tensor) -> Tensor:
        g = gradient(w)
        return gradient(w + rho * (g / (torch.linalg.vector_norm(g) + ascent.eps) if ascent.normalize else g))

    return at_the_top
