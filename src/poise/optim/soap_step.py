"""The equations of SOAP, on batches of parameters that are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from poise.optim import kronecker_basis
from poise.optim.kronecker_basis import NullSpace
from poise.optim.tensor_layout import TensorLayout

_STACKED_ON_CPU, _STACKED_ON_DEVICE = 2**10, 2**24
"""Elements of equal tensors that go into one call. On a CPU only tiny ones gain from it; larger ones are worked off one
by one, so that their temporaries stay in the cache."""

Bases = list[Float[Tensor, "*batch n n"] | None]


@dataclass(slots=True, eq=False)
class Part:
    """A parameter with its gradient and state, seen in its layout.

    Args:
        param: the parameter itself.
        grad: gradient in the layout's shape and the state's precision, with the sign to descend along.
        state: ``step``, ``exp_avg`` (rotated), ``exp_avg_sq`` or ``exp_avg_sq_row`` and ``exp_avg_sq_col`` (rotated),
            and ``gram_i``, ``basis_i`` for each rotated axis i.
        layout: merged shape and rotated axes.
        step: this step's number; 0 for the gradient that only founds the bases.
    """

    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    layout: TensorLayout
    step: int

    @property
    def kind(self) -> Hashable:
        """What parts of a batch have in common; parts without bases are never stacked and may differ in shape."""
        layout = self.layout if self.layout.axes else None
        return layout, self.param.dtype, self.grad.device, self.step, "exp_avg_sq_row" in self.state

    @property
    def batch_size(self) -> int:
        """How many parts like this one go into a batch."""
        return _stack_size(self.grad) if self.layout.axes else 2**20


@dataclass(slots=True, eq=False)
class RotatedAxis:
    """One axis of a part, with its Gram matrix and basis."""

    part: Part
    axis: int

    @property
    def gram(self) -> Float[Tensor, "n n"]:
        """Average Gram matrix (lower triangle)."""
        return self.part.state[f"gram_{self.axis}"]

    @property
    def basis(self) -> Float[Tensor, "n n"]:
        """Eigenvectors as columns."""
        return self.part.state[f"basis_{self.axis}"]

    @property
    def kind(self) -> Hashable:
        """Bases of one size are alike, whatever parameter they belong to."""
        return self.gram.shape[0], self.gram.dtype, self.gram.device

    @property
    def batch_size(self) -> int:
        """How many axes like this one go into a batch."""
        return _stack_size(self.gram)


@dataclass(slots=True, eq=False)
class Move:
    """A step of a batch of parts that are alike.

    Args:
        batch: the parts.
        group: settings of their group.
        rate: what their directions are multiplied with.
        kept: fraction of the weights that decay leaves.
        gram_beta: decay rate of the Gram matrices, which take the gradients in after the step; ``None`` if they hold
            them already.
    """

    batch: list[Part]
    group: dict[str, Any]
    rate: float | Tensor
    kept: float | Tensor
    gram_beta: float | None


Item = TypeVar("Item", Part, RotatedAxis)


def initialise_bases(parts: Iterable[Part], beta: float, null_space: NullSpace) -> None:
    """Begin each part's Gram matrices with its gradient, and take their eigenvectors as bases; all in float64."""
    for batch in batches(parts):
        for axis in batch[0].layout.axes:
            grads = _stacked([part.grad for part in batch]).double()
            grams, bases = ([part.state[f"{name}_{axis}"] for part in batch] for name in ("gram", "basis"))
            stack = torch.zeros_like(_stacked(grams), dtype=torch.float64)
            kronecker_basis.accumulate_gram(stack, grads, axis, beta)
            _write(grams, stack)
            _write(bases, kronecker_basis.eigenbasis(stack, null_space, batch[0].grad.dtype))


def accumulate_grams(batch: list[Part], beta: float) -> None:
    r"""Average a batch's gradients in: :math:`P_i \leftarrow \beta P_i + (1 - \beta)\, G_{(i)} G_{(i)}^T`."""
    axes = batch[0].layout.axes
    if not axes:
        return
    grads = _stacked([part.grad for part in batch])
    for axis in axes:
        grams = [part.state[f"gram_{axis}"] for part in batch]
        stack = _stacked(grams)
        kronecker_basis.accumulate_gram(stack, grads, axis, beta)
        if len(grams) > 1:  # otherwise the stack is the state itself
            _write(grams, stack)


