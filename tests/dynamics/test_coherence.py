import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.curvature import GGN, Supervised
from poise.dynamics import coherence
from poise.dynamics.sgd_noise.coherence import coherence_of_gram
from poise.dynamics.sgd_noise.curvature_moments import curvature_moments, lr_bound_error
from poise.dynamics.sgd_noise.per_example_factors import PerExampleFactors, PerExampleGram, per_example_gram
from poise.dynamics.sgd_noise.second_moment_operator import SecondMomentOperator

CRITERIA = {
    "mse": nn.MSELoss(),
    "ce": nn.CrossEntropyLoss(),
    "weighted ce": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64), label_smoothing=0.2),
    "huber": nn.SmoothL1Loss(beta=10.0),
}


def gram_of(a):
    rows = a.flatten(0, 1)
    return PerExampleGram(rows @ rows.T, len(a), len(a))


def random_factors(seed, n=5, outputs=2, parameters=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, outputs, parameters, generator=generator, dtype=torch.float64)


def problem(criterion="ce", n=12, width=8, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
    x = torch.randn(n, 5, dtype=dtype)
    y = torch.randint(3, (n,)) if "ce" in criterion else torch.randn(n, 3, dtype=dtype)
    return model, CRITERIA[criterion], (x, y)


def stacked(factors, **settings):
    return torch.cat([torch.cat(parts, 2) for parts in factors.chunks(torch.arange(factors.n), **settings)])


# --- the coherence of given factors --------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), outputs=st.integers(1, 3), parameters=st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_matrix_and_range(seed, n, outputs, parameters):
    a = random_factors(seed, n, outputs, parameters)
    found = coherence_of_gram(gram_of(a))
    h = torch.einsum("ncp,ncq->npq", a, a)
    expected = torch.einsum("ipq,jqp->ij", h, h).sqrt()
    torch.testing.assert_close(found.S, expected)
    torch.testing.assert_close(found.S.diagonal(), torch.linalg.matrix_norm(h))
    assert found.sigma >= 1 - 1e-12
    if outputs == 1:
        assert found.sigma <= n * (1 + 1e-12)
    assert found.lambda_1 == pytest.approx(torch.linalg.eigvalsh(h.mean(0))[-1].item(), rel=1e-9)
    assert found.max_lambda_i == pytest.approx(torch.linalg.eigvalsh(h)[:, -1].max().item(), rel=1e-9)
    assert (found.se, found.estimated) == (0.0, False)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=40)
def test_scale_and_rotation_change_nothing(seed, scale):
    a = random_factors(seed)
    q = torch.linalg.qr(random_factors(seed + 1, 1, 4, 4)[0]).Q
    sigma = coherence_of_gram(gram_of(a)).sigma
    assert coherence_of_gram(gram_of(scale * a @ q)).sigma == pytest.approx(sigma, rel=1e-9)


def test_extremes():
    assert coherence_of_gram(gram_of(random_factors(0, 1, 1).expand(6, -1, -1))).sigma == pytest.approx(6)
    assert coherence_of_gram(gram_of(torch.eye(6, dtype=torch.float64)[:, None])).sigma == pytest.approx(1)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 6), outputs=st.integers(1, 3), data=st.data())
@settings(deadline=None, max_examples=40)
def test_exact_limit_is_below_the_divergence_bound(seed, n, outputs, data):
    a, batch_size = random_factors(seed, n, outputs, 3), data.draw(st.integers(1, n))
    exact = SecondMomentOperator(a, 1.0, batch_size, "bernoulli").critical_lr()
    assert exact <= coherence_of_gram(gram_of(a)).lr_divergence(batch_size) * (1 + 1e-9)


def test_full_batch_is_gradient_descent():
    found = coherence_of_gram(gram_of(random_factors(3)))
    assert found.lr_coherence(5) == found.lr_divergence(5) == found.lr_gd == 2 / found.lambda_1


# --- factors of models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_factors_average_to_the_gauss_newton_matrix(criterion):
    model, loss_fn, (x, y) = problem(criterion)
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    a = stacked(PerExampleFactors(model, loss_fn, batches), chunk_size=3)
    torch.testing.assert_close(torch.einsum("ncp,ncq->pq", a, a) / 12, GGN(model, loss_fn, batches).to_dense())


def test_factors_of_a_sequence_model_count_every_term():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)).double()
    ids = torch.randint(6, (4, 5))
    targets = torch.randint(6, (4, 5))
    targets[0, :3] = -100  # ignored
    loss_fn = Supervised(nn.CrossEntropyLoss(), outputs=lambda logits: logits.mT)
    factors = PerExampleFactors(model, loss_fn, (ids, targets))
    assert factors.outputs == 30
    a = stacked(factors)
    expected = GGN(model, loss_fn, (ids, targets)).to_dense()
    torch.testing.assert_close(torch.einsum("ncp,ncq->pq", a, a) / 4, expected)


def test_nothing_of_the_model_changes():
    model, loss_fn, data = problem()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    coherence(model, loss_fn, data, subsample=6)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


