import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.dynamics import (
    NotConverged,
    decoupled_fixed_point,
    ntk_features,
    responses,
    ridge_fixed_point,
    sensitivity,
)


def rotation(sine):
    cosine = math.sqrt(1 - sine**2)
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def kernel(u, strengths):
    return (u.double() * torch.as_tensor(strengths, dtype=torch.float64) ** 2) @ u.double().T


def ridge_responses(u, strengths, lam):
    return u.double().T @ ridge_fixed_point(kernel(u, strengths), lam)


def random_features(seed, n, p):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, p, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=generator).double() * 2 - 1
    return phi, y


@pytest.mark.parametrize(("lam", "root"), [(1.0, 0.40105814), (0.1, 1.63350617), (0.002, 4.66512041)])
def test_the_decoupled_margin_is_the_root_of_its_equation(lam, root):
    r = decoupled_fixed_point(torch.eye(3), lam)
    assert r.shape == (3,)
    np.testing.assert_allclose(r, root, atol=1e-8)
    np.testing.assert_allclose(lam * r * (1 + r.exp()), 1, rtol=1e-13)


@given(st.floats(-300, 300))
def test_the_decoupled_margin_exists_for_weights_of_any_size(exponent):
    r = float(decoupled_fixed_point(torch.eye(1), 10**exponent)[0])
    logs = exponent * math.log(10) + math.log(r) + r + math.log1p(math.exp(-r))
    assert logs == pytest.approx(0, abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), p=st.integers(1, 20), power=st.floats(-4, 3))
def test_the_ridge_fixed_point_is_the_minimum_over_the_weights(seed, n, p, power):
    lam = 10**power
    phi, y = random_features(seed, n, p)
    labelled = y[:, None] * phi
    r = ridge_fixed_point(labelled @ labelled.T, lam)
    theta = labelled.T @ torch.sigmoid(-r) / lam
    terms = (labelled @ labelled.T).abs() @ torch.sigmoid(-r) / lam
    np.testing.assert_allclose(labelled @ theta, r, rtol=1e-10, atol=1e-13 * float(terms.max()))
    theta.requires_grad_()
    loss = nn.functional.softplus(-y * (phi @ theta)).sum() + lam / 2 * theta.square().sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    assert gradient.abs().max() < 1e-8 * max(1, lam)


def test_primal_and_dual_values_agree_at_the_ridge_fixed_point():
    phi, y = random_features(0, 8, 5)
    labelled, lam = y[:, None] * phi, 0.03
    k = labelled @ labelled.T
    r = ridge_fixed_point(k, lam)
    a = torch.sigmoid(-r)
    theta = labelled.T @ a / lam
    primal = nn.functional.softplus(-labelled @ theta).sum() + lam / 2 * theta.square().sum()
    entropy = -(a * a.log() + (1 - a) * (1 - a).log()).sum()
    dual = entropy - a @ k @ a / (2 * lam)
    assert primal.item() == pytest.approx(dual.item(), abs=1e-10)


def test_uncoupled_features_do_not_starve_each_other():
    for s1 in (2.001, 3, 6, 50):
        assert ridge_responses(torch.eye(2), [s1, 2], 0.01)[1].item() == pytest.approx(4.4805, abs=5e-5)


@pytest.mark.parametrize(("sine", "first", "last"), [(0.1, 4.010, 3.896), (0.3, 2.930, 2.480), (0.5, 1.640, 1.185)])
def test_a_stronger_feature_starves_a_coupled_one(sine, first, last):
    u = rotation(sine)
    weak = [ridge_responses(u, [s1, 2], 0.01)[1].item() for s1 in (2.001, 3, 4, 5, 6)]
    assert weak[0] == pytest.approx(first, abs=1e-3)
    assert weak[-1] == pytest.approx(last, abs=1e-3)
    assert all(a > b for a, b in pairwise(weak))