def prepared(batch: list[Part], group: dict[str, Any], gram_beta: float | None, traced: bool) -> Move:
    """Return the step of a batch; for a graph the factors that change from step to step are tensors."""
    lr, (first, second) = float(group["lr"]), _bias_corrections(batch, group)
    factors = [lr * second / first if group["correct_bias"] else lr, 1 - lr * group["weight_decay"]]
    rate, kept = torch.tensor(factors, dtype=torch.float64).unbind() if traced else factors
    return Move(batch, group, rate, kept, gram_beta)


def move(step: Move) -> None:
    """Update both moments, the parameters and the Gram matrices of a batch by the settings of its group."""
    batch, group = step.batch, step.group
    bases = _stacked_bases(batch)
    grads = _in_bases(kronecker_basis.rotate, [part.grad for part in batch], bases)
    directions = _directions(batch)(batch, grads, group)
    if _is_plain_matrix(step):
        _rotate_back_and_add(batch[0].param, directions[0], bases, float(step.rate), float(step.kept))
    else:
        directions = _in_bases(kronecker_basis.rotate_back, directions, bases)
        updates = [part.layout.restore(d, part.param.shape) for part, d in zip(batch, directions, strict=True)]
        if group["normalize_grads"]:
            torch._foreach_div_(updates, [1e-30 + u.square().mean().sqrt() for u in updates])
        _add([part.param for part in batch], updates, step)
    if step.gram_beta is not None:
        accumulate_grams(batch, step.gram_beta)


def refresh(axes: Iterable[RotatedAxis], group: Mapping[str, Any]) -> None:
    """Refresh the bases of some axes; both moments follow."""
    for batch in batches(axes):
        grams, bases = _stacked([axis.gram for axis in batch]), _stacked([axis.basis for axis in batch])
        new, orders = kronecker_basis.power_iteration(grams, bases, group["null_space"], group["eps"])
        for axis, basis, order in zip(batch, _unstacked(new, batch), _unstacked(orders, batch), strict=True):
            _turn_moments(axis, basis, order)
        _write([axis.basis for axis in batch], new)


def rotated_axes(parts: Iterable[Part]) -> list[RotatedAxis]:
    """Return all axes of all parts that have a basis."""
    return [RotatedAxis(part, axis) for part in parts for axis in part.layout.axes]


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Group items of one kind, in batches that are large enough to stack."""
    kinds: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        kinds[item.kind].append(item)
    for members in kinds.values():
        size = members[0].batch_size
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _stack_size(x: Tensor) -> int:
    most = _STACKED_ON_CPU if x.device.type == "cpu" else _STACKED_ON_DEVICE
    return max(1, most // x.numel())


def _stacked(tensors: list[Tensor]) -> Float[Tensor, "*batch *shape"]:
    """Return several tensors as a stack, a single one as it is."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0]


def _unstacked(stack: Float[Tensor, "*batch *shape"], members: list[Any]) -> list[Tensor]:
    """Undo :func:`_stacked`."""
    return list(stack.unbind()) if len(members) > 1 else [stack]


def _stacked_bases(batch: list[Part]) -> Bases:
    layout = batch[0].layout
    return [
        _stacked([part.state[f"basis_{axis}"] for part in batch]) if axis in layout.axes else None
        for axis in range(len(layout.shape) if layout.axes else 0)
    ]


def _in_bases(turn: Callable[[Tensor, Bases], Tensor], tensors: list[Tensor], bases: Bases) -> list[Tensor]:
    return _unstacked(turn(_stacked(tensors), bases), tensors) if bases else tensors


def _write(targets: list[Tensor], stack: Float[Tensor, "*batch *shape"]) -> None:
    torch._foreach_copy_(targets, _unstacked(stack, targets))


def _bias_corrections(batch: list[Part], group: Mapping[str, Any]) -> tuple[float, float]:
    """Return by how much the mean, and the root of the second moment, are too small for having begun at zero."""
    (beta1, beta2), step = group["betas"], batch[0].step
    return 1 - beta1**step, sqrt(1 - beta2**step)


def _directions(batch: list[Part]) -> Callable[[list[Part], list[Tensor], Mapping[str, Any]], list[Tensor]]:
    if "exp_avg_sq_row" in batch[0].state:
        return _factored_directions
    return _adam_directions if torch.compiler.is_compiling() else _fused_adam_directions


