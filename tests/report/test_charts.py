import numpy as np
import plotly.express as px
import plotly.graph_objects as go
import pytest

from poise.report import Figure, bar_chart, line_chart, scatter_chart


def test_long_lines_are_thinned_and_keep_their_spike():
    y = np.zeros(200_000)
    y[123_457] = 7
    trace = line_chart("t", {"a": (np.arange(200_000), y)}, "x", "y").figure.data[0]
    assert len(trace.y) <= 5000
    assert trace.x[np.argmax(trace.y)] == 123_457


def test_a_band_shares_the_colour_of_its_curve():
    x = np.arange(10)
    chart = line_chart("t", {"a": (x, x), "b": (x, x)}, "x", "y", bands={"b": (x, x - 1, x + 1)})
    by_name = {trace.name: trace for trace in chart.figure.data}
    color = by_name["b"].line.color
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    assert by_name["b (high)"].fillcolor.startswith(f"rgba({red},{green},{blue},")
    np.testing.assert_array_equal(by_name["b (low)"].y, x - 1)
    np.testing.assert_array_equal(by_name["b (high)"].y, x + 1)


def test_markers_stand_where_they_are_told():
    x = np.arange(10)
    figure = line_chart("t", {"a": (x, x)}, "x", "y", markers={"<b>onset": 3, "end": 8}).figure
    assert sorted(shape.x0 for shape in figure.layout.shapes) == [3, 8]
    assert "&lt;b>onset" in {note.text for note in figure.layout.annotations}


def test_a_log_axis_says_what_it_cannot_show():
    chart = line_chart("t", {"a": ([0, 1, 2], [0.0, 1.0, -3.0])}, "x", "y", log_y=True)
    assert "2 of a" in chart.caption
    assert line_chart("t", {"a": ([0, 1], [1.0, 2.0])}, "x", "y", log_y=True).caption is None


def test_alt_is_made_from_the_numbers():
    alt = line_chart("t", {"a": ([0, 1, 2], [1.0, 9.0, float("nan")])}, "step", "loss").alt
    for word in ("loss", "step", "from 1 to NaN", "highest 9 at 1"):
        assert word in alt
    assert "no points" in line_chart("t", {"a": ([], [])}, "x", "y").alt
    assert "b: 2" in bar_chart("t", {"a": 1, "b": 2.0}, "y").alt


def test_the_data_table_holds_extremes_and_says_that_it_is_thinned():
    y = np.zeros(1000)
    y[777] = 5.0
    table = line_chart("t", {"a": (np.arange(1000), y)}, "step", "loss").data_table()
    assert table.columns == ["series", "step", "loss"]
    assert ["a", 777, 5] in table.rows
    assert len(table.rows) <= 42
    assert table.caption


def test_figures_of_other_makers_have_data_tables_too():
    figure = Figure("t", px.scatter(x=["u", "v"], y=[1, 2]), "two points")
    assert [row[1:] for row in figure.data_table().rows] == [["u", 1], ["v", 2]]
    assert Figure("t", go.Figure(go.Heatmap(z=[[1, 2]])), "a map").data_table() is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: line_chart("t", {}, "x", "y"), "series"),
        (lambda: line_chart("t", {"a": ([1], [1, 2])}, "x", "y"), r"series\['a'\].*\(1,\) and \(2,\)"),
        (lambda: scatter_chart("t", {"a": ([[1]], [[1]])}, "x", "y"), r"series\['a'\]"),
        (lambda: line_chart("t", {"a": ([1], [1])}, "x", "y", bands={"b": ([1], [1], [1])}), "bands.*'b'"),
        (lambda: line_chart("t", {"a": ([1], [1])}, "x", "y", bands={"a": ([1], [1], [1, 2])}), r"bands\['a'\]"),
        (lambda: bar_chart("t", {}, "y"), "bars"),
        (lambda: bar_chart("t", {"a": 1}, "y", errors={"b": (0, 1)}), "errors.*'b'"),
        (lambda: bar_chart("t", {"a": 1}, "y", errors={"a": (2, 3)}), r"errors\['a'\]"),
        (lambda: Figure("t", go.Figure(), " "), "alt"),
    ],
)
def test_bad_charts_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_no_figure_is_named():
    with pytest.raises(TypeError, match=r"figure.*dict"):
        Figure("t", {}, "alt")


X = np.arange(300)
CHARTS = {
    "line": lambda: line_chart("t", {"a": (X, X / 7.0), "b": (X, np.where(X == 5, np.nan, X))}, "x", "y"),
    "one point": lambda: line_chart("t", {"a": ([1], [2])}, "x", "y"),
    "no points": lambda: line_chart("t", {"a": ([], [])}, "x", "y"),
    "logarithm": lambda: line_chart("t", {"a": (X * 10**12, 10.0 ** (X / 60))}, "x", "y", log_y=True),
    "markers": lambda: line_chart("t", {"a": (X, X)}, "x", "y", markers={"<b>one": 3, "two": 200}),
    "bands": lambda: line_chart("t", {"a": (X, X)}, "x", "y", bands={"a": (X, X - 1, X + 1)}),
    "names": lambda: scatter_chart("t", {"a": (["u", "v"], [1, np.inf])}, "x", "y"),
    "dates": lambda: line_chart("t", {"a": (np.array(["2026-01-01", "2026-01-02"], "M8[ns]"), [1, 2])}, "x", "y"),
    "small numbers": lambda: scatter_chart("t", {"a": (np.float32([0.5]), [1]), "b": ([True], [2])}, "x", "y"),
    "bars": lambda: bar_chart("t", {"a": 1, "b": 2}, "y", errors={"b": (1.5, 3)}),
}


@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
def test_a_chart_is_written_as_plotly_would_write_it(make):
    chart = make()
    written = chart.to_json()
    chart.figure.update_layout()  # from here on it is a Plotly figure, which checks every setting
    assert written == chart.to_json()


def test_a_figure_made_of_a_dict_can_be_changed_and_is_checked():
    chart = line_chart("t", {"a": ([0, 1], [1, 2])}, "x", "y")
    chart.figure.update_yaxes(type="log")
    assert chart.has_log_y
    assert chart.to_json()["layout"]["yaxis"]["type"] == "log"
    with pytest.raises(ValueError, match="colour"):
        _ = Figure("t", {"data": [{"type": "scatter", "colour": 1}]}, "alt").figure


def test_equal_figures_are_equal_whatever_they_are_made_of():
    parts = {"data": [{"type": "bar", "y": [1.0, 2.0]}], "layout": {"xaxis": {"title": {"text": "x"}}}}
    assert Figure("t", parts, "alt") == Figure("t", go.Figure(parts), "alt")
    assert Figure("t", parts, "alt") != Figure("u", parts, "alt")
    assert Figure("t", {"data": [], "layout": {"xaxis": {"title": "steps"}}}, "alt").data_table() is None
    assert Figure("t", {**parts, "layout": {"xaxis": {"title": "steps"}}}, "alt").data_table().columns[1] == "steps"
