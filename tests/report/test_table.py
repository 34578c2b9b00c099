import json
import math
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.report import Table

cells = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.floats(width=32).map(np.float32)
    | st.integers(-128, 127).map(np.int8) | st.booleans().map(np.bool_) | st.dates()
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells, cells), max_size=8))
def test_round_trip_through_strict_json(rows):
    table = Table("t", ["a", "b"], rows)
    text = json.dumps(table.to_dict(), allow_nan=False)
    back = Table.from_dict(json.loads(text))
    assert back.to_dict() == table.to_dict()
    for row, again in zip(table.rows, back.rows, strict=True):
        for cell, cell_again in zip(row, again, strict=True):
            assert type(cell) is type(cell_again)
            assert cell == cell_again or (math.isnan(cell) and math.isnan(cell_again))


@pytest.mark.parametrize("frame_of", [pd.DataFrame, pl.DataFrame, pa.table])
def test_frames_of_three_libraries_give_the_same_table(frame_of):
    frame = frame_of({"seed": [1, 2], "loss": [0.5, float("inf")], "name": ["a", "b"]})
    table = Table.from_frame("Losses", frame)
    assert table.columns == ["seed", "loss", "name"]
    assert table.rows == [[1, 0.5, "a"], [2, float("inf"), "b"]]


def test_missing_values_of_a_frame_are_missing_in_the_table():
    frame = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "day": pd.to_datetime(["2024-01-02", None])})
    assert Table.from_frame("t", frame).rows[1] == [None, None]


def test_tensors_and_dates_become_plain():
    assert Table("t", ["a", "b"], [[torch.tensor(2.5), date(2024, 1, 2)]]).rows == [[2.5, "2024-01-02"]]


@pytest.mark.parametrize(
    ("columns", "rows", "error", "words"),
    [
        ([], [], ValueError, "columns"),
        ("ab", [], ValueError, "columns.*'ab'"),
        (["a"], [[1, 2]], ValueError, r"rows\[0\].*1 cells"),
        (["a"], ["x"], ValueError, r"rows\[0\].*'x'"),
        (["a"], [[1], [{}]], TypeError, r"rows\[1\], column 'a', .*dict"),
        (["a"], [[np.zeros(3)]], TypeError, r"rows\[0\].*ndarray of shape \(3,\)"),
        (["a"], [[torch.zeros(2)]], TypeError, r"rows\[0\].*Tensor of shape \(2,\)"),
    ],
)
def test_bad_tables_are_named(columns, rows, error, words):
    with pytest.raises(error, match=words):
        Table("t", columns, rows)


def test_what_is_no_frame_is_named():
    with pytest.raises(TypeError, match=r"frame.*got dict"):
        Table.from_frame("t", {"a": [1]})
