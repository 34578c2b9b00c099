import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.dynamics import SecondMomentOperator
from poise.dynamics.sgd_noise.sampling import SAMPLINGS, noise_coefficients, smallest_batch_with


def factors(n=5, outputs=1, parameters=7, seed=0):
    return torch.randn(n, outputs, parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessians(a):
    return torch.einsum("ncp,ncq->npq", a, a)


def dense_map(a, lr, batch_size, sampling):
    """The map of flattened second moments, written out from E[(I - lr H_B) kron (I - lr H_B)]."""
    h = hessians(a)
    n, p = len(h), h.shape[1]
    alpha, beta = noise_coefficients(n, batch_size, sampling)
    g, one = h.mean(0), torch.eye(p, dtype=torch.float64)
    squares = torch.stack([torch.kron(x, x) for x in h]).mean(0)
    drift = torch.kron(one, one) - lr * (torch.kron(g, one) + torch.kron(one, g))
    return drift + lr**2 * (alpha * torch.kron(g, g) + beta * squares)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_coefficients_are_those_of_random_batches(sampling):
    n, batch_size = 4, 2
    h = torch.randn(n, dtype=torch.float64)
    if sampling == "bernoulli":
        masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * n)
        weights = torch.full((2**n,), 0.5**n, dtype=torch.float64)  # p = B / n = 1 / 2
    else:
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        pairs = pairs if sampling == "replacement" else pairs[pairs[:, 0] != pairs[:, 1]]
        masks = torch.nn.functional.one_hot(pairs, n).sum(1).double()
        weights = torch.full((len(pairs),), 1 / len(pairs), dtype=torch.float64)
    second_moment = (weights * (masks @ h / batch_size).square()).sum()
    alpha, beta = noise_coefficients(n, batch_size, sampling)
    assert second_moment.item() == pytest.approx((alpha * h.mean() ** 2 + beta * h.square().mean()).item(), rel=1e-12)


@given(n=st.integers(1, 60), sampling=st.sampled_from(SAMPLINGS), data=st.data())
def test_smallest_batch_inverts_the_noise_coefficient(n, sampling, data):
    batch_size = data.draw(st.integers(1, n))
    beta = noise_coefficients(n, batch_size, sampling)[1]
    assert smallest_batch_with(beta, n, sampling) == batch_size
    if batch_size < n:
        assert smallest_batch_with(beta * 0.999, n, sampling) == batch_size + 1
    assert smallest_batch_with(-0.1, n, sampling) is None


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n", "outputs", "parameters"), [(5, 1, 7), (4, 2, 3), (6, 1, 2), (3, 3, 4)])
def test_matches_the_dense_map(sampling, n, outputs, parameters):
    a, lr = factors(n, outputs, parameters), 0.05
    operator = SecondMomentOperator(a, lr, 2, sampling)
    dense = dense_map(a, lr, 2, sampling)
    g = hessians(a).mean(0)
    values, vectors = torch.linalg.eigh(g)
    basis = vectors.flip(1)[:, : operator.rank]
    torch.testing.assert_close(operator.eigenvalues, values.flip(0)[: operator.rank])
    # The signs of eigenvectors are free: fix them by the coordinates of the factors.
    signs = torch.sign((a.flatten(0, 1) @ basis * operator.coordinates.flatten(0, 1)).sum(0))
    basis = basis * signs
    m = torch.randn(operator.rank, operator.rank, dtype=torch.float64)
    m = m + m.T
    moved = (dense @ (basis @ m @ basis.T).flatten()).view(parameters, parameters)
    torch.testing.assert_close(operator.matvec(m), basis.T @ moved @ basis)
    inside = torch.kron(basis, basis)
    expected = torch.linalg.eigvalsh(inside.T @ dense @ inside)
    assert operator.spectral_radius() == pytest.approx(expected.abs().max().item(), abs=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n", "outputs", "parameters"), [(1, 1, 1), (5, 1, 7), (4, 2, 3), (9, 2, 30), (20, 1, 15)])
def test_spectral_radius_is_one_at_the_critical_lr(sampling, n, outputs, parameters):
    operator = SecondMomentOperator(factors(n, outputs, parameters), 1.0, min(2, n), sampling)
    lr = operator.critical_lr()
    assert operator.at(lr=lr).spectral_radius(tol=1e-9) == pytest.approx(1.0, abs=1e-8)
    assert operator.at(lr=1.01 * lr).spectral_radius() > 1


def test_simulated_mean_square_grows_above_the_critical_lr_and_shrinks_below():
    a = factors(3, 1, 2)
    operator = SecondMomentOperator(a, 1.0, 1)
    h, lr = hessians(a), operator.critical_lr()

    def mean_square(lr, steps=40):
        moment = torch.eye(2, dtype=torch.float64)
        for _ in range(steps):  # all three batches, exactly
            jumps = torch.eye(2, dtype=torch.float64) - lr * h
            moment = (jumps @ moment @ jumps).mean(0)
        return moment.trace().item()

    assert mean_square(1.1 * lr) > 10
    assert mean_square(0.9 * lr) < 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_one_example(sampling):
    operator = SecondMomentOperator(torch.tensor([[[3.0]]]), 1.0, 1, sampling)
    assert operator.critical_lr() == pytest.approx(2 / 9, rel=1e-12)


@pytest.mark.parametrize("sampling", ["without", "replacement"])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_identical_examples_have_no_noise(sampling, batch_size):
    operator = SecondMomentOperator(factors(1).expand(5, -1, -1), 1.0, batch_size, sampling)
    assert operator.critical_lr() == pytest.approx(operator.lr_gd, rel=1e-10)
    assert operator.at(lr=0.99 * operator.lr_gd).smallest_batch() == 1


def test_orthogonal_examples_lose_a_factor_of_n():
    operator = SecondMomentOperator(2.0 * torch.eye(6)[:, None], 1.0, 1)
    assert operator.critical_lr() == pytest.approx(2 / 4, rel=1e-10)
    assert operator.lr_gd == pytest.approx(6 * 2 / 4, rel=1e-12)


def test_one_feature_has_a_closed_form():
    x = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
    m2, m4 = x.square().mean().item(), x.pow(4).mean().item()
    for batch_size in (1, 2, 4):
        beta = (4 - batch_size) / (4 * batch_size)
        operator = SecondMomentOperator(x[:, None, None], 1.0, batch_size, "bernoulli")
        assert operator.critical_lr() == pytest.approx(2 * m2 / (m2**2 + beta * m4), rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 8), outputs=st.integers(1, 2), parameters=st.integers(1, 9))
