"""Unified normalisation: second moments of channels over the batch, smoothed, so that inference is a constant scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

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
        window_size: batches in the window, one number or (forward, backward). 1 is no smoothing, and exact gradients.
        warmup_iters: iterations without smoothing and without filter.
        outlier_filtration: skip steps whose window is too skewed.
        eps: added to the second moment.
        momentum: share of the running value that is KEPT, as in the paper (torch's would be ``1 - momentum``).
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
        self._last_step: _Step | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain one, bias zero, statistics as before the first step."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_var.fill_(1)
        for statistic in (self.window, self.gradient_window, self.gradient_average, self.iters, self.skip_counter):
            statistic.zero_()
        self._last_step = None

    def forward(
        self, x: Float[Tensor, "*batch channels"], pad_mask: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch channels"]:
        """Return the normalised input in its own dtype.

        Args:
            x: any number of leading dimensions.
            pad_mask: True where a position is padding; it is normalised too, but enters no statistic.
        """
        self._require(x, pad_mask)
        if not self.training or x.numel() == 0:
            return self._affine(x)
        rows = x.reshape(-1, self.num_features)
        pads = None if pad_mask is None else pad_mask.reshape(-1, 1)
        if len(rows) == 1:
            raise ValueError("batch statistics need more than one position, got one; use eval() or a larger batch")
        return self._train(rows, pads).view_as(x)

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

    def _train(self, rows: Tensor, pads: Tensor | None) -> Tensor:
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1  # in a backward
        step = self._last_step if recomputing and self._last_step is not None else self._advance(rows, pads)
        if not torch.compiler.is_compiling():
            self._last_step = step
        return _Normalize.apply(
            rows, self.weight, self.bias, pads, *step, self.gradient_window, self.gradient_average,
            (self.eps, self.momentum, self.update_running_on_skip, self.process_group),
        )  # fmt: skip

    @torch.no_grad()
    def _advance(self, rows: Tensor, pads: Tensor | None) -> _Step:
        """Let the batch enter the statistics; return what its forward and backward need of them."""
        valid = rows if pads is None else rows.masked_fill(pads, 0)
        total = valid.to(self.window.dtype).square().sum(0)
        moment = _averaged(total, len(rows) if pads is None else (~pads).sum(), self.process_group)
        # Opaque to the compiler: it would move what only backward needs there, after the buffers have changed.
        advance = _advance_compiled if torch.compiler.is_compiling() else _advance
        return _Step(*advance(
            moment, self.window, self.running_var, self.iters, self.skip_counter, self.windows[1],
            self.warmup_iters, self.filter_start if self.outlier_filtration else -1, self.eps, self.momentum,
            self.r_clip, self.r_start, self.update_running_on_skip,
        ))  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Statistics keep their precision when the module is halved."""
        before = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype in _HALF:
                setattr(self, name, buffer.to(after.device))
        self._last_step = None
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
        on_cpu = pad_mask.device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere a look would wait
        if on_cpu and pad_mask.numel() and bool(pad_mask.all()):
            raise ValueError("pad_mask marks every position as padding: no valid token is left")


