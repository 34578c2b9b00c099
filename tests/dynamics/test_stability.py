import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.dynamics import Flow, Map, central_difference, find_fixed_point, stability
from poise.dynamics.systems.leading_eigenvalues import rightmost_eigenvalues, shift_invert_eigenvalues
from poise.dynamics.systems.non_normality import non_normality_of_flow, non_normality_of_map


def linear(matrix):
    a = torch.as_tensor(matrix, dtype=torch.float64)
    return a, torch.zeros(len(a), dtype=torch.float64)


def map_of(matrix):
    a, zero = linear(matrix)
    return stability(Map(lambda x: a @ x), zero)


def flow_of(matrix, **options):
    a, zero = linear(matrix)
    return stability(Flow(lambda x: a @ x), zero, **options)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_verdict_is_the_sign_of_the_abscissa_and_the_side_of_the_unit_circle(n, seed):
    a = np.random.default_rng(seed).standard_normal((n, n))
    values = np.linalg.eigvals(a)
    flow, map_ = flow_of(a, k=n), map_of(a)
    assert flow.verdict == ("stable" if values.real.max() < 0 else "unstable")
    assert flow.abscissa == pytest.approx(values.real.max(), abs=1e-9)
    assert flow.rate == pytest.approx(-values.real.max(), abs=1e-9)
    assert map_.verdict == ("stable" if np.abs(values).max() < 1 else "unstable")
    assert map_.radius == pytest.approx(np.abs(values).max(), rel=1e-9)


def test_spectrum_does_not_depend_on_coordinates():
    rng = np.random.default_rng(0)
    a, t = rng.standard_normal((5, 5)), rng.standard_normal((5, 5))
    first, second = flow_of(a, k=5), flow_of(np.linalg.solve(t, a @ t), k=5)
    np.testing.assert_allclose(np.sort_complex(first.eigenvalues), np.sort_complex(second.eigenvalues), atol=1e-8)


def test_vectors_are_eigenvectors_within_their_residuals():
    a = np.random.default_rng(1).standard_normal((6, 6))
    result = flow_of(a, k=4)
    assert result.leading_vectors.shape == (6, 4)
    gaps = np.linalg.norm(a @ result.leading_vectors - result.leading_vectors * result.eigenvalues, axis=0)
    np.testing.assert_allclose(gaps, result.residuals, atol=1e-14)
    assert gaps.max() < 1e-12


def test_momentum_has_the_roots_of_its_characteristic_polynomial():
    lr, beta = 0.1, 0.9
    for lam in (0.5, 10.0, 37.9, 38.1):
        result = map_of([[1 - lr * lam, lr * -beta], [lam, beta]])
        np.testing.assert_allclose(
            np.sort_complex(result.eigenvalues), np.sort_complex(np.roots([1, -(1 + beta - lr * lam), beta])), atol=1e-9
        )
        assert result.verdict == ("stable" if lr * lam < 2 + 2 * beta else "unstable")


def conserving():
    # Two species that turn into each other, and a third that decays: the sum of the first two stays.
    return [[-1.0, 2.0, 0.0], [1.0, -2.0, 0.0], [0.0, 0.0, -0.5]]


def test_neutral_directions_need_a_law():
    assert flow_of(conserving()).verdict == "undecided"
    assert "pass conserved=1" in flow_of(conserving()).notes[0]
    law = torch.tensor([[1.0, 1.0, 0.0]])
    for conserved in (1, law):
        result = flow_of(conserving(), conserved=conserved)
        assert (result.verdict, result.n_neutral) == ("normally stable", 1)
        assert result.rate == pytest.approx(0.5)
    assert flow_of(conserving(), conserved=2).verdict == "undecided"
    assert flow_of(-np.eye(2), conserved=1).verdict == "undecided"


def test_laws_are_checked():
    with pytest.raises(ValueError, match=r"conserved\[1\] is not conserved"):
        flow_of(conserving(), conserved=torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="only 1 are independent"):
        flow_of(conserving(), conserved=torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]))
    with pytest.raises(ValueError, match=r"shape \(laws, 3\)"):
        flow_of(conserving(), conserved=torch.ones(3))
    with pytest.raises(ValueError, match=r"conserved must lie in \[0, 3\]"):
        flow_of(conserving(), conserved=4)


def test_drift_along_a_defective_neutral_direction_is_not_called_stable():
    result = flow_of([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0]], conserved=2)
    assert result.verdict == "undecided"
    assert "drift" in result.notes[0]


def test_pure_oscillation_is_left_to_nonlinear_terms():
    turn = [[0.0, 1.0], [-1.0, 0.0]]
    assert "bifurcation" in flow_of(turn).notes[0]
    assert "bifurcation" in map_of(turn).notes[0]
    assert map_of([[-1.0]]).verdict == "undecided"


