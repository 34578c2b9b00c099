"""Series and records in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.store import Event, Record, Series


def example() -> Record:
    return Record.from_arrays(
        {
            "loss": ([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0]),
            "grad_norm[a.weight]": ([1, 3], [0.1, 0.3]),
            "grad_norm[b]": ([3], [7.0]),
            "opt1/loss": ([0, 5], [10.0, 20.0]),
        },
        events=[
            Event(2, "optimizer", {"timeline": "", "class": "SGD"}),
            Event(0, "optimizer", {"timeline": "opt1/", "class": "Adam"}),
            Event(1, "model", {"class": "Net"}),
        ],
        meta={"script": "train.py"},
    )


def test_series_is_immutable_and_independent_of_the_arrays_it_was_made_of():
    steps, values = np.array([0, 1]), np.array([1.0, 2.0])
    series = Series(steps, values)
    values[0] = 99.0
    assert series.values[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        series.values[0] = 5.0
    with pytest.raises(AttributeError):
        series.steps = steps  # type: ignore[misc]
    assert steps.flags.writeable


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([1, 0], [1.0, 2.0], "sorted"),
        ([0, 1], [1.0], "one length"),
        ([[0]], [[1.0]], "vectors"),
        ([0.5], [1.0], "steps must be integers"),
    ],
)
def test_series_refuses_what_does_not_fit(steps, values, message):
    with pytest.raises(ValueError, match=message):
        Series(np.array(steps), np.array(values))


@given(st.lists(st.tuples(st.integers(-5, 30), st.floats(allow_nan=False)), max_size=40), st.integers(-6, 31))
def test_a_signal_is_the_stable_sort_of_its_rows_and_until_is_a_filter(rows, step):
    record = Record.from_arrays({"x": ([r[0] for r in rows], [r[1] for r in rows])})
    expected = sorted(rows, key=lambda row: row[0])
    series = record["x"]
    assert list(zip(series.steps, series.values, strict=True)) == expected
    early = [row for row in expected if row[0] <= step]
    for cut in (series.until(step), record.until(step)["x"]):
        assert list(zip(cut.steps, cut.values, strict=True)) == early
    assert ("x" in record.until(step)) == bool(early)
    assert record.until(step).last_step == (early[-1][0] if early else -1)


def test_names_membership_and_absent_signals():
    record = example()
    assert record.names == ["loss", "grad_norm[a.weight]", "grad_norm[b]", "opt1/loss"]
    assert list(record) == record.names
    assert "loss" in record
    assert "lr" not in record
    assert len(record["lr"]) == 0
    assert record["lr"].steps.dtype == np.int64
    assert record.meta == {"script": "train.py"}
    assert record.last_step == 5


def test_by_layer_takes_the_text_between_the_brackets():
    layers = example().by_layer("grad_norm")
    assert list(layers) == ["a.weight", "b"]
    assert layers["a.weight"].values.tolist() == [0.1, 0.3]
    assert example().by_layer("grad") == {}


def test_events_are_sorted_by_step_and_chosen_by_kind():
    record = example()
    assert [event.step for event in record.events()] == [0, 1, 2]
    assert [event.payload["class"] for event in record.events("optimizer")] == ["Adam", "SGD"]
    assert record.events("nothing") == []


def test_until_is_the_record_of_a_run_that_ended_there():
    record = example()
    for step in range(-1, 7):
        cut = record.until(step)
        assert cut.names == [name for name in record.names if record[name].steps[0] <= step]
        assert [e.step for e in cut.events()] == [e.step for e in record.events() if e.step <= step]
        assert all(cut[name].steps[-1] <= step for name in cut.names)
    assert record.until(3).until(1).last_step == 1
    assert record.until(1).until(3).last_step == 1


def test_a_timeline_shows_its_own_signals_and_events():
    record = example()
    assert record.timelines == ["", "opt1/"]
    first, second = record.timeline(""), record.timeline("opt1/")
    assert first.names == ["loss", "grad_norm[a.weight]", "grad_norm[b]"]
    assert second.names == ["loss"]
    assert first["loss"].values[0] == 4.0
    assert second["loss"].values.tolist() == [10.0, 20.0]
    assert len(first["opt1/loss"]) == 0
    assert [event.kind for event in first.events()] == ["model", "optimizer"]
    assert [event.payload["class"] for event in second.events("optimizer")] == ["Adam"]
    assert (first.last_step, second.last_step) == (3, 5)
    assert second.until(4).last_step == 1
    assert second.timelines == [""]
    with pytest.raises(ValueError, match=r"prefix must be one of \['', 'opt1/'\], got 'opt2/'"):
        record.timeline("opt2/")


def test_an_error_in_the_arrays_names_the_signal():
    with pytest.raises(ValueError, match="signal 'loss': steps and values"):
        Record.from_arrays({"loss": ([0, 1], [1.0])})


def test_an_empty_record():
    record = Record.from_arrays({})
    assert (record.names, record.events(), record.last_step, record.timelines) == ([], [], -1, [""])
    assert record.refresh() is record


def test_what_is_derived_from_a_view_is_computed_once_until_something_new_is_there():
    record = Record.from_arrays({"x": ([0, 1], [3.0, 4.0])})
    asked = []

    def largest(view):
        asked.append(view)
        return view["x"].values.max()

    assert [record.derive(largest), record.derive(largest)] == [4.0, 4.0]
    assert record.until(0).derive(largest) == 3.0  # another view, another value
    assert len(asked) == 2
    assert record.derive(lambda view: view["x"].values.min()) == 3.0
