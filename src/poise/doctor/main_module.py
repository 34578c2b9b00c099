"""Execute a file, a module, a folder, an archive or standard input as the interpreter does: as ``__main__``.

What a script can see of its start is what it sees under plain Python: the attributes of ``__main__``, ``sys.argv``,
``sys.orig_argv``, ``sys.path[0]``, and where a warning points that is attributed to more callers than there are. One
thing cannot be had: the frames of poise are below those of the script, so that a walk along ``f_back`` (or
``traceback.print_stack``) does not end at the script.
"""

from __future__ import annotations

import builtins
import functools
import importlib.machinery
import io
import os
import pkgutil
import runpy
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"
_CALLERS = 8  # how many frames more a warning may ask for


@dataclass(frozen=True)
class Script:
    """A program to run: a file, ``-`` for standard input, or with ``module`` a module as ``python -m`` takes it.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder without a ``__main__.py``.
    """

    target: str
    args: Sequence[str] = ()
    module: bool = False

    def __post_init__(self) -> None:
        if self.module or self.target == STDIN:
            return
        path = Path(self.target)
        if not path.exists():
            near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
            hint = f"; there are {', '.join(near[:5])}" if near else ""
            raise FileNotFoundError(f"script {self.target!r} does not exist{hint}")
        if path.is_dir() and not (path / "__main__.py").exists():
            raise IsADirectoryError(f"script {self.target!r} is a folder without a __main__.py")

    @property
    def name(self) -> str:
        """A short name for folders and titles."""
        if self.target == STDIN:
            return "stdin"
        return self.target.rpartition(".")[2] if self.module else Path(self.target).stem


def run_as_main(script: Script) -> None:
    """Turn this process into one that was started with ``script``, and execute it.

    Nothing is put back afterwards: threads and exit handlers of the script may run on when it has ended, and need its
    ``__main__``.
    """
    program = "-m" if script.module else script.target
    sys.orig_argv = [*_interpreter(), program, *([script.target] if script.module else []), *script.args]
    sys.argv = [program, *script.args]
    module = types.ModuleType("__main__")
    module.__dict__.update(__annotations__={}, __builtins__=builtins, __loader__=importlib.machinery.BuiltinImporter)
    sys.modules["__main__"] = module
    try:
        _call_as_outermost(_prepare(script, module))
    finally:
        if not script.module and module.__spec__ is None:  # the interpreter does so, too
            module.__dict__.pop("__file__", None)
            module.__dict__.pop("__cached__", None)


def _interpreter() -> list[str]:
    """Return the interpreter and its options, as they were given to it."""
    given = sys.orig_argv
    for i in range(1, len(given)):
        if given[i] == "-m" or not (given[i].startswith("-") or given[i - 1] in ("-W", "-X")):
            return given[:i]
    return given[:1]


def _prepare(script: Script, module: types.ModuleType) -> Callable[[], object]:
    if script.module:
        _set_first_path(os.getcwd())
        return functools.partial(runpy._run_module_as_main, script.target)  # type: ignore[attr-defined]
    if script.target == STDIN:
        _set_first_path("")
        module.__dict__.update(__file__="<stdin>", __cached__=None)
        return functools.partial(exec, compile(sys.stdin.read(), "<stdin>", "exec", dont_inherit=True), module.__dict__)
    if pkgutil.get_importer(script.target) is not None:  # a folder or an archive
        _set_first_path(os.path.abspath(script.target))
        return functools.partial(runpy._run_module_as_main, "__main__", False)  # type: ignore[attr-defined]
    path = os.path.abspath(script.target)
    _set_first_path(str(Path(script.target).resolve().parent))
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    module.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
    with io.open_code(path) as file:
        source = file.read()
    # Not runpy.run_path: it would clear the module's globals afterwards, from under threads that use them.
    return functools.partial(exec, compile(source, path, "exec", dont_inherit=True), module.__dict__)


def _set_first_path(path: str) -> None:
    if not sys.flags.safe_path:  # with -P and -I there is no such entry
        sys.path[0] = path


# ---- what lies beyond the outermost frame --------------------------------------------------------------------------


def _beyond() -> tuple[str, int]:
    """Return the file and line that this Python names for a warning that asks for more callers than there are."""
    had = "__warningregistry__" in vars(sys)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("", stacklevel=1 << 20)
    if not had:
        vars(sys).pop("__warningregistry__", None)
    return caught[0].filename, caught[0].lineno


def _make_outermost() -> types.FunctionType:
    file, line = _beyond()
    source = "\n" * (line - 1) + "lambda call, repeat, depth: repeat(call, repeat, depth - 1) if depth else call()"
    made = eval(compile(source, file, "eval"), {})
    return types.FunctionType(made.__code__, vars(sys))  # as the interpreter does where no frame is left


_outermost = _make_outermost()


def _call_as_outermost(call: Callable[[], object]) -> None:
    _outermost(call, _outermost, _CALLERS)


def is_outermost(frame: types.FrameType) -> bool:
    """Return whether a frame is one of those that stand for what lies beyond the script."""
    return frame.f_code is _outermost.__code__