def test_period_two():
    logistic = Map(lambda x: 3.2 * x * (1 - x))
    fixed = torch.tensor([1 - 1 / 3.2], dtype=torch.float64)
    assert stability(logistic, fixed, k=1).verdict == "unstable"
    twice = logistic @ logistic
    orbit = find_fixed_point(twice, torch.tensor([0.5], dtype=torch.float64)).x
    result = stability(twice, orbit, k=1)
    assert result.verdict == "stable"
    assert result.eigenvalues[0].real == pytest.approx(4 + 2 * 3.2 - 3.2**2, abs=1e-8)
    with pytest.raises(ValueError, match="F @ F"):
        stability(logistic, orbit, k=1)


def test_kinks_are_seen_and_smooth_steep_maps_are_not_accused():
    zero = torch.zeros(3, dtype=torch.float64)
    result = stability(Map(lambda x: 0.5 * x.abs() + 0.2 * x), zero, k=3)
    assert result.verdict == "undecided"
    assert "not differentiable" in result.notes[0]
    assert result.smoothness.kink > 0.1
    steep = stability(Map(lambda x: 0.1 * torch.sin(30 * x) / 30), zero, k=3)
    assert steep.verdict == "stable"
    assert steep.smoothness.smooth


def test_a_cut_derivative_is_seen():
    zero = torch.zeros(2, dtype=torch.float64)
    result = stability(Map(lambda x: 0.1 * x + 3 * x.detach()), zero, k=2)
    assert result.verdict == "undecided"
    assert "finite differences differ" in result.notes[0]
    honest = stability(Map(lambda x: 3.1 * x, central_difference(lambda x: 3.1 * x)), zero, k=2)
    assert honest.verdict == "unstable"


def test_a_derivative_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="derivative at x_star is not finite"):
        stability(Map(lambda x: torch.sqrt(x)), torch.zeros(1, dtype=torch.float64), k=1)


def test_growth_before_decay_is_that_of_the_matrix_exponential():
    a = np.array([[-1.0, 50.0], [0.0, -2.0]])
    result = flow_of(a, k=2)
    t = np.linspace(0, 5, 501)
    exact = max(torch.linalg.matrix_norm(torch.matrix_exp(s * torch.as_tensor(a)), 2).item() for s in t)
    growth = result.non_normality
    assert result.verdict == "stable"
    assert 0.9 * exact < growth.transient_growth <= exact * (1 + 1e-6)
    assert growth.numerical_abscissa == pytest.approx(np.linalg.eigvalsh((a + a.T) / 2).max())
    assert growth.sigma_max == pytest.approx(np.linalg.norm(a, 2))
    assert any("before they decay" in b.markdown for b in result.report().blocks if b.kind == "text")


def test_normal_systems_do_not_grow_before_they_decay():
    assert flow_of(np.diag([-1.0, -5.0]), k=2).non_normality.transient_growth == pytest.approx(1)
    a = np.array([[0.9, 30.0], [0.0, 0.8]])
    exact = max(np.linalg.norm(np.linalg.matrix_power(a, i), 2) for i in range(1, 60))
    assert map_of(a).non_normality.transient_growth == pytest.approx(exact, rel=0.03)
    assert map_of(np.diag([0.5, -0.2])).non_normality.transient_growth == 1


@pytest.mark.parametrize("size", [1e20, 1e40, 1e150, 1e200])
def test_growth_before_decay_is_right_for_jacobians_of_any_size(size):
    # exp(tA) has the corner size * t * exp(-t), a power of the map size * k * 0.99^(k - 1).
    flow = non_normality_of_flow(np.array([[-1.0, size], [0.0, -1.0]]))
    assert 0.98 * size / np.e < flow.transient_growth <= size / np.e * (1 + 1e-6)
    steps = max(k * 0.99 ** (k - 1) for k in range(1, 300))
    of_map = non_normality_of_map(np.array([[0.99, size], [0.0, 0.99]]))
    assert 0.98 * steps * size < of_map.transient_growth <= steps * size * (1 + 1e-6)
    assert of_map.sigma_max == pytest.approx(size)


def test_growth_beyond_the_largest_float_is_infinite():
    nilpotent = np.array([[0.0, 1e200, 0.0], [0.0, 0.0, 1e200], [0.0, 0.0, 0.0]])
    assert non_normality_of_map(nilpotent).transient_growth == np.inf
    assert non_normality_of_map(1e-100 * nilpotent).transient_growth == pytest.approx(1e200)
    assert non_normality_of_map(np.diag([2.0, 0.5])).transient_growth == np.inf


def test_a_slow_decay_beside_a_fast_one_does_not_get_lost():
    # The corner of exp(tA) is size * (exp(-slow t) - exp(-t)) / (1 - slow), which tends to size.
    growth = non_normality_of_flow(np.array([[-1e-9, 1e20], [0.0, -1.0]]))
    assert growth.transient_growth == pytest.approx(1e20, rel=1e-6)


def test_a_rotation_grows_by_rounding_only():
    rotation = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    assert non_normality_of_map(rotation).transient_growth == pytest.approx(1, abs=0.05)
    assert non_normality_of_flow(np.array([[0.0, 1.0], [-1.0, 0.0]])).transient_growth == pytest.approx(1, abs=0.05)