def test_critical_lr_orders_and_limits(seed, n, outputs, parameters):
    a = factors(n, outputs, parameters, seed)
    limits = {s: [SecondMomentOperator(a, 1.0, b, s).critical_lr() for b in range(1, n + 1)] for s in SAMPLINGS}
    gd = SecondMomentOperator(a, 1.0, 1).lr_gd
    slack = 1 + 1e-8
    for values in limits.values():
        assert all(x <= y * slack for x, y in pairwise(values))
        assert values[-1] <= gd * slack
    assert limits["without"][-1] == pytest.approx(gd, rel=1e-8)
    assert limits["bernoulli"][-1] == pytest.approx(gd, rel=1e-8)
    assert limits["without"][0] == pytest.approx(limits["replacement"][0], rel=1e-8)
    assert all(b <= w * slack for b, w in zip(limits["bernoulli"], limits["without"], strict=True))
    assert SecondMomentOperator(3 * a, 1.0, 1).critical_lr() == pytest.approx(limits["without"][0] / 9, rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    outputs=st.integers(1, 2),
    sampling=st.sampled_from(SAMPLINGS),
    share=st.floats(0.02, 1.1),
)
def test_smallest_batch_is_the_first_whose_critical_lr_suffices(seed, n, outputs, sampling, share):
    operator = SecondMomentOperator(factors(n, outputs, 6, seed), 1.0, 1, sampling)
    lr = share * operator.lr_gd
    stable = [b for b in range(1, n + 1) if operator.at(batch_size=b).critical_lr() >= lr * (1 - 1e-9)]
    assert operator.at(lr=lr).smallest_batch() == (stable[0] if stable else None)


def test_smallest_batch_at_the_very_edge_is_the_full_batch():
    operator = SecondMomentOperator(factors(), 1.0, 1)
    assert operator.at(lr=operator.lr_gd).smallest_batch() == 5
    assert operator.at(lr=operator.lr_gd, sampling="bernoulli").smallest_batch() == 5
    assert operator.at(lr=operator.lr_gd, sampling="replacement").smallest_batch() is None
    assert operator.at(lr=1.001 * operator.lr_gd).smallest_batch() is None


def test_products_of_rows_suffice():
    a = factors(5, 2, 30)
    rows = a.flatten(0, 1)
    of_gram = SecondMomentOperator.from_gram(rows @ rows.T, 5, 1.0, 2)
    assert of_gram.critical_lr() == pytest.approx(SecondMomentOperator(a, 1.0, 2).critical_lr(), rel=1e-9)


def test_rotation_of_parameters_changes_nothing():
    a = factors(4, 1, 6)
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert SecondMomentOperator(a @ q, 1.0, 1).critical_lr() == pytest.approx(
        SecondMomentOperator(a, 1.0, 1).critical_lr(), rel=1e-9
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": math.nan}, "lr must be"),
        ({"batch_size": 0}, "from 1 to the number of examples 5, got 0"),
        ({"batch_size": 6}, "got 6"),
        ({"sampling": "shuffle"}, "'without', 'replacement', 'bernoulli'"),
        ({"per_example_factors": torch.zeros(5, 1, 7)}, "no curvature"),
        ({"per_example_factors": torch.full((5, 1, 7), math.nan)}, "finite"),
        ({"per_example_factors": torch.zeros(5, 7)}, r"\(n, outputs, parameters\), got \(5, 7\)"),
    ],
)
def test_bad_input(change, message):
    arguments = {"per_example_factors": factors(), "lr": 0.1, "batch_size": 1, "sampling": "without"}
    with pytest.raises(ValueError, match=message):
        SecondMomentOperator(**(arguments | change))
