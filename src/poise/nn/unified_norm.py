"""Unified normalisation: second moments of channels over the batch, smoothed, so that inference is a constant scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable

_HALF = (torch.float16, torch.bfloat16)


class UnifiedNorm(nn.Module):
    r"""Divide every channel by a smoothed root mean square over the batch; a drop-in for LayerNorm in Transformers.

    .. math:: s_t = \tfrac1n \sum x^2, \qquad \sigma_t^2 = \Big(\prod_{i=t-M+1}^{t} s_i\Big)^{1/M}, \qquad
        y = w \frac{x}{\sqrt{\sigma_t^2 + \epsilon}} + b

    The mean over the last M batches is geometric, because an extreme batch moves it least. The gradient's own
    statistic, the mean of :math:`g z`, is averaged over its last M values and then over all steps. In evaluation the
    layer is a constant diagonal map of a running second moment, which :func:`fuse_norms` folds into the next layer.

    A step is skipped when the window holds an outlier (``outlier_filtration``) or the input is not finite: it is
    normalised by its own statistics and leaves no trace in any average. Four things differ from the published code
    on purpose: the filter's variance is that before insertion (with the window's own the filter could never
    fire), a skipped step does not enter ``running_var``, the filter waits until the window is full, and padding enters
    no statistic. :class:`ReferenceUnifiedNorm` has the code's behaviour.

    The gradient is not the derivative of the output but an estimate with smoothed statistics, so a second derivative
    exists in evaluation only. Gradient statistics scale with the loss: a loss scale that changes often disturbs them.
    A forward during a backward (activation checkpointing) repeats the last one and counts nothing. Statistics stay in
    float32 when the module is halved.

    Args:
        num_features: channels, the size of the last dimension.
        window_size: batches in the window, one number or (forward, backward). 1 is no smoothing: the output has the
            batch's own scale (forward), the gradient the batch's own statistic (backward). 1 for both is exact.
        warmup_iters: iterations without smoothing and without filter.
        outlier_filtration: skip steps whose window is too skewed.
        eps: added to the second moment.
        momentum: fraction of the running value that is KEPT, as in the paper (torch's would be ``1 - momentum``).
        r_clip: bound on the ratio of the batch's to the running scale by which gradients are corrected.
        r_start: iterations during which that ratio is one (``warmup_iters`` if that is more).
        update_running_on_skip: let a skipped step enter ``running_var`` and the gradient's average.
        process_group: all-reduce statistics over this group; by default each rank has its own.
        device: where parameters live.
        dtype: dtype of the parameters.

    Attributes:
        running_var: running second moment of each channel.
        iters: training steps so far.
        skip_counter: steps skipped so far.

    Raises:
        ValueError: if an argument is out of range; in ``forward`` if sizes do not fit, ``pad_mask`` leaves nothing, or
            in training there is one position only.

    References:
        Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers", ACM MM 2022,
        arXiv:2208.01313.

    Example:
        >>> norm = UnifiedNorm(32, warmup_iters=100, outlier_filtration=True)
        >>> y = norm(torch.randn(8, 16, 32))
    """

    running_var: Tensor
    iters: Tensor
    skip_counter: Tensor
    window: Tensor
    gradient_window: Tensor
    gradient_average: Tensor

    def __init__(
        self,
        num_features: int,
        window_size: int | tuple[int, int] = 4,
        warmup_iters: int = 4000,
        outlier_filtration: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.9,
        r_clip: float = 5.0,
        r_start: int = 1000,
        update_running_on_skip: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        windows = window_size if isinstance(window_size, tuple) else (window_size, window_size)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features!r}")
        if len(windows) != 2 or min(windows) < 1:
            raise ValueError(f"window_size must be a number from 1 or a pair of them, got {window_size!r}")
        if warmup_iters < 0 or r_start < 0:
            raise ValueError(f"warmup_iters and r_start must not be negative, got {warmup_iters!r} and {r_start!r}")
        if not 0 < momentum < 1:
            raise ValueError(f"momentum must lie in (0, 1), got {momentum!r}")
        if not eps > 0 or not r_clip >= 1:
            raise ValueError(f"eps must be positive and r_clip at least 1, got {eps!r} and {r_clip!r}")
        self.num_features, self.windows, self.warmup_iters = num_features, windows, warmup_iters
        self.outlier_filtration, self.eps, self.momentum = outlier_filtration, eps, momentum
        self.r_clip, self.r_start, self.update_running_on_skip = r_clip, r_start, update_running_on_skip
        self.process_group = process_group
        self.filter_start = max(warmup_iters, max(windows) + 1)
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        statistics: dict[str, Any] = {
            "device": device,
            "dtype": torch.float64 if self.weight.dtype == torch.float64 else torch.float32,
        }
        self.register_buffer("running_var", torch.empty(num_features, **statistics))
        self.register_buffer("window", torch.empty(windows[0], num_features, **statistics))
        self.register_buffer("gradient_window", torch.empty(windows[1], num_features, **statistics))
        self.register_buffer("gradient_average", torch.empty(num_features, **statistics))
        self.register_buffer("iters", torch.empty((), dtype=torch.long, device=device))
        self.register_buffer("skip_counter", torch.empty((), dtype=torch.long, device=device))
        self._last_step: list[_Step] = []  # at most one; torch is slow to set an attribute of a module
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one, bias zero, statistics as before the first step."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_var.fill_(1)
        for statistic in (self.window, self.gradient_window, self.gradient_average, self.iters, self.skip_counter):
            statistic.zero_()
        self._last_step.clear()

    def forward(
        self, x: Float[Tensor, "*batch channels"], pad_mask: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch channels"]:
        """Return the normalised input in its own dtype.

        Args:
            x: any number of leading dimensions.
            pad_mask: True where a position is padding; it is normalised too, but enters no statistic.

        Raises:
            ValueError: if ``x`` does not end in ``num_features``, ``pad_mask`` is not a boolean tensor of the leading
                shape of ``x`` or (on the CPU) leaves no valid position, or there is a single position in training.
        """
        self._require(x, pad_mask)
        if not self.training or x.numel() == 0:
            return self._affine(x)
        if x.numel() == self.num_features:
            raise ValueError("batch statistics need more than one position, got one; use eval() or a larger batch")
        return self._train(x, None if pad_mask is None else pad_mask[..., None])

    def scale(self) -> Float[Tensor, " channels"]:
        """Return the factor of each channel in evaluation."""
        return self.weight * (self.running_var + self.eps).rsqrt()

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return (
            f"{self.num_features}, window_size={self.windows}, warmup_iters={self.warmup_iters}, "
            f"outlier_filtration={self.outlier_filtration}"
        )

    def _affine(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.scale()).to(x.dtype)

    def _train(self, x: Tensor, pads: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            step = self._advance(x, pads)
        elif self._last_step and torch._C._current_graph_task_id() != -1:  # in a backward
            step = self._last_step[0]
        else:
            step = self._advance(x, pads)
            self._last_step[:] = [step]
        settings = self.momentum, self.update_running_on_skip, self.process_group, self._has_own_gradient_statistic()
        # In one argument: torch checks every argument of an autograd function.
        others = self._gradient_pads(pads), step, self.gradient_window, self.gradient_average, settings
        return _Normalize.apply(x, self.weight, self.bias, others)

    def _has_own_gradient_statistic(self) -> bool:
        """Whether the gradient is corrected by the batch's own statistic, not by an average."""
        return self.windows[1] == 1

    def _gradient_pads(self, pads: Tensor | None) -> Tensor | None:
        """The positions that have no part in the gradient's statistic."""
        return pads

    def _advance(self, x: Tensor, pads: Tensor | None) -> _Step:
        """Let the batch enter the statistics; return what its forward and backward need of them."""
        valid = x.detach() if pads is None else x.detach().masked_fill(pads, 0)
        rows = _as(self.window.dtype, valid.reshape(-1, self.num_features))
        # One pass without a temporary, where x.square().mean(0) writes its squares to memory first.
        if rows.is_meta:  # for which it has no kernel
            mean, variance = torch.empty_like(self.window[0]), torch.empty_like(self.window[0])
        else:
            mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
        moment = _over_valid(torch.addcmul(variance, mean, mean), len(rows), pads, self.process_group)
        filters = self.outlier_filtration and self.windows[0] > 1  # both means of one number are the same
        advance = _advance_opaque if torch.compiler.is_compiling() else _advance
        return advance(
            moment, self.window, self.running_var, self.iters, self.skip_counter, self.windows[1],
            self.warmup_iters, self.filter_start if filters else -1, self.eps, self.momentum,
            self.r_clip, self.r_start, self.update_running_on_skip,
        )  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Statistics keep their precision when the module is halved."""
        before = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype in _HALF:
                setattr(self, name, buffer.to(after.device))
        self._last_step.clear()
        return self

    def _require(self, x: Tensor, pad_mask: Tensor | None) -> None:
        if x.shape[-1] != self.num_features:
            raise ValueError(f"x must end in num_features={self.num_features}, got shape {tuple(x.shape)}")
        if pad_mask is None:
            return
        if pad_mask.dtype != torch.bool or pad_mask.shape != x.shape[:-1]:
            raise ValueError(
                f"pad_mask must be bool of shape {tuple(x.shape[:-1])}, got {pad_mask.dtype} {tuple(pad_mask.shape)}"
            )
        on_cpu = pad_mask.device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere the check would wait
        if on_cpu and pad_mask.numel() and bool(pad_mask.all()):
            raise ValueError("pad_mask marks every position as padding: no valid token is left")


class ReferenceUnifiedNorm(UnifiedNorm):
    """:class:`UnifiedNorm` as the published code computes it, for comparison with its results.

    Skipped steps enter the averages, the filter may fire while the window still holds zeros, padding enters the
    gradient's statistic (not the forward one), and the forward window decides alone whether the gradient is smoothed:
    of (1, 3) it is not, of (3, 1) it is by the average over all steps. Arguments are those of :class:`UnifiedNorm` save
    ``update_running_on_skip``.

    Raises:
        ValueError: as :class:`UnifiedNorm`.

    References:
        Yang et al., 2022, arXiv:2208.01313.
    """

    def __init__(self, num_features: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.update_running_on_skip = True
        self.filter_start = self.warmup_iters

    def _has_own_gradient_statistic(self) -> bool:
        return self.windows[0] == 1

    def _gradient_pads(self, pads: Tensor | None) -> Tensor | None:
        return None


_Step = tuple[Tensor, Tensor, int | Tensor, bool | Tensor, bool | Tensor]
"""What one batch's forward and backward need of the statistics.

The factor of each channel, the same times the ratio of the batch's to the running scale (for the gradient), the place
in the gradient's window, whether the step counts, and whether the gradient's statistic is a mean over its window.
"""


def _advance(
    moment: Tensor, window: Tensor, running: Tensor, iters: Tensor, skips: Tensor, gradient_window: int,
    warmup: int, filter_start: int, eps: float, momentum: float, r_clip: float, r_start: int, update_on_skip: bool,
) -> _Step:  # fmt: skip
    """Let a batch's second moment enter the window and the running value; a negative ``filter_start`` is no filter."""
    size = window.shape[0]
    t = _known(iters.add_(1))
    finite = counts = _finite(moment)
    spread = window.sqrt().var() if filter_start >= 0 else None  # before insertion, over all channels
    _store(window, t % size, _where(finite, lambda: moment, lambda: running))
    geometric = None
    if spread is not None:
        geometric = _geometric_mean(window)
        gaps = torch.sub(window.sum(0), geometric, alpha=size)  # between the two means, times the size
        counts = finite & ((t < filter_start) | (_known(gaps.amax()) <= size**2 * _known(spread)))
        if counts is not True:
            _store(window, t % size, _where(counts, lambda: moment, lambda: running))
    regular = t * counts  # a skipped step is like one before warm-up
    smoothed = regular >= max(size + 1, warmup)
    if size == 1:
        variance = moment
    elif geometric is None:
        variance = _where(smoothed, lambda: _geometric_mean(window), lambda: moment)
    else:  # a step that is smoothed has kept its moment in the window: the filter knows the mean
        variance = _where(smoothed, lambda: geometric, lambda: moment)
    inverse = (variance + eps).rsqrt_()
    inverse_gradient = _where(
        (regular > max(warmup, r_start)) & (size > 1),
        lambda: ((running + eps).rsqrt() / inverse).clamp_(1 / r_clip, r_clip) * inverse,
        lambda: inverse,
    )
    running.lerp_(_where(finite if update_on_skip else counts, lambda: variance, lambda: running), 1 - momentum)
    if counts is not True:
        skips.add_(counts ^ True)
    return inverse, inverse_gradient, t % gradient_window, counts, regular >= max(gradient_window + 1, warmup)


def _geometric_mean(window: Tensor) -> Tensor:
    return window.log().mean(0).exp_()


def _store(window: Tensor, slot: int | Tensor, row: Tensor) -> None:
    if isinstance(slot, int):
        window[slot] = row
    else:
        window.index_copy_(0, slot.view(1), row[None])


def _finite(statistic: Tensor) -> bool | Tensor:
    """Whether all values are; the sum of one that is not with any others is not either."""
    total = _known(statistic.sum())
    finite: bool | Tensor = total - total == 0
    return finite


def _known(value: Tensor) -> Any:
    """The number in a tensor on the CPU; elsewhere the tensor, because reading it would wait for the device."""
    return value.item() if value.is_cpu and not torch.compiler.is_compiling() else value


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """``tensor.to(dtype)``; asking for what is there already takes as long as a sum over a hundred numbers."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _where(condition: bool | Tensor, then: Callable[[], Tensor], otherwise: Callable[[], Tensor]) -> Tensor:
    """``torch.where``, which computes only the side that is wanted if that is known."""
    if isinstance(condition, bool):
        return then() if condition else otherwise()
    return torch.where(condition, then(), otherwise())


@torch.library.custom_op(
    "poise::unified_norm_advance",
    mutates_args=("window", "running", "iters", "skips"),
    schema="(Tensor moment, Tensor(a!) window, Tensor(b!) running, Tensor(c!) iters, Tensor(d!) skips, "
    "int gradient_window, int warmup, int filter_start, float eps, float momentum, float r_clip, int r_start, "
    "bool update_on_skip) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _advance_opaque(moment: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Advance, with tensors only in the result.

    The compiler must not trace it: it would move what only backward needs there, after the buffers have changed.
    """
    inverse, inverse_gradient, *flags = _advance(moment, *others)
    return inverse, inverse_gradient.clone(), *(torch.as_tensor(flag, device=moment.device) for flag in flags)


@_advance_opaque.register_fake
def _(moment: Tensor, window: Tensor, running: Tensor, iters: Tensor, *_: Any) -> tuple[Tensor, ...]:
    slot, flag = iters.new_empty(()), iters.new_empty((), dtype=torch.bool)
    return torch.empty_like(moment), torch.empty_like(moment), slot, flag, torch.empty_like(flag)


class _Normalize(torch.autograd.Function):
    """y = w x / sqrt(variance + eps) + b, with the gradient estimated by smoothed statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor,
        others: tuple[Tensor | None, _Step, Tensor, Tensor, tuple[Any, ...]],
    ) -> Tensor:  # fmt: skip
        pads, (inverse, inverse_gradient, *ctx.step), ctx.window, ctx.average, ctx.settings = others
        scale = weight * inverse
        scale_gradient = scale if inverse_gradient is inverse else weight * inverse_gradient
        # Not the window and the average, which are written in backward.
        ctx.save_for_backward(x, weight, pads, inverse, inverse_gradient, scale_gradient)
        return _as(x.dtype, torch.addcmul(bias, x, scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, pads, inverse, inverse_gradient, scale_gradient = ctx.saved_tensors
        momentum, update_on_skip, group, own = ctx.settings
        positions, leading = x.numel() // inverse.numel(), tuple(range(x.ndim - 1))
        product = _as(inverse.dtype, grad) * x  # its memory becomes the gradient's: fresh pages are dearer than this
        grad_weight = product.sum(leading) * inverse_gradient
        valid = grad_weight if pads is None else product.masked_fill_(pads, 0).sum(leading) * inverse_gradient
        statistic = _over_valid((weight * valid).div_(positions), positions, pads, group)
        smoothed = _smoothed_gradient(statistic, ctx.window, ctx.average, ctx.step, momentum, update_on_skip)
        pull = (statistic if own else smoothed) * inverse.square()
        if pads is not None:
            pull = pull.expand_as(x).masked_fill(pads, 0)  # padding has no part in the statistic, hence none here
        grad_x = torch.mul(grad, scale_gradient, out=product).addcmul_(x, pull, value=-1)
        grad_bias = grad.sum(leading, dtype=inverse.dtype)
        return _as(x.dtype, grad_x), _as(weight.dtype, grad_weight), _as(weight.dtype, grad_bias), None


def _smoothed_gradient(
    statistic: Tensor, window: Tensor, average: Tensor, step: tuple[Any, ...], momentum: float, update_on_skip: bool
) -> Tensor:  # fmt: skip
    """Let mean(g z) enter its averages; return the one that the gradient is corrected by."""
    slot, counts, averaged = step
    finite = _finite(statistic)
    counts = counts & finite  # an overflow under loss scaling must not stay in the averages
    _store(window, slot, _where(counts, lambda: statistic, lambda: average))
    mean = _where(averaged, lambda: window.mean(0), lambda: statistic)
    average.lerp_(_where(finite if update_on_skip else counts, lambda: mean, lambda: average), 1 - momentum)
    return _where(counts, lambda: average, lambda: statistic)


def _over_valid(mean: Tensor, positions: int, pads: Tensor | None, group: dist.ProcessGroup | None) -> Tensor:
    """A mean over all positions, to which padding adds zeros, as one over the valid positions of all ranks."""
    if pads is None and group is None:
        return mean
    count = mean.new_full((1,), positions) if pads is None else (~pads).sum().to(mean.dtype).view(1)
    total = mean * positions
    if group is not None:
        both = torch.cat([total, count])
        dist.all_reduce(both, group=group)
        total, count = both[:-1], both[-1:]
    return total / count
