import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from poise.nn import ReferenceUnifiedNorm, UnifiedNorm


def stream(steps, *shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    gains = 1 + torch.rand(steps, generator=generator)
    return [(g * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype) for g in gains]


class Oracle:
    """The published algorithm, position by position, on (n, channels) in float64.

    ``reference`` is the published code to the letter; without it, what UnifiedNorm changes on purpose.
    """

    def __init__(self, channels, windows, warmup, filtering, reference, r_start=1000):
        self.windows, self.w, self.filtering, self.reference, self.r_start = (
            windows,
            warmup,
            filtering,
            reference,
            r_start,
        )
        self.buf, self.gbuf = (torch.zeros(m, channels, dtype=torch.float64) for m in windows)
        self.running, self.ema = torch.ones(channels).double(), torch.zeros(channels).double()
        self.t = self.skips = 0

    def forward(self, x, weight, bias, valid):
        self.t += 1
        t, m = self.t, self.windows[0]
        slot = t % m
        s = x[valid].square().mean(0)
        spread = self.buf.sqrt().flatten().var()
        self.buf[slot] = s
        geometric = self.buf.log().mean(0).exp()
        self.skip = self.reference and m == 1
        outlier = False
        if self.filtering and m > 1 and t >= self.w and (self.reference or t > max(self.windows)):
            outlier = bool(((self.buf.mean(0) - geometric) > m * spread).any())
        if outlier:
            self.buf[slot] = self.running
            self.skips += 1
            self.skip = True
        sigma2 = s if t <= m or t < self.w or self.skip or m == 1 else geometric
        r = ((sigma2 + 1e-5) / (self.running + 1e-5)).sqrt().clamp(0.2, 5)
        self.r = torch.ones_like(r) if t <= max(self.r_start, self.w) or self.skip or m == 1 else r
        if self.reference or not self.skip:
            self.running = 0.9 * self.running + 0.1 * sigma2
        self.sigma, self.weight, self.valid = (sigma2 + 1e-5).sqrt(), weight, valid
        self.z = x / self.sigma
        return weight * self.z + bias

    def backward(self, grad):
        g, m = grad * self.weight * self.r, self.windows[1]
        counted = torch.ones_like(self.valid) if self.reference else self.valid
        gz = (g * self.z)[counted].mean(0)
        self.gbuf[self.t % m] = self.ema if self.skip else gz
        mean = gz if self.t <= m or self.t < self.w or self.skip else self.gbuf.mean(0)
        if self.reference or not self.skip:
            self.ema = 0.9 * self.ema + 0.1 * mean
        own = self.skip or (m == 1 and not self.reference)
        pull = (mean if own else self.ema) * self.z * counted[:, None]
        return (g - pull) / self.sigma, (grad * self.r * self.z).sum(0), grad.sum(0)


@pytest.mark.parametrize("kind", [UnifiedNorm, ReferenceUnifiedNorm])
@pytest.mark.parametrize("filtering", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("window", "warmup", "r_start"),
    [(1, 0, 1000), (1, 0, 3), (4, 6, 0), (3, 2, 8), (2, 0, 1000), ((3, 1), 4, 6), ((1, 3), 4, 6), ((2, 4), 0, 0)],
)
def test_every_step_is_the_published_one(kind, filtering, padded, window, warmup, r_start):
    norm = kind(5, window, warmup, filtering, r_start=r_start).double()
    windows = window if isinstance(window, tuple) else (window, window)
    oracle = Oracle(5, windows, warmup, filtering, kind is ReferenceUnifiedNorm, r_start)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    for step, x in enumerate(stream(16, 24, 5)):
        if step == 12:
            x[3] *= 60
        pads = torch.arange(24) % 5 == step % 5 if padded else torch.zeros(24, dtype=torch.bool)
        x.requires_grad_()
        grad = torch.randn(24, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        norm.zero_grad()
        y = norm(x, pads if padded else None)
        torch.testing.assert_close(y, oracle.forward(x.detach(), norm.weight.detach(), norm.bias.detach(), ~pads))
        y.backward(grad)
        for mine, theirs in zip((x.grad, norm.weight.grad, norm.bias.grad), oracle.backward(grad), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(norm.running_var, oracle.running, rtol=1e-10, atol=1e-10)
        assert norm.skip_counter == oracle.skips
    assert norm.iters == 16


def test_window_of_one_has_the_exact_gradient():
    norm = UnifiedNorm(4, window_size=1, warmup_iters=0, r_start=2).double()
    for x in stream(5, 6, 3, 4, seed=3):  # past the steps without a ratio of scales
        norm(x)
    x = stream(1, 6, 3, 4)[0].requires_grad_()
    grad = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = x * norm.weight / (x.square().mean((0, 1)) + 1e-5).sqrt() + norm.bias
    torch.testing.assert_close(norm(x), exact)
    ours, theirs = (torch.autograd.grad(y, x, grad)[0] for y in (norm(x), exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def trained(steps=8, **settings):
    norm = UnifiedNorm(6, warmup_iters=5, **settings)
    for x in stream(steps, 4, 9, 6, dtype=torch.float32):
        norm(x)
    return norm


def test_evaluation_is_affine_changes_nothing_and_has_second_derivatives():
    norm = trained().double().eval()
    torch.nn.init.normal_(norm.bias)
    before = copy.deepcopy(norm.state_dict())
    x = stream(1, 3, 6)[0]
    torch.testing.assert_close(norm(7 * x) - norm.bias, 7 * (norm(x) - norm.bias))
    assert torch.autograd.gradgradcheck(norm, x.requires_grad_())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_scaled_stream_is_normalised_alike_once_the_window_is_full_of_it():
    first, second = (UnifiedNorm(6, warmup_iters=3, eps=1e-12).double() for _ in range(2))
    for step, x in enumerate(stream(12, 40, 6)):
        y, scaled = first(x), second(x * (100 if step >= 6 else 1))
    torch.testing.assert_close(scaled, y)


def test_constant_statistics_never_fire_and_are_what_is_divided_by():
    norm = UnifiedNorm(6, warmup_iters=0, outlier_filtration=True).double()
    x = stream(1, 40, 6)[0]
    for _ in range(12):
        y = norm(x)
    assert norm.skip_counter == 0
    torch.testing.assert_close(y, x / (x.square().mean(0) + 1e-5).sqrt())


def test_an_outlier_is_counted_and_leaves_no_trace():
    norm = UnifiedNorm(32, warmup_iters=5, outlier_filtration=True)
    reference = ReferenceUnifiedNorm(32, warmup_iters=5, outlier_filtration=True)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(256, 32, generator=generator)  # equal batches: only the outlier can fire
    for each in (norm, reference):
        for step in range(12):
            each(batch + 0.05 * step)
    before, count = norm.running_var.clone(), norm.skip_counter.item()
    spoilt = batch.clone()
    spoilt[7] *= 60
    for each in (norm, reference):
        each(spoilt)
    assert norm.skip_counter == count + 1
    assert torch.equal(norm.running_var, before)
    assert reference.running_var.max() > 3 * before.max()


@pytest.mark.parametrize("filtering", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_input_that_is_not_finite_shows_in_the_output_only(bad, filtering):
    norm = trained(outlier_filtration=filtering)
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(4, 6)
    x[0, 0] = bad
    y = norm(x.requires_grad_())
    y[:, 1:].sum().backward()
    assert y[:, 0].isnan().any()
    assert norm.skip_counter == before["skip_counter"] + 1
    for name in ("running_var", "gradient_average"):
        assert torch.equal(norm.state_dict()[name], before[name])
    assert all(value.isfinite().all() for value in norm.state_dict().values())


def test_gradient_that_is_not_finite_does_not_stay():
    norm = trained()
    x = torch.randn(4, 6, requires_grad=True)
    norm(x).backward(torch.full((4, 6), torch.inf))
    assert norm.gradient_window.isfinite().all()
    assert norm.gradient_average.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([2, 3, 4, 8]), spread=st.floats(0.1, 3))
def test_means_of_a_window_obey_the_bounds_that_make_the_literal_filter_idle(seed, size, spread):
    window = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(spread).exp()
    gap = window.mean() - window.log().mean().exp()
    variance = window.sqrt().var(correction=0)
    rounding = 1e-14 * window.mean()  # of the means, whose difference may be much smaller
    assert variance * (1 - 1e-9) - rounding <= gap <= size * variance * (1 + 1e-9) + rounding


def test_padding_enters_nothing():
    norm = UnifiedNorm(6, warmup_iters=2).double()
    compact = copy.deepcopy(norm)
    for step, x in enumerate(stream(7, 3, 8, 6)):
        generator = torch.Generator().manual_seed(step)
        mask = torch.rand(3, 8, generator=generator) < 0.4
        grad = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64)
        x[mask] *= 1e3
        x.requires_grad_()
        short = x.detach()[~mask].requires_grad_()
        y, y_short = norm(x, mask), compact(short)
        torch.testing.assert_close(y[~mask], y_short)
        y.backward(grad * ~mask[..., None])
        y_short.backward(grad[~mask])
        torch.testing.assert_close(x.grad[~mask], short.grad)
        assert (x.grad[mask] == 0).all()
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, compact.state_dict()[name])


def test_resumed_in_mid_window_the_next_step_is_the_same():
    norm = trained(6)
    resumed = UnifiedNorm(6, warmup_iters=5)
    resumed.load_state_dict(norm.state_dict())
    for each in (norm, resumed):
        each(stream(1, 20, 6, dtype=torch.float32)[0].requires_grad_()).square().sum().backward()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_counts_a_step_once(use_reentrant):
    plain, kept = UnifiedNorm(6, warmup_iters=1), UnifiedNorm(6, warmup_iters=1)
    for x in stream(7, 20, 6, dtype=torch.float32):
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain(first).pow(3).sum().backward()
        checkpoint(kept, second, use_reentrant=use_reentrant).pow(3).sum().backward()
        torch.testing.assert_close(first.grad, second.grad)
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.slow
def test_compiled_without_graph_breaks_every_statistic_is_the_same():
    norm = UnifiedNorm(6, 3, warmup_iters=4, r_start=0, outlier_filtration=True)
    other = copy.deepcopy(norm)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for x in stream(9, 2, 10, 6, dtype=torch.float32):
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        norm(first).pow(3).sum().backward()
        compiled(second).pow(3).sum().backward()
        torch.testing.assert_close(second.grad, first.grad)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_statistics(dtype):
    norm = UnifiedNorm(6, warmup_iters=0).to(dtype)
    for x in stream(8, 20, 6, dtype=dtype):
        y = norm(300 * x.requires_grad_())  # squares exceed float16
        y.float().square().sum().backward()
    assert y.dtype == dtype
    assert norm.running_var.dtype == norm.window.dtype == torch.float32
    assert norm.running_var.min() > 65504 / 4
    assert norm.skip_counter == 0


def test_autocast():
    layer, norm = torch.nn.Linear(6, 6), UnifiedNorm(6)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(layer(torch.randn(9, 6)))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == layer.weight.grad.dtype == torch.float32


def test_empty_batch_is_no_step():
    norm = UnifiedNorm(6)
    y = norm(torch.empty(0, 4, 6, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 4, 6)
    assert norm.iters == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features must be at least 1"),
        ({"window_size": 0}, "window_size must be"),
        ({"window_size": (4, 4, 4)}, "window_size must be"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"warmup_iters": -1}, "must not be negative"),
        ({"eps": 0.0}, "eps must be positive"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnifiedNorm(**{"num_features": 4} | arguments)


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((2, 3), None, "num_features=4"),
        ((1, 1, 4), None, "more than one position"),
        ((2, 4), torch.zeros(2), "pad_mask must be bool"),
        ((2, 4), torch.zeros(3, dtype=torch.bool), "pad_mask must be bool of shape"),
        ((2, 4), torch.ones(2, dtype=torch.bool), "no valid token"),
    ],
)
def test_bad_input(shape, mask, message):
    with pytest.raises(ValueError, match=message):
        UnifiedNorm(4)(torch.ones(shape), mask)