def test_a_mass_matrix_changes_rates_and_algebraic_equations_have_none():
    a = np.array([[-1.0, 1.0], [0.0, -2.0]])
    result = flow_of(a)
    weighed = stability(Flow(lambda x: torch.as_tensor(a) @ x, mass=np.diag([2.0, 4.0])), torch.zeros(2).double(), k=2)
    np.testing.assert_allclose(np.sort(weighed.eigenvalues.real), [-0.5, -0.5], atol=1e-6)
    assert result.rate == pytest.approx(1)
    constrained = stability(Flow(lambda x: torch.as_tensor(a) @ x, mass=np.diag([1.0, 0.0])), torch.zeros(2).double())
    np.testing.assert_allclose(constrained.eigenvalues.real, [-1.0])


def heat(n, shift=0.0):
    stencil = [np.ones(n - 1), (-2.0 + shift / n**2) * np.ones(n), np.ones(n - 1)]
    return n**2 * scipy.sparse.diags_array(stencil, offsets=[-1, 0, 1]).tocsc()


def heat_values(n, k):
    return -4 * n**2 * np.sin(np.pi * np.arange(1, k + 1) / (2 * (n + 1))) ** 2


def test_large_sparse_flows_have_the_closed_form_spectrum():
    n = 2000
    laplacian = heat(n)
    flow = Flow(lambda x: torch.as_tensor(laplacian @ x.numpy()), jac=lambda x: laplacian)
    result = stability(flow, torch.zeros(n, dtype=torch.float64), k=4)
    np.testing.assert_allclose(result.eigenvalues[:4].real, heat_values(n, 4), rtol=1e-6)
    assert result.verdict == "stable"


def test_a_fast_instability_far_from_zero_is_not_missed():
    n = 2000
    slow = scipy.sparse.diags_array(np.append(-0.01 * np.arange(1, n), 50.0)).tocsc()
    mixing = scipy.sparse.diags_array([1e-3 * np.ones(n - 1)], offsets=[1]).tocsc()
    found = rightmost_eigenvalues(slow + mixing, 4)
    assert found.values.real.max() == pytest.approx(50.0)
    near_zero = shift_invert_eigenvalues(slow + mixing, 0.0, 4)
    assert near_zero.values.real.max() < 0  # which alone would have called it stable
    assert "not searched for" in found.notes[0]


def test_large_maps_are_treated_by_products_alone():
    n = 600
    scale = torch.linspace(0.1, 0.5, n, dtype=torch.float64)
    scale[7] = -0.97
    result = stability(Map(lambda x: scale * x + 0.01 * x.roll(1) ** 2), torch.zeros(n, dtype=torch.float64), k=2)
    assert result.verdict == "stable"
    assert result.eigenvalues[0].real == pytest.approx(-0.97, abs=1e-8)
    assert result.non_normality.sigma_max == pytest.approx(0.97, rel=1e-3)
    assert result.non_normality.numerical_abscissa == pytest.approx(0.5, rel=1e-2)
    assert any("not computed" in b.markdown for b in result.report().blocks if b.kind == "text")


def test_more_neutral_directions_than_k_are_not_hidden():
    n = 600
    scale = torch.ones(n, dtype=torch.float64)
    scale[0] = 0.5
    many = stability(Map(lambda x: scale * x), torch.zeros(n, dtype=torch.float64), k=3, conserved=n - 1)
    assert many.verdict == "undecided"
    assert "copies of equal eigenvalues" in many.notes[-1]
    alone = stability(Map(lambda x: scale * x), torch.zeros(n, dtype=torch.float64), k=1, conserved=1)
    assert alone.verdict == "undecided"
    assert math.isnan(alone.rate)
    assert "raise k" in alone.notes[0]


@pytest.mark.parametrize(
    "matrix", [np.diag([-1.0, -2.0]), np.diag([0.5, -2.0]), conserving(), [[0.0, 1.0], [-1.0, 0.0]]]
)
def test_every_verdict_has_a_report(matrix):
    result = flow_of(matrix)
    report = result.report()
    assert report.verdict == result.verdict
    assert f"{result.eigenvalues[0].real:.4g}" in report.to_html() or result.verdict == "undecided"
    assert "stability boundary" in str(report.to_dict())
    assert map_of(0.5 * np.eye(2)).report().summary.startswith("The equilibrium attracts")


def test_bad_input():
    zero = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"not an equilibrium: the residual is 1.41"):
        stability(Map(lambda x: x + 1), zero)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        stability(Map(lambda x: x / 2), zero, k=0)
    with pytest.raises(ValueError, match="two answers for one state"):
        stability(Map(lambda x: x / 2 + 1e-9 * torch.randn(2).double()), zero, k=1)
    with pytest.raises(TypeError, match="x_star must hold real"):
        stability(Map(lambda x: x / 2), torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="flat vector"):
        stability(Map(lambda x: x / 2), torch.zeros(2, 2))


def test_a_rate_whose_exponential_is_no_float_has_an_infinite_factor():
    found = stability(Flow(lambda x: torch.stack([1000 * x[0], -x[1]])), torch.zeros(2, dtype=torch.float64))
    assert found.abscissa == pytest.approx(1000)
    assert found.radius == math.inf
    assert found.verdict == "unstable"
    found.report().to_dict()