@pytest.mark.parametrize(("n", "p"), [(3, 5), (6, 9)])
def test_the_minimum_with_a_penalty_on_logits_has_equal_margins(n, p):
    phi, y = random_features(1, n, p)
    lam = 0.05
    theta = torch.zeros(p, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        logits = phi @ theta
        loss = nn.functional.softplus(-y * logits).sum() + lam / 2 * logits.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    margins = (y * (phi @ theta)).detach()
    np.testing.assert_allclose(margins, decoupled_fixed_point(phi @ phi.T * y * y[:, None], lam), rtol=1e-6)


def test_sensitivity_is_the_derivative_of_the_responses():
    u = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    squares, lam, h = torch.tensor([9.0, 4.0, 2.0, 0.5], dtype=torch.float64), 0.1, 1e-5
    found = sensitivity(u, squares.sqrt(), lam)
    for j in range(4):
        up, down = squares.clone(), squares.clone()
        up[j] += h
        down[j] -= h
        slope = (ridge_responses(u, up.sqrt(), lam) - ridge_responses(u, down.sqrt(), lam)) / (2 * h)
        np.testing.assert_allclose(found[:, j], slope, rtol=1e-6, atol=1e-9)


def test_sensitivity_shows_starvation_only_of_coupled_features():
    strengths = torch.tensor([4.0, 2.0])
    assert sensitivity(rotation(0.5), strengths, 0.01)[1, 0] < 0
    free = sensitivity(torch.eye(2), strengths, 0.01)
    assert free[1, 0] == free[0, 1] == 0
    assert (free.diagonal() > 0).all()


def test_features_of_a_network_are_the_singular_vectors_of_its_jacobian():
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    y = torch.tensor([1, -1, 1, 1, -1, 1])
    rows = []
    for row in x:
        gradients = torch.autograd.grad(model(row).squeeze(), tuple(model.parameters()))
        rows.append(torch.cat([g.ravel() for g in gradients]))
    labelled = y[:, None] * torch.stack(rows)
    u, s = ntk_features(model, x, y)
    np.testing.assert_allclose(s, torch.linalg.svdvals(labelled), rtol=1e-6)
    np.testing.assert_allclose(u.T @ u, torch.eye(6), atol=1e-12)
    np.testing.assert_allclose((labelled.T @ u).norm(dim=0), s, rtol=1e-6)
    np.testing.assert_allclose(kernel(u, s), labelled @ labelled.T, atol=1e-10)
    assert (u.sum(0) >= 0).all()


def test_responses_are_margins_along_the_features():
    u, y = rotation(0.5), torch.tensor([1, -1])
    logits = torch.tensor([[2.0], [3.0]])
    np.testing.assert_allclose(responses(logits, y, u), u.T @ torch.tensor([2.0, -3.0], dtype=torch.float64))
    z = responses(logits, y, u)
    np.testing.assert_allclose(u @ z, [2.0, -3.0])


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("solve", [ridge_fixed_point, decoupled_fixed_point])
def test_bad_weights_are_refused(solve, lam):
    with pytest.raises(ValueError, match="lam must be positive"):
        solve(torch.eye(2), lam)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.ones(2, 3), "square"),
        (torch.tensor([[math.nan]]), "finite"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (-torch.eye(2), "negative eigenvalue"),
    ],
)
@pytest.mark.parametrize("solve", [ridge_fixed_point, decoupled_fixed_point])
def test_bad_kernels_are_refused(solve, matrix, words):
    with pytest.raises(ValueError, match=words):
        solve(matrix, 0.1)


def test_features_that_cannot_give_any_margins_are_refused():
    with pytest.raises(ValueError, match="full rank 2, got rank 1"):
        decoupled_fixed_point(torch.ones(2, 2), 0.1)


def test_too_few_steps_are_said():
    with pytest.raises(NotConverged, match="1 Newton"):
        ridge_fixed_point(torch.diag(torch.tensor([1e4, 1.0])), 1e-3, max_iter=1)


def test_bad_labels_sizes_and_directions_are_refused():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="-1 or 1"):
        ntk_features(model, torch.ones(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="one output per label"):
        ntk_features(nn.Linear(2, 2), torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="at most 2000"):
        ntk_features(model, torch.ones(2001, 2), torch.ones(2001))
    with pytest.raises(ValueError, match="one row for each of 3"):
        responses(torch.ones(2), torch.ones(3), torch.eye(3))
    with pytest.raises(ValueError, match="orthogonal"):
        sensitivity(torch.ones(2, 2), torch.ones(2), 0.1)
    with pytest.raises(ValueError, match="must be square"):
        sensitivity(torch.eye(3), torch.ones(2), 0.1)
