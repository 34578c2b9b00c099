"""A monitor over files: chunks across files, resuming, formats, exit codes."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from typer.testing import CliRunner

from poise.cli.app import app
from poise.shift import CBPE, ByNumber, Monitor, WeightedCBPE
from poise.shift.monitor import monitor as module

ROLES = {"y_true": "y", "y_score": "p", "features": ["x", "z"]}


@pytest.fixture
def folder(tmp_path, reference):
    reference.to_parquet(tmp_path / "reference.parquet")
    return tmp_path


def estimates(made):
    with (made.folder / "estimates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fitted(folder, name="monitor", estimator=None, **roles):
    estimator = CBPE(["accuracy", "roc_auc"], chunk=700) if estimator is None else estimator
    return Monitor.fit(folder / name, folder / "reference.parquet", estimator, **{**ROLES, **roles})


def test_one_file_or_ten_or_ten_days_give_the_same_estimates(folder, production):
    production.to_parquet(folder / "all.parquet")
    parts = []
    for i in range(10):
        parts.append(folder / f"part{i}.csv")
        production.iloc[400 * i : 400 * (i + 1)].to_csv(parts[-1], index=False)
    one, ten, daily = fitted(folder, "one"), fitted(folder, "ten"), fitted(folder, "daily")
    assert len(one.run([folder / "all.parquet"], finish=True)) == 6
    ten.run(parts, finish=True)
    for part in parts:
        Monitor(daily.folder).run([part])
    Monitor(daily.folder).run(parts[-1:], finish=True)
    assert estimates(one) == estimates(ten) == estimates(daily)
    direct = CBPE(["accuracy", "roc_auc"], chunk=700).fit(pd.read_parquet(folder / "reference.parquet"), **ROLES)
    expected = direct.estimate(production)
    np.testing.assert_array_equal([float(row["value"]) for row in estimates(one)], expected["value"])
    assert [int(row["end"]) for row in estimates(one)] == expected["end"].tolist()


def test_files_that_were_read_are_not_read_again(folder, production):
    production.to_parquet(folder / "new.parquet")
    made = fitted(folder)
    assert len(made.run([folder / "new.parquet"])) == 5
    assert made.run([folder / "new.parquet"]) == []
    assert len(made.run([folder / "new.parquet"], finish=True)) == 1
    assert made.run([folder / "new.parquet"], finish=True) == []


def test_an_interrupted_run_continues_with_the_chunk_that_it_had_begun(folder, production, monkeypatch):
    production.iloc[:2500].to_parquet(folder / "a.parquet")
    production.iloc[2500:].to_parquet(folder / "b.parquet")
    files = [folder / "a.parquet", folder / "b.parquet"]
    whole, broken = fitted(folder, "whole"), fitted(folder, "broken")
    whole.run(files)

    def after_three(chunk):
        if chunk.chunk == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(files, progress=after_three)
    write = module.Ledger.write
    monkeypatch.setattr(module.Ledger, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):  # after the estimates are written, before the ledger is
        Monitor(broken.folder).run(files)
    monkeypatch.setattr(module.Ledger, "write", write)
    Monitor(broken.folder).run(files)
    assert estimates(whole) == estimates(broken)


def test_a_file_that_grows_is_read_on_and_one_that_changes_is_refused(folder, production):
    path = folder / "log.csv"
    production.iloc[:1000].to_csv(path, index=False)
    made = fitted(folder)
    assert len(made.run([path])) == 1
    production.iloc[1000:1500].to_csv(path, index=False, mode="a", header=False)
    assert len(made.run([path])) == 1
    assert int(estimates(made)[-1]["end"]) == 1400
    production.iloc[2000:3900].to_csv(path, index=False)
    with pytest.raises(ValueError, match="is not the file that was read before"):
        made.run([path])


def test_all_formats_and_the_corrected_estimator(folder, shifted):
    shifted.to_parquet(folder / "new.parquet")
    shifted.to_csv(folder / "new.csv", index=False)
    table = pa.Table.from_pandas(shifted, preserve_index=False)
    pyarrow.feather.write_feather(table, folder / "new.arrow")
    values = []
    for kind in ("parquet", "csv", "arrow"):
        made = fitted(folder, kind, WeightedCBPE(["accuracy"], chunk=2000))
        values.append([found.of("accuracy").value for found in made.run([folder / f"new.{kind}"])])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9)
    np.testing.assert_array_equal(values[0], values[2])


def test_chunks_by_time_are_full_when_the_next_period_begins(folder, production):
    production.iloc[:1200].to_parquet(folder / "a.parquet")
    production.iloc[1200:].to_parquet(folder / "b.parquet")
    made = fitted(folder, estimator=CBPE(["accuracy"], chunk="1D"), timestamp="day")
    assert [found.rows for found in made.run([folder / "a.parquet"])] == [500, 500]
    assert [found.rows for found in made.run([folder / "b.parquet"])] == [500] * 5
    production.iloc[:100].to_parquet(folder / "late.parquet")
    with pytest.raises(ValueError, match=r"late.parquet has an earlier one"):
        made.run([folder / "late.parquet"])


def test_labels_may_come_later(folder, production):
    production.iloc[:1400].drop(columns="y").to_parquet(folder / "a.parquet")
    production.iloc[1400:2100].to_parquet(folder / "b.parquet")
    found = fitted(folder).run([folder / "a.parquet", folder / "b.parquet"])
    assert [chunk.of("accuracy").realised is None for chunk in found] == [True, True, False]


def test_bad_input_is_named(folder, production):
    with pytest.raises(FileNotFoundError, match="there is no monitor in"):
        Monitor(folder)
    with pytest.raises(ValueError, match="chunk must be rows per chunk or a period"):
        fitted(folder, estimator=CBPE(chunk=ByNumber(3)))
    with pytest.raises(ValueError, match="at least 50 rows, got 10"):
        fitted(folder, estimator=CBPE(chunk=10))
    with pytest.raises(ValueError, match="no lambdas"):
        fitted(folder, estimator=CBPE([lambda y, p: 0.0], chunk=700))
    with pytest.raises(ValueError, match="set timestamp"):
        fitted(folder, estimator=CBPE(chunk="1D"))
    made = fitted(folder)
    with pytest.raises(FileExistsError, match="there is a monitor"):
        fitted(folder)
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.csv"):
        made.run([folder / "missing.csv"])
    with pytest.raises(ValueError, match=r"must end in one of \.csv"):
        made.run([folder / "rows.txt"])
    production.drop(columns="p").to_csv(folder / "no_score.csv", index=False)
    with pytest.raises(ValueError, match=r"no_score.csv must have the columns p"):
        made.run([folder / "no_score.csv"])
    production.assign(p="high").to_csv(folder / "text.csv", index=False)
    with pytest.raises(ValueError, match=r"text.csv cannot be read"):
        made.run([folder / "text.csv"])


def test_the_command_line_says_by_its_exit_code_whether_there_is_an_alert(folder, production, make_table):
    production.to_csv(folder / "good.csv", index=False)
    hard = make_table(20_000, 3)
    hard[hard["x"].abs() < 0.7].to_csv(folder / "hard.csv", index=False)
    runner, out = CliRunner(), str(folder / "monitor")
    options = [
        "--y-true",
        "y",
        "--y-score",
        "p",
        "--feature",
        "x",
        "--feature",
        "z",
        "--chunk",
        "2000",
        "--method",
        "cbpe",
    ]
    fit = runner.invoke(app, ["monitor", "fit", str(folder / "reference.parquet"), "--out", out, *options])
    assert fit.exit_code == 0, fit.output
    good = runner.invoke(app, ["monitor", "run", out, str(folder / "good.csv")])
    assert (good.exit_code, "2 chunks, 0 alerts" in good.output) == (0, True), good.output
    bad = runner.invoke(app, ["monitor", "run", out, str(folder / "hard.csv")])
    assert bad.exit_code == 3
    assert "ALERT" in bad.output
    wrong = ["monitor", "fit", str(folder / "reference.parquet"), "--out", str(folder / "m2"), *options]
    assert isinstance(runner.invoke(app, [*wrong, "--method", "cpbe"]).exception, ValueError)
