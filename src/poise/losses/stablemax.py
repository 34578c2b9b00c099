"""StableMax: a softmax whose terms grow linearly, so that no sample's gradient is absorbed by rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

# Elements that one pass works on: on a CPU they stay in the cache from one kernel to the next.
_CPU_BLOCK, _DEVICE_BLOCK = 2**18, 2**26


def stablemax(x: Float[Tensor, ...], dim: int = -1) -> Float[Tensor, ...]:
    r"""Turn scores into probabilities that fall off polynomially.

    .. math:: p_i = \frac{s(x_i)}{\sum_j s(x_j)}, \qquad s(x) = x + 1 \;(x \ge 0), \quad \frac{1}{1 - x} \;(x < 0)

    Unlike softmax it changes with a shift that is common to all scores.

    Args:
        x: scores.
        dim: dimension of the classes.

    Returns:
        Probabilities, float32 or wider.

    Raises:
        TypeError: if ``x`` is not floating point.

    References:
        Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv:2501.04697.
    """
    s = _terms(_widen(x))
    return s / s.sum(dim, keepdim=True)


def log_stablemax(x: Float[Tensor, ...], dim: int = -1) -> Float[Tensor, ...]:
    """Return the logarithm of :func:`stablemax`; its gradient is finite at every input.

    Args:
        x: scores.
        dim: dimension of the classes.

    Raises:
        TypeError: if ``x`` is not floating point.

    References:
        Prieto et al., ICLR 2025, arXiv:2501.04697.
    """
    return F.log_softmax(_log_terms(_widen(x)), dim)


def stablemax_cross_entropy(
    input: Float[Tensor, ...],
    target: Shaped[Tensor, ...],
    weight: Float[Tensor, classes] | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    compute_dtype: torch.dtype | None = None,
) -> Float[Tensor, ...]:
    r"""Cross entropy of StableMax; takes the place of ``torch.nn.functional.cross_entropy``.

    With softmax in float32, a sample whose right class leads by 16.6 has a loss and a gradient of exactly zero
    (*softmax collapse*). Here neither is ever zero: the loss is :math:`\log(1 + \sum_{j \ne y} s(x_j) / s(x_y))`.

    Class indices without label smoothing are computed in blocks of rows that stay in the cache, without a tensor of
    probabilities; everything else is ``cross_entropy`` of :math:`\log s(x)`, which is the same by definition.

    Args:
        input: scores, classes in dimension 1 (dimension 0 if there is no batch).
        target: class indices, or class probabilities of the shape of ``input``.
        weight: weight of each class.
        ignore_index: index that marks positions to leave out; only with class indices.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: as in torch, in [0, 1].
        compute_dtype: ``torch.float32`` or ``torch.float64``; float32 for half precision, else the dtype of ``input``
            by default.

    Returns:
        The loss in ``compute_dtype``.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``compute_dtype`` is narrower than float32 or than ``input``, a class index is out of range,
            shapes do not fit, or ``reduction`` is unknown.

    References:
        Prieto et al., ICLR 2025, arXiv:2501.04697.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    dtype = _compute_dtype(input, compute_dtype)
    indices = not target.is_floating_point() and not label_smoothing > 0
    if not indices or torch.compiler.is_compiling():  # a compiler fuses the plain formula by itself
        g = _log_terms(input.to(dtype))
        weight = weight if weight is None else weight.to(dtype)
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        return F.cross_entropy(g, target, weight, **options)  # type: ignore[arg-type]
    rows, classes = _as_rows(input, target, ignore_index)
    kept = classes != ignore_index
    classes = torch.where(kept, classes, 0)
    losses = torch.where(kept, _RowLoss.apply(rows, classes, dtype)[0], 0.0)
    weights = kept.to(dtype) if weight is None else torch.where(kept, weight.to(dtype)[classes], 0.0)
    losses = losses * weights
    if reduction == "none":
        return losses.reshape(target.shape)
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


