"""Packages whose public names are imported on first use."""

import importlib
import sys

import pytest

FRONTS = ("curvature", "doctor", "dynamics", "losses", "optim", "report", "store")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `front` whose function `same` lies in a file of the same name."""

    def make(init=None):
        folder = tmp_path / "front"
        folder.mkdir()
        (folder / "__init__.py").write_text(
            init
            or "from typing import TYPE_CHECKING\n"
            "from poise.tools.lazy_front import lazy_front\n"
            "if TYPE_CHECKING:\n    from front.same import same\n    from front.other import one, two\n"
            "__all__ = ['one', 'same', 'two']\nlazy_front(__name__)\n"
        )
        (folder / "same.py").write_text("def same():\n    return 'called'\n")
        (folder / "other.py").write_text("one, two = 1, 2\n")
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module("front")

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "front"]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_asked_for(package):
    front = package()
    assert "front.other" not in sys.modules
    assert front.two == 2
    assert "front.other" in sys.modules
    assert "front.same" not in sys.modules
    assert {"one", "same", "two"} <= set(dir(front))
    with pytest.raises(AttributeError, match="'front' has no attribute 'three'"):
        _ = front.three


@pytest.mark.parametrize("first", ["file", "name"])
def test_a_name_is_the_function_and_not_its_file_whichever_is_imported_first(package, first):
    front = package()
    if first == "file":
        importlib.import_module("front.same")
    assert front.same() == "called"
    importlib.import_module("front.same")
    assert front.same() == "called"


def test_names_can_be_replaced_and_submodules_of_other_names_are_bound(package):
    front = package()
    front.one = 7
    assert front.one == 7
    importlib.import_module("front.other")
    assert front.other is sys.modules["front.other"]
    namespace = {}
    exec("from front import *", namespace)
    assert namespace["one"] == 7
    assert namespace["same"]() == "called"


def test_a_package_without_imports_for_type_checkers_is_named(package):
    with pytest.raises(ImportError, match="package 'front' has no imports under 'if TYPE_CHECKING:'"):
        package("from poise.tools.lazy_front import lazy_front\nlazy_front(__name__)\n")


@pytest.mark.parametrize("room", FRONTS)
def test_every_public_name_of_a_room_is_there(room):
    front = importlib.import_module(f"poise.{room}")
    for name in front.__all__:
        assert getattr(front, name) is not None
        module = sys.modules.get(f"poise.{room}.{name}")
        assert module is None or getattr(front, name) is not module
