"""State-dependent Riccati tracking: exact identities of the birotor, and limits in which it is the regulator."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from poise.control import Birotor, NotStabilizable, SDCModel, SDREController, lqr, simulate_tracking
from poise.control.sdre.birotor import cosc, sinc

PLANT = Birotor()
EYE6, EYE2 = torch.eye(6, dtype=torch.float64), torch.eye(2, dtype=torch.float64)


def states(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([10, 10, math.pi / 3, 2, 1, math.pi / 3], dtype=torch.float64)
    return size * (2 * torch.rand(count, 6, generator=generator, dtype=torch.float64) - 1)


def test_series_near_zero():
    a = torch.tensor([0.0, 1e-8, 1.3], dtype=torch.float64)
    torch.testing.assert_close(sinc(a)[2], torch.sin(a[2]) / a[2])
    torch.testing.assert_close(cosc(a), torch.tensor([0.0, -5e-9, (math.cos(1.3) - 1) / 1.3], dtype=torch.float64))
    assert float(sinc(a)[0]) == 1.0


def test_factorisation_of_the_birotor_is_exact():
    xr, e, u = states(50), states(50, 1), 3 * torch.ones(50, 2, dtype=torch.float64)
    A, _ = PLANT.factorize(xr, u, e)
    change = PLANT(xr + e, u) - PLANT(xr, u)
    assert float(((A @ e[..., None])[..., 0] - change).abs().max()) < 1e-12


def test_at_no_error_the_factorisation_is_the_jacobian():
    xr, u = states(4), torch.ones(4, 2, dtype=torch.float64)
    A, B = PLANT.factorize(xr, u, torch.zeros_like(xr))
    for i in range(4):
        jx, ju = torch.func.jacrev(PLANT, argnums=(0, 1))(xr[i], u[i])
        torch.testing.assert_close(A[i], jx, rtol=0, atol=1e-10)
        torch.testing.assert_close(B[i], ju, rtol=0, atol=1e-10)


def test_double_loop_obeys_the_dynamics():
    t = torch.linspace(0, 10, 4001, dtype=torch.float64)
    xs, us = PLANT.double_loop(t)
    slope = (xs[2:] - xs[:-2]) / (t[2] - t[0])
    torch.testing.assert_close(slope, PLANT(xs, us)[1:-1], rtol=0, atol=2e-3)
    first = torch.tensor([-5, 0, 0, 6 * math.pi / 5 + 1, 0], dtype=torch.float64)
    torch.testing.assert_close(xs[0, :5], first, rtol=0, atol=1e-12)
    assert us.min() >= 1.455
    assert us.max() <= 3.445


def test_hover_needs_no_correction():
    controller = SDREController(PLANT.factorize, EYE6, EYE2)
    zero = torch.zeros(6, dtype=torch.float64)
    assert torch.equal(controller(zero, zero, PLANT.hover), PLANT.hover)


def test_for_small_errors_it_is_the_regulator():
    xr, ur = states(1)[0], PLANT.hover
    jx, ju = torch.func.jacrev(PLANT, argnums=(0, 1))(xr, ur)
    K = lqr(jx, ju, EYE6, EYE2)
    e = 1e-7 * states(1, 3)[0]
    got = SDREController(PLANT.factorize, EYE6, EYE2)(xr + e, xr, ur) - ur
    torch.testing.assert_close(got, -K @ e, rtol=1e-4, atol=1e-11)


def test_a_batch_is_its_rows_and_inputs_keep_their_limits():
    controller = SDREController(PLANT.factorize, EYE6, EYE2, 0.5, 4.0)
    x, xr = states(3, 5), states(3)
    ur = PLANT.hover.expand(3, 2)
    together = controller(x, xr, ur)
    alone = torch.stack([controller(x[i], xr[i], ur[i]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert together.min() >= 0.5
    assert together.max() <= 4.0


def test_a_gain_is_held_where_there_is_none():
    reach = {"B": torch.tensor([[1.0], [0.0]])}

    def factorize(xr, ur, e):
        A = torch.diag_embed(torch.stack([torch.ones_like(e[..., 0]), e[..., 1]], -1))
        return A, reach["B"].expand(*e.shape[:-1], 2, 1)

    def call(controller, last):
        zero = torch.zeros(1, dtype=torch.float64)
        return controller(torch.tensor([1.0, last], dtype=torch.float64), torch.zeros(2, dtype=torch.float64), zero)

    eye, one = torch.eye(2), torch.eye(1)
    controller = SDREController(factorize, eye, one)
    good = call(controller, -1.0)
    kept = controller.gain
    call(controller, 1.0)  # the second coordinate grows, and nothing moves it
    assert controller.n_failures == 1
    assert torch.equal(controller.gain, kept)
    assert float(good) == pytest.approx(-(1 + math.sqrt(2)))
    with pytest.raises(NotStabilizable, match="no input moves the mode with eigenvalue 1,"):
        call(SDREController(factorize, eye, one, on_failure="raise"), 1.0)


def test_the_exact_factorisation_tracks_two_loops():
    dt = 1 / 100
    reference = PLANT.double_loop(torch.arange(0, 2 + dt / 2, dt))
    start = reference[0][0].clone()
    start[2:] = 0
    controller = SDREController(PLANT.factorize, EYE6, EYE2, 0.1 * 4.905, 2 * 4.905)
    run = simulate_tracking(PLANT, controller, start, reference, dt)
    error = (run.states - run.reference)[:, :2].norm(dim=-1)
    assert controller.n_failures == 0
    assert error[-1] < 0.5 * error.max()
    assert float(run.rms(slice(0, 2))) == pytest.approx(float(error.square().mean().sqrt()))


def linear_data(count=80, seed=0):
    rng = np.random.default_rng(seed)
    A, B = np.array([[0.0, 1.0], [-1.0, 0.3]]), np.array([[0.0], [1.0]])
    X, U = rng.uniform(-1, 1, (count, 2)), rng.uniform(-1, 1, (count, 1))
    return A, B, X, U, X @ A.T + U @ B.T


def test_a_factorisation_is_learned_from_a_linear_system():
    A, B, X, U, dX = linear_data()
    model = SDCModel(hidden=(32, 32), max_steps=600, lr=3e-3, aux_batch=128, n_aux=500, random_state=1).fit(X, U, dX)
    assert model.score(X, U, dX) > 0.999
    xr, e = torch.zeros(20, 2), torch.as_tensor(np.random.default_rng(2).uniform(-0.5, 0.5, (20, 2)))
    learned, _ = model.factorize(xr, torch.zeros(20, 1), e)
    change = (learned @ e[..., None])[..., 0].detach().numpy()
    exact = e.numpy() @ A.T
    assert 1 - ((change - exact) ** 2).sum() / (exact**2).sum() > 0.999
    a, b = model.linearize(xr[:1], torch.zeros(1, 1))
    np.testing.assert_allclose(a[0].numpy(), A, atol=0.1)
    np.testing.assert_allclose(b[0].numpy(), B, atol=0.1)


def test_an_estimator_that_can_be_cloned_and_repeated():
    _, _, X, U, dX = linear_data(10)
    model = SDCModel(hidden=(4,), max_steps=3, n_aux=10, aux_batch=4)
    state = torch.get_rng_state()
    first, second = model.fit(X, U, dX).predict(X, U), clone(model).fit(X, U, dX).predict(X, U)
    assert np.array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(NotFittedError, match="not fitted yet"):
        SDCModel().predict(X, U)
    with pytest.raises(ValueError, match="joint must be True"):
        SDCModel(hidden=(4,), max_steps=1, joint=False).fit(X, U, dX).factorize(*(torch.zeros(k) for k in (2, 1, 2)))


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        ({"U": np.zeros((9, 1))}, {}, "one row a sample"),
        ({"X": np.full((10, 2), np.nan)}, {}, "X must be finite"),
        ({"X": np.zeros((1, 2)), "U": np.zeros((1, 1)), "dX": np.zeros((1, 2))}, {}, "at least 2 samples"),
        ({}, {"x_bounds": ([0.0], [1.0])}, "x_bounds must be two vectors of 2"),
        ({}, {"e_max": 0.0}, "e_max, lr, max_steps"),
    ],
)
def test_bad_data(changed, settings, message):
    _, _, X, U, dX = linear_data(10)
    with pytest.raises(ValueError, match=message):
        SDCModel(hidden=(4,), max_steps=1, **settings).fit(**({"X": X, "U": U, "dX": dX} | changed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((EYE6, EYE2, 2.0, 1.0), "u_min must be below u_max"),
        ((-EYE6, EYE2), "positive semidefinite"),
        ((EYE6, 0 * EYE2), "R must be positive definite"),
        ((EYE6, EYE2, None, None, "stop"), "on_failure must be"),
    ],
)
def test_bad_controller(arguments, message):
    with pytest.raises(ValueError, match=message):
        SDREController(PLANT.factorize, *arguments)


def test_bad_tracking():
    reference = PLANT.double_loop(torch.arange(0, 0.1, 0.01))
    hold = lambda x, xr, ur: ur  # noqa: E731
    with pytest.raises(ValueError, match="as many states as inputs"):
        simulate_tracking(PLANT, hold, reference[0][0], (reference[0], reference[1][1:]), 0.01)
    with pytest.raises(ValueError, match="dt must be positive"):
        simulate_tracking(PLANT, hold, reference[0][0], reference, 0.0)
    with pytest.raises(ValueError, match=r"x0 must have shape \(\.\.\., 6\)"):
        simulate_tracking(PLANT, hold, torch.zeros(3), reference, 0.01)
