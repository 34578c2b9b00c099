"""Rooms import a public name when it is first used, and then it is the name that was meant."""

import subprocess
import sys
from importlib import import_module

import pytest

import poise
from poise.tools.lazy_front import lazy_front

LAZY = ("control", "curvature", "data", "dynamics", "evidence", "losses", "nn", "optim", "preflight", "studies")


@pytest.mark.parametrize("room", poise._ROOMS)
def test_every_public_name_is_there(room):
    module = import_module(f"poise.{room}")
    assert set(module.__all__) <= set(dir(module))
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("room", LAZY)
def test_only_public_names_are_listed(room):
    module = import_module(f"poise.{room}")
    assert dir(module) == sorted(module.__all__)


def in_a_new_process(program):
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_a_room_imports_nothing_before_it_is_used():
    rooms = "\n".join(f"import poise.{room}" for room in LAZY)
    heavy = "{'torch', 'numpy', 'plotly', 'scipy', 'sklearn'}"
    assert in_a_new_process(f"import sys\n{rooms}\nprint({heavy} & sys.modules.keys())") == "set()"


def test_a_function_is_not_hidden_by_the_file_of_its_name():
    # In a process of its own: here the room may have handed the function on already.
    program = "import poise.optim.fuse\nimport poise.optim\nprint(callable(poise.optim.fuse))"
    assert in_a_new_process(program) == "True"


def test_a_wrong_name_gets_the_nearest_one():
    with pytest.raises(AttributeError, match=r"module 'poise\.optim' has no attribute 'SOPA'; did you mean 'SOAP'\?"):
        _ = poise.optim.SOPA
    with pytest.raises(AttributeError, match=r"no attribute 'zzzz'$"):
        _ = poise.optim.zzzz
    with pytest.raises(ImportError):
        from poise.optim import SOPA  # noqa: F401


def test_what_is_public_must_be_imported_and_the_other_way_round(tmp_path, monkeypatch):
    (tmp_path / "odd_room.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from math import cos, sin\n"
        "__all__ = ['cos', 'tan']\nfrom poise.tools.lazy_front import lazy_front\nlazy_front(__name__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"odd_room: .* differ by sin, tan"):
        import odd_room  # noqa: F401


def test_a_name_may_be_replaced_for_a_test(tmp_path, monkeypatch):
    (tmp_path / "plain_room.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from math import cos\n__all__ = ['cos']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    room = import_module("plain_room")
    lazy_front("plain_room")
    monkeypatch.setattr(room, "cos", len)
    assert room.cos is len