def _adam_directions(batch: list[Part], grads: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    r"""Update both moments, and return :math:`-m / (\sqrt v + \epsilon)`."""
    (beta1, beta2), averages = group["betas"], [part.state["exp_avg"] for part in batch]
    squares = [part.state["exp_avg_sq"] for part in batch]
    torch._foreach_lerp_(averages, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
    return _quotients(averages, list(torch._foreach_sqrt(squares)), group["eps"])


def _fused_adam_directions(batch: list[Part], grads: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    """Do the same in one pass over memory.

    Torch's fused kernel takes a step of Adam from zero, at the rate and epsilon that cancel its bias corrections.
    """
    grads = [grad.contiguous() for grad in grads]  # the kernel disregards strides
    directions = [torch.zeros_like(grad) for grad in grads]
    averages, squares = ([part.state[name] for part in batch] for name in ("exp_avg", "exp_avg_sq"))
    step = batch[0].state["step"].to(grads[0].device)
    first, second = _bias_corrections(batch, group)
    torch._fused_adam_(
        directions,
        grads,
        averages,
        squares,
        [],
        [step] * len(batch),
        lr=first / second,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"] / second,
        amsgrad=False,
        maximize=False,
    )
    return directions


def _factored_directions(batch: list[Part], grads: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    r"""Do the same with Adafactor's second moment :math:`r c^T / \sum r`, from sums of squares by row and column."""
    beta1, beta2 = group["betas"]
    averages = [part.state["exp_avg"] for part in batch]
    torch._foreach_lerp_(averages, grads, 1 - beta1)
    roots = [_factored_root(part.state, grad, beta2) for part, grad in zip(batch, grads, strict=True)]
    return _quotients(averages, roots, group["eps"])


def _quotients(averages: list[Tensor], roots: list[Tensor], eps: float) -> list[Tensor]:
    torch._foreach_add_(roots, eps)
    directions = torch._foreach_div(averages, roots)
    torch._foreach_neg_(directions)
    return list(directions)


def _factored_root(state: Mapping[str, Tensor], grad: Float[Tensor, "m n"], beta2: float) -> Float[Tensor, "m n"]:
    rows, columns, square = state["exp_avg_sq_row"], state["exp_avg_sq_col"], grad.square()
    rows.lerp_(square.sum(1), 1 - beta2)
    columns.lerp_(square.sum(0), 1 - beta2)
    fraction = rows / rows.sum().clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.outer(fraction.sqrt(), columns.sqrt())


def _is_plain_matrix(step: Move) -> bool:
    """Whether a step is of one unreshaped matrix that is added without a check."""
    part = step.batch[0]
    return (
        len(step.batch) == 1
        and part.param.ndim == 2
        and bool(part.layout.axes)
        and part.param.shape == part.layout.shape
        and part.param.dtype == part.grad.dtype
        and not step.group["normalize_grads"]
        and not isinstance(step.rate, Tensor)
    )


def _rotate_back_and_add(
    param: Float[Tensor, "m n"], direction: Float[Tensor, "m n"], bases: Bases, rate: float, kept: float
) -> None:
    """Do both by the last product, which saves two passes over memory."""
    left, right = bases
    if right is None:
        assert left is not None
        param.addmm_(left, direction, beta=kept, alpha=rate * kept)
    else:
        param.addmm_(direction if left is None else left @ direction, right.mT, beta=kept, alpha=rate * kept)


def _add(params: list[Tensor], updates: list[Tensor], step: Move) -> None:
    """Add updates, then let each parameter decay to the fraction that is kept; rounded once."""
    lower = params[0].dtype != updates[0].dtype
    wide = [p.to(updates[0].dtype) for p in params] if lower else params
    if isinstance(step.rate, Tensor):
        torch._foreach_add_(wide, torch._foreach_mul(updates, step.rate))
    else:
        torch._foreach_add_(wide, updates, alpha=step.rate)
    if step.group["weight_decay"]:
        torch._foreach_mul_(wide, step.kept)
    if lower:
        torch._foreach_copy_(params, wide)


def _turn_moments(axis: RotatedAxis, basis: Float[Tensor, "n n"], order: Tensor) -> None:
    """Express the momentum in a new basis; sort the second moment as the basis was sorted."""
    state, along = axis.part.state, kronecker_basis.along_axis
    unrotated = along(state["exp_avg"], axis.basis.mT, axis.axis)
    state["exp_avg"].copy_(along(unrotated, basis, axis.axis))
    if "exp_avg_sq" in state:
        state["exp_avg_sq"].copy_(state["exp_avg_sq"].index_select(axis.axis, order))
    else:
        sums = state["exp_avg_sq_row" if axis.axis == 0 else "exp_avg_sq_col"]
        sums.copy_(sums[order])
