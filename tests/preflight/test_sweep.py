import math
import os

import joblib
import numpy as np
import pytest
import torch

from poise.preflight import SweepResult, sweep

LRS = [0.01, 0.1, 1.0]


def bowl(lr, seed, size=1):
    """A loss that is lowest at lr = 0.1 / size and diverges at ten times that."""
    loss = math.log10(lr * size / 0.1) ** 2 + 0.01 * seed
    return {"loss": loss if lr * size < 1 else math.nan, "init_loss": 5.0, "grad_rms": lr * size, "pid": os.getpid()}


def sgd(lr, seed):
    """A real run: SGD on a quadratic with curvature 2, stable below lr = 1."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr)
    initial = (theta**2).sum()
    for _ in range(30):
        optimizer.zero_grad()
        (theta**2).sum().backward()
        optimizer.step()
    return {"loss": (theta**2).sum(), "init_loss": initial}


def test_every_combination_is_run_once_and_lands_in_its_place():
    result = sweep(bowl, [0.1, 0.01, 1.0], sizes=[1, 10], seeds=[3, 5], n_jobs=1)
    assert (result.lrs, result.sizes, result.seeds) == ((0.01, 0.1, 1.0), (1, 10), (3, 5))
    assert [(p.size, p.lr, p.seed) for p in result.points] == [
        (n, lr, s) for n in (1, 10) for lr in LRS for s in (3, 5)
    ]
    np.testing.assert_allclose(result.curve(1).losses, [[1.03, 1.05], [0.03, 0.05], [math.nan] * 2])
    np.testing.assert_allclose(result.signal("grad_rms", 10), [[0.1] * 2, [1.0] * 2, [10.0] * 2])
    assert result.curve(10).best_lr == 0.01


def test_a_real_instability_is_found_where_theory_has_it():
    curve = sweep(sgd, [0.01, 0.1, 0.5, 0.9, 1.1, 3.0], seeds=2, n_jobs=1).curve()
    assert curve.best_lr == 0.5
    assert curve.diverged.all(axis=1).tolist() == [False, False, False, False, True, True]


def test_workers_do_not_change_the_result():
    alone = sweep(sgd, LRS, seeds=2, n_jobs=1)
    with joblib.parallel_config("threading", n_jobs=2):
        assert sweep(sgd, LRS, seeds=2) == alone


@pytest.mark.slow
def test_processes_take_closures_and_leave_this_process():
    offset = 1.0
    result = sweep(lambda lr, seed: {**bowl(lr, seed), "offset": offset}, [0.01, 0.02], n_jobs=2)
    assert os.getpid() not in result.signal("pid")
    assert (result.signal("offset") == 1.0).all()


def test_a_backend_that_cannot_stream_works_too():
    with joblib.parallel_config("multiprocessing", n_jobs=2):
        result = sweep(bowl, LRS)
    np.testing.assert_allclose(result.curve().losses, sweep(bowl, LRS, n_jobs=1).curve().losses)


def test_progress_sees_every_run_and_the_largest_size_first():
    seen = []
    sweep(bowl, LRS, sizes=[1, 2], n_jobs=1, progress=lambda point, done, total: seen.append((point.size, done, total)))
    assert seen == [(2, 1, 6), (2, 2, 6), (2, 3, 6), (1, 4, 6), (1, 5, 6), (1, 6, 6)]


def test_rows_are_flat_and_make_a_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(sweep(bowl, LRS, seeds=2, n_jobs=1).rows())
    assert list(frame.columns) == ["size", "lr", "seed", "loss", "init_loss", "stopped_at", "grad_rms", "pid"]
    assert len(frame) == 6


def test_report_has_a_curve_per_size():
    report = sweep(bowl, LRS, sizes=[1, 10], n_jobs=1).report()
    assert {trace.name for trace in report.blocks[0].figure.data} >= {"size 1", "size 10"}
    assert "size 10: best at lr 0.01" in report.summary


def test_an_absent_signal_or_size_is_an_error():
    result = sweep(bowl, LRS, sizes=[1, 2], n_jobs=1)
    with pytest.raises(ValueError, match=r"name must be a signal of the sweep, one of \['grad_rms', 'pid'\]"):
        result.signal("loss_scale", 1)
    for size in (3, None):
        with pytest.raises(ValueError, match="size must be one of"):
            result.curve(size)


def test_a_signal_that_some_runs_lack_is_nan_there():
    def train(lr, seed):
        return {"loss": 1.0, "init_loss": 2.0, **({"late": 1.0} if lr < 1 else {})}

    assert np.isnan(sweep(train, LRS, n_jobs=1).signal("late")).tolist() == [[False], [False], [True]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrs": [0.1, 0.1]}, "lrs must be distinct"),
        ({"lrs": [0.0, 0.1]}, "lrs must be positive"),
        ({"lrs": []}, "lrs must be a list"),
        ({"sizes": [2, 1]}, "sizes must be positive and strictly increasing"),
        ({"sizes": []}, "sizes must be"),
        ({"seeds": 0}, "seeds must be at least one"),
        ({"seeds": [1, 1]}, "seeds must be at least one, and distinct"),
    ],
)
def test_bad_grids(settings, message):
    with pytest.raises(ValueError, match=message):
        sweep(bowl, **{"lrs": LRS, **settings})


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"loss": 1.0}, r"train\(lr=0.5, seed=0\) must return a mapping with 'loss' .* got \['loss'\]"),
        ({"accuracy": 1.0, "init_loss": 1.0}, "lower is better"),
        (3.0, "got float"),
        ({"loss": 1.0, "init_loss": math.nan}, "finite 'init_loss'"),
        ({"loss": "low", "init_loss": 1.0}, "'loss' must be a number, got str"),
        ({"loss": torch.zeros(2), "init_loss": 1.0}, "'loss' must be a number, got Tensor"),
    ],
)
def test_bad_runs(out, message):
    with pytest.raises(ValueError, match=message):
        sweep(lambda lr, seed: out, [0.5], n_jobs=1)


def test_an_error_inside_a_run_is_the_callers_to_see():
    def train(lr, seed):
        raise FloatingPointError("overflow in step 3")

    with pytest.raises(FloatingPointError, match="step 3"):
        sweep(train, LRS, n_jobs=1)


def test_result_type():
    assert isinstance(sweep(bowl, LRS, n_jobs=1), SweepResult)