class ReferenceUnifiedNorm(UnifiedNorm):
    """:class:`UnifiedNorm` as the published code computes it, for comparison with its results.

    Skipped steps enter the averages, the filter may fire while the window still holds zeros, and padding is not known.
    Arguments are those of :class:`UnifiedNorm` save ``update_running_on_skip``.

    Raises:
        ValueError: as :class:`UnifiedNorm`, or if ``pad_mask`` is given.

    References:
        Yang et al., 2022, arXiv:2208.01313.
    """

    def __init__(self, num_features: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.update_running_on_skip = True
        self.filter_start = self.warmup_iters

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Return the normalised input."""
        if pad_mask is not None:
            raise ValueError("pad_mask is not known to the published code; use UnifiedNorm")
        return super().forward(x)


class _Step(NamedTuple):
    """What one batch's forward and backward need of the statistics."""

    variance: Tensor
    ratio: Tensor
    t: Tensor
    skip: Tensor
    averaged: Tensor  # whether the gradient's statistic is a mean over its window


def _advance(
    moment: Tensor, window: Tensor, running: Tensor, iters: Tensor, skips: Tensor, gradient_window: int,
    warmup: int, filter_start: int, eps: float, momentum: float, r_clip: float, r_start: int, update_on_skip: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Let a batch's second moment enter the window and the running value; a negative ``filter_start`` is no filter."""
    size = len(window)
    t = iters.add_(1).clone()
    slot = (t % size).view(1)
    spread = window.sqrt().var() if filter_start >= 0 else None  # before insertion, over all channels
    window.index_copy_(0, slot, moment[None])
    geometric = window.log().mean(0).exp()
    finite = moment.isfinite().all()
    skip = ~finite
    if spread is not None:
        skip = skip | ((t >= filter_start) & (window.mean(0) - geometric > size * spread).any())
    window.index_copy_(0, slot, torch.where(skip, running, moment)[None])
    smooth = (t > size) & (t >= warmup) & ~skip
    variance = torch.where(smooth, geometric, moment) if size > 1 else moment.clone()
    ratio = ((variance + eps) / (running + eps)).sqrt().clamp(1 / r_clip, r_clip)
    ratio = torch.where((t <= max(warmup, r_start)) | skip, torch.ones_like(ratio), ratio)
    kept = ~finite if update_on_skip else skip
    running.copy_(torch.where(kept, running, running.lerp(variance, 1 - momentum)))
    skips.add_(skip)
    averaged = (t > gradient_window) & (t >= warmup) & ~skip
    return variance, ratio, t, skip, averaged


_advance_compiled = torch.library.custom_op(
    "poise::unified_norm_advance", _advance, mutates_args=("window", "running", "iters", "skips")
)


@_advance_compiled.register_fake
def _(moment: Tensor, window: Tensor, running: Tensor, iters: Tensor, skips: Tensor, *_: Any) -> tuple[Tensor, ...]:
    flag = iters.new_empty((), dtype=torch.bool)
    return moment.new_empty(moment.shape), moment.new_empty(moment.shape), iters.new_empty(()), flag, flag.clone()


class _Normalize(torch.autograd.Function):
    """y = w x / sqrt(variance + eps) + b, with the gradient estimated by smoothed statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pads: Tensor | None, variance: Tensor, ratio: Tensor,
        t: Tensor, skip: Tensor, averaged: Tensor, window: Tensor, average: Tensor, settings: tuple[Any, ...],
    ) -> Tensor:  # fmt: skip
        eps, *ctx.settings = settings
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, pads, inverse, ratio, t, skip, averaged)
        ctx.window, ctx.average = window, average  # written in backward, hence not saved for it
        return torch.addcmul(bias, x, weight * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, pads, inverse, ratio, t, skip, averaged = ctx.saved_tensors
        scale = ratio * inverse
        exact = inverse.dtype
        product = (grad.to(exact) * x).sum(0) * scale  # sum of G r z
        valid = product if pads is None else (grad.to(exact) * x).masked_fill(pads, 0).sum(0) * scale
        count = len(x) if pads is None else (~pads).sum()
        statistic = _averaged(weight * valid, count, ctx.settings[2])
        smoothed = _smoothed_gradient(statistic, ctx.window, ctx.average, t, skip, averaged, *ctx.settings[:2])
        pull = (smoothed * inverse.square()).expand_as(x)
        if pads is not None:
            pull = pull.masked_fill(pads, 0)  # padding has no part in the statistic, hence none of its gradient
        grad_x = torch.addcmul(grad * (weight * scale), x, pull, value=-1).to(x.dtype)
        return grad_x, product.to(weight.dtype), grad.to(exact).sum(0).to(weight.dtype), *(None,) * 9


def _smoothed_gradient(
    statistic: Tensor, window: Tensor, average: Tensor, t: Tensor, skip: Tensor, averaged: Tensor,
    momentum: float, update_on_skip: bool,
) -> Tensor:  # fmt: skip
    """Let mean(g z) enter its averages; return the one that the gradient is corrected by."""
    finite = statistic.isfinite().all()
    skip = skip | ~finite  # an overflow under loss scaling must not stay in the averages
    slot = (t % len(window)).view(1)
    window.index_copy_(0, slot, torch.where(skip, average, statistic)[None])
    mean = torch.where(averaged & finite, window.mean(0), statistic)
    kept = ~finite if update_on_skip else skip
    average.copy_(torch.where(kept, average, average.lerp(mean, 1 - momentum)))
    return torch.where(skip | (len(window) == 1), statistic, average)


def _averaged(total: Tensor, count: Any, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return total / count
    both = torch.cat([total, torch.as_tensor(count, dtype=total.dtype, device=total.device).view(1)])
    dist.all_reduce(both, group=group)
    return both[:-1] / both[-1]
