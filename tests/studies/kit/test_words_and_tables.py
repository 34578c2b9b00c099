import math

import numpy as np
import pytest

from poise.evidence import compare_paired
from poise.report import line_chart
from poise.studies.kit.tables import log_x, mean_table, record_table, seed_chart, seed_table
from poise.studies.kit.words import difference, interval, listed, mean_and_span, span


def test_numbers_over_seeds_in_words():
    assert listed([1, 0.25], "+.2f") == "+1.00, +0.25"
    assert listed([math.inf, 0.5], ".1f", "never reached") == "never reached, 0.5"
    assert interval(-0.1, 0.2, "+.1f") == "95 % interval -0.1 to +0.2"
    assert span([0.5, 0.25, 1.0], ".2f") == "0.25 to 1.00"
    assert mean_and_span(np.array([1.0, 3.0]), "+.1f") == "+2.0 (+1.0 to +3.0)"
    paired = compare_paired([1.0, 2.0, 3.0], [0.5, 1.6, 2.4])
    low, high = paired.interval
    assert difference(paired, "+.2f", "points") == f"-0.50 points (95 % interval {low:+.2f} to {high:+.2f})"


def test_a_table_has_mean_and_range_of_every_setting():
    values = {("A", 1): [1.0, 3.0], ("B", 2): np.array([5.0, 4.0])}
    table = seed_table("T", ["arm", "size"], values, "loss", "c", {"note": ["x", None]})
    assert list(table.columns) == ["arm", "size", "loss", "lowest seed", "highest seed", "note"]
    assert [list(row) for row in table.rows] == [["A", 1, 2.0, 1.0, 3.0, "x"], ["B", 2, 4.5, 4.0, 5.0, None]]


def test_a_chart_has_the_mean_in_a_band_of_all_seeds():
    figure = seed_chart("T", {"A": ([1, 2], [[1.0, 2.0], [3.0, 6.0]])}, "x", "y").figure
    drawn = [list(trace.y) for trace in figure.data]
    assert [2.0, 4.0] in drawn
    assert [1.0, 2.0] in drawn
    assert [3.0, 6.0] in drawn


def test_a_table_of_means_keeps_single_entries_as_they_are():
    rows = {("A", 1): [np.array([1.0, 2.0]), 7, "yes"], ("B", 2): [[5.0, 6.0], None, ""]}
    table = mean_table("T", ["arm", "size"], ["loss", "steps", "chosen"], rows, "c")
    assert list(table.columns) == ["arm", "size", "loss", "steps", "chosen"]
    assert [list(row) for row in table.rows] == [["A", 1, 1.5, 7, "yes"], ["B", 2, 5.5, None, ""]]


def test_a_chart_gets_a_logarithmic_axis():
    figure = line_chart("T", {"A": ([1, 10], [1.0, 2.0])}, "x", "y")
    assert log_x(figure) is figure
    assert figure.figure.layout.xaxis.type == "log"


def test_a_table_of_records_has_the_columns_that_they_name():
    table = record_table("T", [{"arm": "A", "loss": 1.0}, {"arm": "B", "loss": None}], "c")
    assert list(table.columns) == ["arm", "loss"]
    assert [list(row) for row in table.rows] == [["A", 1.0], ["B", None]]
    with pytest.raises(ValueError, match="at least one row"):
        record_table("T", [])
    with pytest.raises(ValueError, match=r"columns \['arm'\], got one with \['loss'\]"):
        record_table("T", [{"arm": "A"}, {"loss": 1.0}])
