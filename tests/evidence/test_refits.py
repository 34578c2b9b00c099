"""Refits: kept results, controls that are trained again, interruption."""

import numpy as np
import pytest

from poise.evidence import Variant, refit


def _sum(data, seed):
    return float(data.sum()) + seed


def test_results_come_by_name_in_the_order_asked_for():
    data = np.arange(4.0)
    variants = {"b": Variant(data, 1), "a": Variant(2 * data, 0)}
    assert list(refit(_sum, variants).items()) == [("b", 7.0), ("a", 12.0)]
    assert refit(_sum, variants, n_jobs=2) == {"b": 7.0, "a": 12.0}


def test_finished_refits_are_kept_and_a_control_is_trained_again(tmp_path):
    calls, data = [], np.arange(4.0)

    def fit(data, seed):
        calls.append(seed)
        return len(calls)

    variants = {"base": Variant(data, 0), "same seed": Variant(data, 0)}
    first = refit(fit, variants, folder=tmp_path)
    assert first == {"base": 1, "same seed": 2}
    assert refit(fit, variants, folder=tmp_path) == first
    assert refit(fit, {"base": Variant(data + 1, 0)}, folder=tmp_path) == {"base": 3}


def test_an_interruption_returns_what_is_there_and_a_second_call_continues(tmp_path):
    stop, done = [True], []

    def fit(data, seed):
        if seed == 2 and stop:
            raise KeyboardInterrupt
        return seed

    variants = {str(seed): Variant(np.zeros(1), seed) for seed in range(4)}
    assert refit(fit, variants, folder=tmp_path) == {"0": 0, "1": 1}
    stop.clear()
    found = refit(fit, variants, folder=tmp_path, progress=lambda done_, of: done.append((done_, of)))
    assert found == {str(seed): seed for seed in range(4)}
    assert done == [(2, 4), (3, 4), (4, 4)]


def test_an_error_of_the_training_is_not_hidden():
    def fit(data, seed):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        refit(fit, {"base": Variant(np.zeros(1), 0)})