class StableMaxCrossEntropy(nn.Module):
    """Module form of :func:`stablemax_cross_entropy`; takes the place of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: weight of each class.
        ignore_index: index that marks positions to leave out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: as in torch, in [0, 1].
        compute_dtype: ``torch.float32`` or ``torch.float64``; by default float32 or that of the scores if wider.

    Raises:
        TypeError: in ``forward`` if the scores are not floating point.
        ValueError: in ``forward`` if ``compute_dtype`` is narrower than float32 or than the scores, a class index is
            out of range, shapes do not fit, or ``reduction`` is unknown.

    References:
        Prieto et al., ICLR 2025, arXiv:2501.04697.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, classes] | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        self.compute_dtype = compute_dtype

    def forward(self, input: Float[Tensor, ...], target: Shaped[Tensor, ...]) -> Float[Tensor, ...]:
        """Return the loss."""
        return stablemax_cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            compute_dtype=self.compute_dtype,
        )

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"


def _terms(x: Tensor) -> Tensor:
    """s(x), with both branches finite everywhere: the one not chosen must not put NaN into the gradient."""
    return torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))


def _log_terms(x: Tensor) -> Tensor:
    """Log s(x). ``sign(x) log1p(|x|)`` would have gradient 0 at 0: a head that starts at zero would stay there."""
    return torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p((-x).clamp(min=0)))


class _RowLoss(torch.autograd.Function):
    """Loss and sum of terms of each row; keeps nothing for the backward pass but the scores and that sum."""

    @staticmethod
    def forward(x: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        sums = torch.empty(len(x), 2, dtype=torch.float64, device=x.device)  # the other classes, the right class
        for rows in _blocks(x):
            wide, y = x[rows].to(dtype), target[rows, None]
            s = torch.clamp(wide, max=0).neg_().add_(1).reciprocal_().add_(torch.clamp(wide, min=0))
            sums[rows, 1:] = s.gather(1, y).double()
            # Summed without the right class: the others must not be rounded away beside a large score.
            sums[rows, :1] = s.scatter_(1, y, 0).sum(1, keepdim=True, dtype=torch.float64)
        lead = sums[:, 1].log() - sums[:, 0].log()  # the loss is log(1 + others / right), and the ratio can overflow
        return torch.logaddexp(-lead, torch.zeros_like(lead)).to(dtype), sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, target, ctx.dtype = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, target, output[1])
        ctx.save_for_forward(x, target)

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if loss_grad is None:
            return None, None, None
        x, target, sums = ctx.saved_tensors
        # For a second derivative, or many gradients at once, the formula itself, which autograd and vmap can follow.
        if torch.is_grad_enabled() or _is_batched(loss_grad):
            return _row_gradient(x.to(ctx.dtype), target, loss_grad[:, None]).to(x.dtype), None, None
        gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
        scale = (loss_grad.double() / sums.sum(1))[:, None]
        # p_y - 1 is minus the probability of the other classes: no difference of near equals.
        right = -scale * sums[:, :1] / (1 + x.gather(1, target[:, None]).double().abs())
        for rows in _blocks(x):
            wide, y = x[rows].to(ctx.dtype), target[rows, None]
            slope = torch.clamp(wide, max=0).neg_().add_(1).reciprocal_().square_()
            gradient[rows] = slope.mul_(scale[rows].to(ctx.dtype)).scatter_(1, y, right[rows].to(ctx.dtype))
        return gradient, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        x, target = ctx.saved_tensors
        slope = _row_gradient(x.to(ctx.dtype), target, torch.ones_like(x[:, :1], dtype=ctx.dtype))
        return (slope * x_tangent).sum(1), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, target: Tensor, dtype: torch.dtype) -> Any:
        rows = [_to_front(t, dim, info.batch_size) for t, dim in zip((x, target), in_dims, strict=False)]
        outputs = _RowLoss.apply(rows[0].flatten(0, 1), rows[1].flatten(0, 1), dtype)
        return tuple(o.unflatten(0, (info.batch_size, -1)) for o in outputs), (0, 0)


def _row_gradient(x: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """s'(x_j) / sum s - [j = y] / (1 + |x_y|), times the scale of each row."""
    s, y = _terms(x), target[:, None]
    slope = torch.where(x >= 0, 1.0, s.square())
    right = torch.zeros_like(x).scatter(1, y, 1 / (1 + x.gather(1, y).abs()))
    return scale * (slope / s.sum(1, keepdim=True) - right)


def _is_batched(x: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x)


def _to_front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of rows that are small enough to stay in a cache."""
    elements = _CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK
    size = max(1, elements // max(1, x.shape[1]))
    return (slice(start, start + size) for start in range(0, len(x), size))


def _widen(x: Tensor) -> Tensor:
    return x.to(_compute_dtype(x, None))


def _compute_dtype(x: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    if not x.is_floating_point():
        raise TypeError(f"input must be floating point scores, got {x.dtype}")
    natural = torch.promote_types(x.dtype, torch.float32)
    if wanted is None:
        return natural
    if wanted not in (torch.float32, torch.float64) or torch.promote_types(wanted, natural) != wanted:
        raise ValueError(f"compute_dtype must be float32 or float64 and no narrower than {natural}, got {wanted}")
    return wanted


def _as_rows(scores: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Scores as rows of classes, and the class of each row."""
    dim = 0 if scores.ndim == 1 else 1
    positions = scores.shape[:dim] + scores.shape[dim + 1 :]
    if target.shape != positions:
        raise ValueError(f"target must have shape {tuple(positions)} for this input, got {tuple(target.shape)}")
    classes = target.reshape(-1).long()
    # Elsewhere the check would wait for the device, and under vmap it is impossible.
    if classes.device.type == "cpu" and not _is_batched(classes):
        wrong = (classes != ignore_index) & ((classes < 0) | (classes >= scores.shape[dim]))
        if wrong.any():
            bad, count = int(classes[wrong][0]), scores.shape[dim]
            raise ValueError(f"target must lie in 0..{count - 1} or be ignore_index={ignore_index}, got {bad}")
    return scores.movedim(dim, -1).reshape(-1, scores.shape[dim]), classes
