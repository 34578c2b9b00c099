import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from poise.preflight import LRCurve, lr_report, lr_sensitivity, max_trainable_lr
from poise.report import Figure, Report, Table

LRS = [1e-3, 1e-2, 1e-1, 1.0]
losses = arrays(float, (4, 2), elements=st.floats(-5, 10))


def test_a_constant_curve_has_no_sensitivity():
    assert lr_sensitivity(LRCurve(LRS, [2.0] * 4, 4.0)).value == 0


def test_closed_form():
    curve = LRCurve([0.01, 0.1, 1.0], [[2.0, 1.0], [3.0, 1.0], [math.nan, 9.0]], 4.0)
    found = lr_sensitivity(curve)
    assert found.per_seed == pytest.approx([(2 + 3 + 4) / 3 - 2, (1 + 1 + 4) / 3 - 1])
    assert found.value == pytest.approx(1.0)
    assert not found.meaningless


@given(losses=losses, shift=st.floats(-100, 100))
def test_a_constant_added_to_all_losses_changes_nothing(losses, shift):
    # A shift may absorb a difference of rounding size and so turn "just better" into "not better", by that size.
    before, after = (lr_sensitivity(LRCurve(LRS, losses + c, 4.0 + c)).value for c in (0.0, shift))
    assert after == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 7.0])
def test_a_diverged_run_counts_as_the_loss_at_initialisation(bad):
    curve, plain = (LRCurve(LRS, [2.0, 1.0, 3.0, last], 4.0) for last in (bad, 4.0))
    assert lr_sensitivity(curve) == lr_sensitivity(plain)
    assert curve.diverged.tolist() == [[False], [False], [False], [True]]


@given(losses=losses)
def test_sensitivity_lies_between_zero_and_the_whole_gain(losses):
    curve = LRCurve(LRS, losses, 4.0)
    for value, column in zip(lr_sensitivity(curve).per_seed, curve.effective_losses.T, strict=True):
        assert -1e-12 <= value <= 4.0 - column.min() + 1e-12


def test_range_restricts_the_grid():
    curve = LRCurve(LRS, [9.0, 2.0, 1.0, 3.0], 10.0)
    assert lr_sensitivity(curve, (1e-2, 1.0)).value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 3 learning rates"):
        lr_sensitivity(curve, (1e-2, 1e-1))
    with pytest.raises(ValueError, match="lr_range must hold"):
        lr_sensitivity(curve, (2.0, 3.0))


def test_nothing_trains():
    curve = LRCurve(LRS, [math.nan, math.inf, 4.0, 5.0], 4.0)
    found = lr_sensitivity(curve)
    assert (found.value, found.meaningless) == (0, True)
    assert (max_trainable_lr(curve).lr, max_trainable_lr(curve).first_failing) == (None, 1e-3)
    assert "no stable LR in range" in lr_report({"all runs": curve}).summary


def test_largest_trainable_rate_needs_every_seed_and_every_rate_from_the_optimum():
    curve = LRCurve(LRS, [[3.9, 3.9], [1.0, 1.0], [2.0, 2.4], [3.0, 2.0]], 4.0)
    edge = max_trainable_lr(curve)
    assert (edge.lr, edge.first_failing) == (0.1, 1.0)
    edge = max_trainable_lr(curve, keep=0.6)  # the second seed at 0.1 keeps only 53 %
    assert (edge.lr, edge.first_failing) == (0.01, 0.1)
    edge = max_trainable_lr(curve, keep=0.2)
    assert (edge.lr, edge.first_failing) == (1.0, None)


@given(losses=losses, a=st.floats(0.01, 1), b=st.floats(0.01, 1))
def test_asking_for_more_never_raises_the_largest_trainable_rate(losses, a, b):
    curve = LRCurve(LRS, losses, 4.0)
    assume(not curve.diverged.all())
    loose, strict = (max_trainable_lr(curve, keep).lr or 0 for keep in sorted((a, b)))
    assert strict <= loose


@pytest.mark.parametrize("keep", [0, -1, 1.1, math.nan])
def test_bad_keep(keep):
    with pytest.raises(ValueError, match="keep must lie in"):
        max_trainable_lr(LRCurve(LRS, [1.0] * 4, 2.0), keep)


@pytest.mark.parametrize(
    ("lrs", "losses", "init", "message"),
    [
        ([1, 0], [1, 1], 2, "lrs must be positive"),
        ([1, math.nan], [1, 1], 2, "lrs must be positive"),
        ([1, 1], [1, 1], 2, "lrs must be distinct"),
        ([2, 1], [1, 1], 2, "strictly increasing"),
        ([], [], 2, "lrs must be a list"),
        ([1, 2], [1, 1, 1], 2, "losses must have shape"),
        ([1, 2], [1, 1], [2], "init_losses must be"),
        ([1, 2], [1, 1], math.nan, "init_losses must be finite"),
    ],
)
def test_bad_curves(lrs, losses, init, message):
    with pytest.raises(ValueError, match=message):
        LRCurve(lrs, losses, init)


def test_report_shows_curves_on_a_logarithmic_axis_and_says_where_training_fails():
    wide = LRCurve(LRS, [[2.0, 2.2], [1.0, 1.1], [1.5, 1.4], [4.5, math.nan]], 4.0)
    narrow = LRCurve(LRS[:2], [2.0, 1.0], 4.0)
    report = lr_report({"size 2": wide, "size 1": narrow})
    assert isinstance(report, Report)
    assert "size 2: best at lr 0.01 (loss 1.050), trains up to 0.1, fails at 1." in report.summary
    assert "trains up to 0.01, the end of the grid" in report.summary
    figure, table = report.blocks
    assert isinstance(figure, Figure)
    assert figure.figure.layout.xaxis.type == "log"
    drawn = next(trace for trace in figure.figure.data if trace.name == "size 2")
    np.testing.assert_allclose(drawn.y, [2.1, 1.05, 1.45, 4.0])
    assert isinstance(table, Table)
    assert table.rows[0][3] == pytest.approx(lr_sensitivity(wide).value)
    assert table.rows[1][3] is None
    assert Report.from_dict(report.to_dict()).to_dict() == report.to_dict()


def test_an_optimum_next_to_failure_is_pointed_out():
    curve = LRCurve([0.01, 0.03, 0.1], [2.0, 1.0, 4.5], 4.0)
    assert "half a decade" not in lr_report({"all runs": LRCurve(LRS, [2.0, 1.0, 4.5, 4.5], 4.0)}).summary
    assert "fails at 0.1. The optimum is within half a decade of it." in lr_report({"all runs": curve}).summary


def test_a_report_needs_a_curve():
    with pytest.raises(ValueError, match="at least one curve"):
        lr_report({})
