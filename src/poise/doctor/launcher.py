"""Execute an unmodified script as Python would, with the watch in place."""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import os
import runpy
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.doctor.seeds import offset_seeds
from poise.doctor.session import Session

INTERRUPTED = 130  # what shells show for a program that Ctrl-C ended


@dataclass(frozen=True)
class Script:
    """A program to run: a file, or with ``module`` a module as ``python -m`` takes it.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder without a ``__main__.py``.
    """

    target: str
    args: Sequence[str] = ()
    module: bool = False

    def __post_init__(self) -> None:
        if self.module:
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
        return self.target.rpartition(".")[2] if self.module else Path(self.target).stem


@dataclass(frozen=True)
class Ending:
    """How a script ended."""

    code: int
    how: str
    detail: str = ""


def launch(
    script: Script, session: Session, seed: int | None = None, tell: Callable[[], None] = lambda: None
) -> Ending:
    """Run ``script`` under ``session`` and finish the session, however the script ends.

    Args:
        script: what to run.
        session: the watch; started and finished here.
        seed: added to every seed that the script sets; ``None`` leaves all randomness alone.
        tell: called when the session is finished, also where the process is about to end at once.

    Returns:
        The script's own exit code, and how it ended.
    """
    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(offset_seeds(seed))
        session.start()

        def finish(how: str, detail: str) -> None:
            session.finish(how, detail)
            tell()

        with _finish_before_exit(finish), _finish_when_terminated(finish):
            ending = _run(script)
    finish(ending.how, ending.detail)
    return ending


def _run(script: Script) -> Ending:
    try:
        with _as_main(script) as execute:
            execute()
    except SystemExit as stop:
        return _exit_ending(stop)
    except KeyboardInterrupt as error:
        _show(error)
        return Ending(INTERRUPTED, "interrupted")
    except BaseException as error:
        _show(error)
        return Ending(1, "exception", f"{type(error).__name__}: {error}")
    return Ending(0, "finished")


def _exit_ending(stop: SystemExit) -> Ending:
    if stop.code is None:
        return Ending(0, "finished")
    if isinstance(stop.code, int):
        return Ending(stop.code, "finished" if stop.code == 0 else "exit", str(stop.code))
    print(stop.code, file=sys.stderr)  # as the interpreter does
    return Ending(1, "exit", str(stop.code))


def _show(error: BaseException) -> None:
    """Print the traceback that Python would have printed, without our own frames."""
    trace = error.__traceback__
    own = (str(Path(__file__)), contextlib.__file__, runpy.__file__, "<frozen runpy>")
    while trace is not None and trace.tb_frame.f_code.co_filename in own:
        trace = trace.tb_next
    sys.stdout.flush()
    sys.excepthook(type(error), error.with_traceback(trace), trace)


@contextlib.contextmanager
def _as_main(script: Script) -> Iterator[Callable[[], Any]]:
    """Make ``sys`` look as if Python had been started with the script; yield what runs it."""
    argv, first_path = list(sys.argv), sys.path[0]
    main = sys.modules.get("__main__")
    try:
        if script.module:
            sys.argv = [script.target, *script.args]
            sys.path[0] = os.getcwd()
            yield lambda: runpy.run_module(script.target, run_name="__main__", alter_sys=True)
        else:
            path = Path(script.target)
            sys.argv = [script.target, *script.args]
            sys.path[0] = str(path if path.is_dir() else path.resolve().parent)
            yield lambda: _execute_file(path / "__main__.py" if path.is_dir() else path)
    finally:
        sys.argv = argv
        sys.path[0] = first_path
        if main is not None:
            sys.modules["__main__"] = main


def _execute_file(path: Path) -> None:
    # runpy.run_path would clear the module's globals afterwards, from under threads and exit handlers that use them.
    module = types.ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", str(path))
    module.__dict__.update(__file__=os.path.abspath(path), __loader__=loader, __spec__=None, __cached__=None)
    module.__dict__["__builtins__"] = __builtins__
    with io.open_code(str(path)) as file:
        source = file.read()
    code = compile(source, os.path.abspath(path), "exec", dont_inherit=True)
    sys.modules["__main__"] = module
    _kept.append(module)
    exec(code, module.__dict__)


_kept: list[types.ModuleType] = []  # a script's functions may be called at exit, after sys.modules has let go of it


Finish = Callable[[str, str], None]


@contextlib.contextmanager
def _finish_before_exit(finish: Finish) -> Iterator[None]:
    """Let a script that calls ``os._exit`` leave a report: nothing else of ours would run after that."""
    original, process = os._exit, os.getpid()

    def _exit(status: int) -> None:
        # Children end that way as a matter of course.
        if os.getpid() == process:
            _finish_now(finish, "exit", f"os._exit({status})")
        original(status)

    os._exit = _exit  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = original


@contextlib.contextmanager
def _finish_when_terminated(finish: Finish) -> Iterator[None]:
    """Let a job that its scheduler ends (SIGTERM) leave a report; a script's own handler goes first."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def terminated(number: int, frame: types.FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == process:  # children inherit the handler
            _finish_now(finish, "terminated", "SIGTERM")
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _finish_now(finish: Finish, how: str, detail: str) -> None:
    try:
        finish(how, detail)
    except Exception:  # the process ends as it was told to
        traceback.print_exc()
    sys.stderr.flush()