def test_coherence_of_a_model_and_of_some_of_its_parameters():
    model, loss_fn, data = problem("mse")
    found = coherence(model, loss_fn, data, params=["2"])
    hidden = model[1](model[0](data[0]))
    rows = torch.cat([hidden, torch.ones(12, 1, dtype=torch.float64)], 1).detach()
    # H_i = (2/3) (h h^T) kron I over three outputs: tr(H_i H_j) = 3 (2/3)^2 (h_i . h_j)^2
    torch.testing.assert_close(found.S, (4 / 3) ** 0.5 * (rows @ rows.T).abs())


# --- samples, signs and sketches -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_estimates_are_unbiased():
    model, loss_fn, data = problem(n=20, width=60)
    factors = PerExampleFactors(model, loss_fn, data)
    exact = curvature_moments(per_example_gram(factors))
    for settings_ in ({"subsample": 8}, {"probes": 3}, {"sketch": 53}, {"subsample": 10, "probes": 3, "sketch": 53}):
        found = [
            curvature_moments(per_example_gram(factors, generator=torch.Generator().manual_seed(k), **settings_))
            for k in range(120)
        ]
        for name in ("trace", "trace_squared", "fourth"):
            values = torch.tensor([getattr(moments, name) for moments in found], dtype=torch.float64)
            error = max(4 * values.std().item() / 120**0.5, 1e-9, 0.02 * getattr(exact, name) * ("sketch" in settings_))
            assert values.mean().item() == pytest.approx(getattr(exact, name), abs=error), (settings_, name)


def test_error_of_the_moment_bound_is_that_seen_over_samples():
    model, loss_fn, data = problem(n=40)
    factors = PerExampleFactors(model, loss_fn, data)
    grams = [per_example_gram(factors, subsample=20, generator=torch.Generator().manual_seed(k)) for k in range(60)]
    bounds = torch.tensor([curvature_moments(gram).lr_bound(1, "without") for gram in grams])
    errors = torch.tensor([lr_bound_error(gram, 1, "without") for gram in grams])
    assert errors.mean().item() == pytest.approx(bounds.std().item(), rel=0.35)
    assert lr_bound_error(per_example_gram(factors), 1, "without") == 0


def test_a_sample_says_that_it_is_one():
    model, loss_fn, data = problem(n=40)
    exact = coherence(model, loss_fn, data)
    sampled = coherence(model, loss_fn, data, subsample=20, generator=torch.Generator().manual_seed(1))
    assert sampled.estimated
    assert sampled.se > 0
    assert sampled.S.shape == (20, 20)
    assert sampled.sigma == pytest.approx(exact.sigma, rel=0.4)
    assert coherence(model, loss_fn, data, sketch=50).estimated
    again = coherence(model, loss_fn, data, subsample=20, generator=torch.Generator().manual_seed(1))
    assert again.sigma == pytest.approx(sampled.sigma, rel=1e-9)


def test_scaling_a_sample_is_exact_at_both_extremes():
    for a, n in ((torch.ones(5, 1, 1, dtype=torch.float64), 50.0), (torch.eye(5, dtype=torch.float64)[:, None], 1.0)):
        rows = a.flatten(0, 1)
        assert coherence_of_gram(PerExampleGram(rows @ rows.T, 50, 5)).sigma == pytest.approx(n)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_no_curvature_is_an_error():
    with pytest.raises(ValueError, match="no curvature"):
        coherence_of_gram(gram_of(torch.zeros(3, 1, 2, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"sketch": 2}, "number of outputs 3, got 2"),
        ({"subsample": 0}, "from 1 to the number of examples 12, got 0"),
        ({"subsample": 13}, "got 13"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"max_bytes": 1000}, "give subsample or sketch"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(ValueError, match=message):
        coherence(*problem(), **settings_)


def test_models_without_gradients_of_single_examples_are_refused():
    model, loss_fn, (x, y) = problem()
    with pytest.raises(ValueError, match=r"eval\(\)"):
        coherence(nn.Sequential(nn.BatchNorm1d(5).double(), model), loss_fn, (x, y))
    with pytest.raises(ValueError, match=r"eval\(\)"):
        coherence(nn.Sequential(model, nn.Dropout(0.5)), loss_fn, (x, y))
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        coherence(model, loss_fn, (x, y))


def test_infinite_gradients_are_named():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return x * self.w.sqrt()

    x = torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="'w' are NaN or infinite"):
        coherence(Root(), nn.MSELoss(), (x, x))


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused():
    model, _, data = problem("mse")
    concave = Supervised(lambda outputs, targets: -(outputs - targets).square().mean())
    with pytest.raises(ValueError, match="convex in the outputs"):
        coherence(model, concave, data)
    with pytest.raises(TypeError, match="outputs and the loss apart"):
        coherence(model, lambda model, batch: model(batch[0]).sum(), data)


def test_random_combinations_have_no_coherence():
    gram = per_example_gram(PerExampleFactors(*problem()), probes=2)
    with pytest.raises(ValueError, match="probes"):
        coherence_of_gram(gram)
    assert math.isfinite(curvature_moments(gram).trace)
