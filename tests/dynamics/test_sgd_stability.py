import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.dynamics import (
    NotInterpolating,
    SecondMomentOperator,
    batch_noise_section,
    sgd_lyapunov_exponent,
    sgd_stability,
)
from poise.dynamics.sgd_noise.curvature_moments import curvature_moments
from poise.dynamics.sgd_noise.per_example_factors import PerExampleGram
from poise.dynamics.sgd_noise.sampling import SAMPLINGS
from poise.report import Report

pytestmark = pytest.mark.filterwarnings("ignore::poise.dynamics.NotInterpolating")


def fitted(n=12, outputs=1, dtype=torch.float64):
    """A model and data that it fits exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, outputs)).to(dtype)
    x = torch.randn(n, 4, dtype=dtype)
    return model, nn.MSELoss(), (x, model(x).detach())


def gram_of(a):
    rows = a.flatten(0, 1)
    return PerExampleGram(rows @ rows.T, len(a), len(a))


def test_fields_agree_with_the_gradients():
    model, loss_fn, (x, y) = fitted()
    found = sgd_stability(model, loss_fn, (x, y), lr=0.01)
    rows = []
    for i in range(12):
        gradients = torch.autograd.grad(model(x[i : i + 1]).sum(), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]) * 2**0.5)
    g = torch.stack(rows)
    hessian = g.T @ g / 12
    assert found.trace == pytest.approx(hessian.trace().item())
    assert found.frobenius == pytest.approx(hessian.norm().item())
    assert found.sharpness == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item())
    squares = g.square().sum(1)
    assert found.fourth_moment_ratio == pytest.approx((squares.square().mean() / squares.mean() ** 2).item())
    assert found.lr_gd == pytest.approx(2 / found.sharpness)
    assert found.lr_trace == pytest.approx(2 / found.trace)
    assert found.lr_moment == pytest.approx((2 * squares.mean() / squares.square().mean()).item())
    assert found.lr_exact == pytest.approx(SecondMomentOperator(g[:, None], 1.0, 1).critical_lr(), rel=1e-6)
    assert found.interpolation_gap < 1e-20
    assert not found.approximate
    assert (found.n, found.outputs, found.used, found.lr_moment_se) == (12, 1, 12, 0.0)
    assert found.margin == pytest.approx(0.01 / found.lr_exact)
    assert found.stable is (found.margin <= 1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), outputs=st.integers(1, 2), sampling=st.sampled_from(SAMPLINGS))
def test_bounds_are_in_order(seed, n, outputs, sampling):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, outputs, 5, generator=generator, dtype=torch.float64)
    moments = curvature_moments(gram_of(a))
    slack = 1 + 1e-8
    for batch_size in range(1, n + 1):
        exact = SecondMomentOperator(a, 1.0, batch_size, sampling).critical_lr()
        assert exact <= moments.lr_bound(batch_size, sampling) * slack
    if outputs == 1 and sampling != "bernoulli":
        assert moments.lr_bound(1, sampling) <= 2 / moments.trace * slack


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    sampling=st.sampled_from(SAMPLINGS),
    share=st.floats(0.05, 2.0),
)
def test_smallest_batch_of_the_bound_is_the_first_that_it_allows(seed, n, sampling, share):
    a = torch.randn(n, 1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moments = curvature_moments(gram_of(a))
    lr = share * moments.lr_bound(n, sampling)
    allowed = [b for b in range(1, n + 1) if moments.lr_bound(b, sampling) >= lr * (1 - 1e-9)]
    assert moments.smallest_batch(lr, sampling) == (allowed[0] if allowed else None)


def test_smallest_stable_batch_is_the_first_that_is_stable():
    model, loss_fn, data = fitted()
    found = sgd_stability(model, loss_fn, data, lr=0.01)
    lr = 0.5 * (found.lr_exact + found.lr_gd)
    batch_size = found.batch_min(lr)
    assert 1 < batch_size <= 12
    assert sgd_stability(model, loss_fn, data, lr=lr, batch_size=batch_size).stable
    assert not sgd_stability(model, loss_fn, data, lr=lr, batch_size=batch_size - 1).stable
    assert found.batch_min(0.9 * found.lr_exact) == 1
    assert found.batch_min(1.1 * found.lr_gd) is None


@pytest.mark.parametrize("outputs", [1, 7])
def test_bounds_from_a_sample_agree_with_those_of_all(outputs):
    model, loss_fn, data = fitted(40, outputs)
    every = sgd_stability(model, loss_fn, data)
    whole = sgd_stability(model, loss_fn, data, exact=False, subsample=40)
    if outputs == 1:
        assert whole.lr_moment == pytest.approx(every.lr_moment, rel=1e-6)
    assert whole.sharpness == pytest.approx(every.sharpness, rel=1e-2)
    sampled = sgd_stability(model, loss_fn, data, exact=False, subsample=25, sharpness=every.sharpness, lr=1e-9)
    assert (sampled.lr_exact, sampled.operator, sampled.coherence, sampled.margin) == (None, None, None, None)
    assert sampled.used == 25
    assert sampled.lr_moment_se > 0
    assert abs(sampled.lr_moment - every.lr_moment) < 6 * sampled.lr_moment_se + 0.3 * every.lr_moment
    assert sampled.stable is None
    assert sampled.batch_min(1e-9) == 1


def test_a_bound_can_only_refute():
    model, loss_fn, data = fitted()
    limit = sgd_stability(model, loss_fn, data, exact=False, subsample=12)
    assert sgd_stability(model, loss_fn, data, exact=False, subsample=12, lr=1.1 * limit.lr_gd).stable is False
    assert limit.stable is None
    assert limit.batch_min(1.1 * limit.lr_gd) is None


def test_large_problems_take_the_sketch():
    model, loss_fn, data = fitted(30, 1, torch.float32)
    exact = sgd_stability(model, loss_fn, data)
    found = sgd_stability(model, loss_fn, data, max_bytes=2000)
    assert found.operator is None
    assert found.used == 30
    assert found.lr_moment == pytest.approx(exact.lr_moment, rel=1e-4)


def test_noise_of_the_loss_is_said():
    model, loss_fn, (x, y) = fitted()
    with pytest.warns(NotInterpolating, match=r"mean loss is .* above 0.001"):
        found = sgd_stability(model, loss_fn, (x, y + 1))
    assert found.approximate
    assert found.interpolation_gap == pytest.approx(1.0)


def test_lr_of_the_trace_is_only_of_one_output():
    assert sgd_stability(*fitted(outputs=2)).lr_trace is None


def test_same_seed_same_estimate():
    one, two = (
        sgd_stability(*fitted(40, 7), exact=False, subsample=20, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert one.lr_moment == pytest.approx(two.lr_moment, rel=1e-9)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.inf}, "lr must be positive"),
        ({"batch_size": 0}, "from 1 to the number of examples 12"),
        ({"batch_size": 13}, "got 13"),
        ({"sampling": "shuffle"}, "'without', 'replacement', 'bernoulli'"),
        ({"exact": "no"}, "True, False or 'auto'"),
        ({"exact": False, "subsample": 99}, "got 99"),
    ],
)
def test_bad_input(settings_, message):
    with pytest.raises(ValueError, match=message):
        sgd_stability(*fitted(), **settings_)


def test_smallest_batch_needs_a_learning_rate():
    with pytest.raises(ValueError, match="lr must be positive"):
        sgd_stability(*fitted()).batch_min(-1.0)


# --- typical runs, and the section of the report --------------------------------------------------------------------


def test_lyapunov_exponent_of_identical_examples():
    a = 2.0 * torch.ones(5, 1, 1, dtype=torch.float64)
    for batch_size, sampling in ((5, "without"), (2, "replacement"), (1, "without")):
        operator = SecondMomentOperator(a, 0.4, batch_size, sampling)
        found = sgd_lyapunov_exponent(operator, steps=50, burn_in=5)
        assert found.value == pytest.approx(math.log(abs(1 - 0.4 * 4)), rel=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_lyapunov_exponent_of_one_parameter_is_the_mean_logarithm(sampling):
    h = torch.tensor([0.5, 1.0, 3.0, 2.5], dtype=torch.float64)
    operator = SecondMomentOperator(h.sqrt()[:, None, None], 0.3, 2, sampling)
    if sampling == "bernoulli":
        masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    else:
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        pairs = pairs if sampling == "replacement" else pairs[pairs[:, 0] != pairs[:, 1]]
        masks = nn.functional.one_hot(pairs, 4).sum(1).double()
    expected = (1 - 0.3 * masks @ h / 2).abs().log().mean().item()
    found = sgd_lyapunov_exponent(operator, steps=4000, burn_in=0)
    assert found.value == pytest.approx(expected, abs=max(5 * found.se, 1e-9))


def test_typical_runs_may_return_where_the_mean_square_explodes():
    h = torch.tensor([0.5] * 9 + [11.0], dtype=torch.float64)  # one bad example in ten
    operator = SecondMomentOperator(h.sqrt()[:, None, None], 1.0, 1)
    assert operator.spectral_radius() == pytest.approx(0.9 * 0.5**2 + 0.1 * 10**2)
    found = sgd_lyapunov_exponent(operator)
    assert found.value == pytest.approx(0.9 * math.log(0.5) + 0.1 * math.log(10), abs=5 * found.se)
    assert found.sign == -1


def test_section_has_a_row_per_batch_size_and_marks_the_present_one():
    model, loss_fn, data = fitted()
    stability = sgd_stability(model, loss_fn, data, lr=0.05, batch_size=3)
    text, table, figure = batch_noise_section(stability, steps=100)
    assert "mean square" in text.markdown
    assert "Lyapunov" in text.markdown
    assert [row[0] for row in table.rows] == [1, 3, 4, 12]
    present = table.rows[1]
    assert present[1] == stability.lr_gd
    assert present[3] == pytest.approx(stability.lr_exact, rel=1e-5)
    assert {row[5] for row in table.rows} <= {"a typical run leaves", "undecided", "a typical run returns"}
    now = figure.figure.data[-1]
    assert (now.x[0], now.y[0]) == (3, 0.05)
    assert "batch size 3 at learning rate 0.05" in figure.alt
    assert "Batch-noise stability" in Report("t", "s", blocks=[text, table, figure]).to_html()


def test_section_without_an_exact_limit_says_so():
    model, loss_fn, data = fitted(40)
    stability = sgd_stability(model, loss_fn, data, lr=0.01, exact=False, subsample=20)
    text, table, _ = batch_noise_section(stability)
    assert "20 examples" in table.caption
    assert "moment bound" in table.columns[2]
    assert "bound above which the mean square grows" in text.markdown
    words = batch_noise_section(sgd_stability(model, loss_fn, data))[0].markdown
    assert "No learning rate was given" in words
