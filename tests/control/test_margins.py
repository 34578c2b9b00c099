"""Margins: textbook values, closed forms, and loops moved onto their margin."""

import math

import numpy as np
import pytest

from poise.control import LinearLoop, largest_stable, margins, sampling_margin
from poise.control.linear.margins import gain_crossings, phase_crossings

THIRD_ORDER = LinearLoop.from_coefficients([2.0], [1.0, 3.0, 2.0, 0.0])


def test_third_order_loop_in_continuous_time():
    found = margins(THIRD_ORDER)
    # s^3 + 3 s^2 + 2 s + 2 k has a root on the axis at 2 k = 6, s = j sqrt(2).
    assert (found.gain, found.gain_frequency) == pytest.approx((3.0, math.sqrt(2)), rel=1e-9)
    assert found.gain_low == 0.0


def test_third_order_loop_sampled():
    found = margins(THIRD_ORDER.sampled(0.05))
    assert (found.gain, found.gain_frequency) == pytest.approx((2.79, 1.36), abs=0.005)
    assert found.phase == pytest.approx(31.5, abs=0.05)
    assert found.phase_frequency == pytest.approx(0.749, abs=5e-4)
    # A lag of ω dt / 2 is what a hold costs: 32.6 degrees without sampling.
    held = margins(THIRD_ORDER).phase - math.degrees(found.phase_frequency * 0.05 / 2)
    assert found.phase == pytest.approx(held, abs=0.05)


def test_delay_margin_of_an_integrator():
    found = margins(LinearLoop.from_coefficients([1.0], [1.0, 0.0]))
    assert found.delay == pytest.approx(math.pi / 2, rel=1e-12)
    assert found.phase == pytest.approx(90.0, rel=1e-12)
    assert found.gain == math.inf


def test_conditionally_stable_loop_has_two_gain_margins():
    """L = k (s + 1)^2 / s^3: s^3 + k (s + 1)^2 is stable exactly for k > 1/2."""
    found = margins(LinearLoop.from_coefficients([1.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.0]))
    assert found.gain == math.inf
    assert (found.gain_low, found.gain_low_frequency) == pytest.approx((0.5, 1.0), rel=1e-6)


def test_unstable_plant_has_a_lower_gain_margin_at_frequency_zero():
    found = margins(LinearLoop.from_coefficients([3.0], [1.0, -1.0]))  # k > 1/3
    assert (found.gain_low, found.gain_low_frequency) == pytest.approx((1 / 3, 0.0), rel=1e-12)


def test_sampled_integrator_flips_its_sign_at_its_gain_margin():
    loop = LinearLoop([[1.0]], [0.1], [4.0], dt=0.1)  # the closed loop 1 - 0.4 k
    assert (margins(loop).gain, margins(loop).gain_frequency) == pytest.approx((5.0, math.pi / 0.1), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dt", [None, 0.2])
def test_at_its_gain_margin_a_loop_is_neutral(seed, dt):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((4, 4))
    A -= (np.linalg.eigvals(A).real.max() + 0.3) * np.eye(4)
    loop = LinearLoop(A, rng.standard_normal(4), 0.1 * rng.standard_normal(4))
    loop = loop if dt is None else loop.sampled(dt)
    found = margins(loop)
    for factor in (found.gain, found.gain_low):
        if 0 < factor < math.inf:
            values = np.linalg.eigvals(loop.A - factor * loop.B @ loop.C)
            growth = values.real.max() if dt is None else np.abs(values).max() - 1
            assert growth == pytest.approx(0, abs=1e-8)
    # No crossing was missed: on a fine grid the sign of what vanishes changes only there.
    grid = np.linspace(1e-3, 30 if dt is None else math.pi / dt - 1e-3, 4001)
    values = loop.response(grid)
    for crossings, quantity in ((phase_crossings(loop), values.imag), (gain_crossings(loop), np.abs(values) - 1)):
        for i in np.flatnonzero(np.diff(np.sign(quantity))):
            assert ((crossings >= grid[i] - 1e-9) & (crossings <= grid[i + 1] + 1e-9)).any()


def test_a_sampled_loop_bears_every_whole_delay_below_its_margin_and_not_the_next():
    loop = LinearLoop.from_coefficients([1.0], [1.0, 0.0]).sampled(0.1)
    bears = margins(loop).delay / 0.1
    for delay in range(1, 20):
        A = np.diag(np.ones(delay), -1)
        A[0, 0], A[0, -1] = 1.0, -0.1  # x+ = x - 0.1 x[delay steps ago]
        assert (np.abs(np.linalg.eigvals(A)).max() < 1) == (delay < bears)


def test_an_unstable_loop_has_no_margins():
    with pytest.raises(ValueError, match=r"loop must be stable when it is closed.*eigenvalue 2"):
        margins(LinearLoop.from_coefficients([-3.0], [1.0, 1.0]))


def test_semi_implicit_euler_without_damping():
    inertia, dt = 0.3, 0.02

    def closed(kp):
        return np.array([[1 - dt * dt * kp / inertia, dt], [-dt * kp / inertia, 1.0]])

    assert largest_stable(closed, 1.0, 1e6, kind="map") == pytest.approx(4 * inertia / dt**2, rel=1e-9)


def test_sampling_margin_of_a_pure_gain_loop_and_of_a_stable_plant():
    assert sampling_margin([[0.0]], [[1.0]], [[4.0]]) == pytest.approx(0.5, rel=1e-6)
    # e^(-dt) - k (1 - e^(-dt)) = -1
    assert sampling_margin([[-1.0]], [[1.0]], [[3.0]]) == pytest.approx(math.log(2), rel=1e-6)
    assert sampling_margin([[-1.0]], [[1.0]], [[0.5]]) == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearLoop(np.eye(2), np.ones(3), np.ones(2)), "B and C must hold 2 numbers"),
        (lambda: LinearLoop([[math.nan]], [1.0], [1.0]), "A must be finite"),
        (lambda: LinearLoop([[1.0]], [1.0], [1.0], dt=0.0), "dt must be positive"),
        (lambda: LinearLoop.from_coefficients([1.0, 0.0], [1.0]), "denominator must have at least the degree"),
        (lambda: LinearLoop([[0.5]], [1.0], [1.0], dt=1.0).sampled(0.1), "sampled already"),
        (lambda: sampling_margin([[1.0]], [[1.0]], [[0.5]]), "stable without sampling.*0.5"),
        (lambda: largest_stable(lambda k: [[k]], 2.0, 3.0, kind="map"), "stable at low = 2"),
        (lambda: largest_stable(lambda k: [[k]], 0.5, 3.0, kind="step"), "kind must be"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
