"""Execute an unmodified script as Python would, with the watch in place."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from poise.doctor.main_module import Script, run_as_main
from poise.doctor.seeds import offset_seeds
from poise.doctor.session import Session
from poise.doctor.stderr import print_line
from poise.doctor.tracebacks import hidden_in_threads, show_uncaught

INTERRUPTED = 130  # what shells show for a program that Ctrl-C ended


@dataclass(frozen=True)
class Ending:
    """How a script ended."""

    code: int
    how: str
    detail: str = ""


def launch(
    script: Script, session: Session, seed: int | None = None, on_finish: Callable[[], None] = lambda: None
) -> Ending:
    """Run ``script`` under ``session`` and finish the session, however the script ends.

    Args:
        script: what to run.
        session: the watch; started and finished here.
        seed: added to every seed that the script sets; ``None`` leaves all randomness alone.
        on_finish: called when the session is finished, also where the process is about to end at once.

    Returns:
        The script's own exit code, and how it ended.
    """
    process = os.getpid()

    def finish(how: str, detail: str) -> None:
        if os.getpid() == process:  # a forked child of the script gets here too
            session.finish(how, detail)
            on_finish()

    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(offset_seeds(seed))
        session.start()
        with hidden_in_threads(), _finish_before_exit(finish), _finish_when_terminated(finish):
            ending = _wait_for_threads(_run(script))
    try:
        finish(ending.how, ending.detail)
    except KeyboardInterrupt:  # the second one: the first ended the script
        return Ending(INTERRUPTED, "interrupted")
    return ending


def _run(script: Script) -> Ending:
    try:
        run_as_main(script)
    except SystemExit as stop:
        return _exit_ending(stop)
    except KeyboardInterrupt as error:
        show_uncaught(error)
        return Ending(INTERRUPTED, "interrupted")
    except BaseException as error:
        return Ending(show_uncaught(error), "exception", f"{type(error).__name__}: {error}")
    return Ending(0, "finished")


def _exit_ending(stop: SystemExit) -> Ending:
    if stop.code is None:
        return Ending(0, "finished")
    if isinstance(stop.code, int):
        return Ending(stop.code, "finished" if stop.code == 0 else "exit", str(stop.code))
    if sys.stderr is not None:
        print_line(str(stop.code))
    else:  # the interpreter handles this case itself
        with contextlib.suppress(OSError):
            os.write(2, f"{stop.code}\n".encode(errors="backslashreplace"))
    return Ending(1, "exit", str(stop.code))


def _wait_for_threads(ending: Ending) -> Ending:
    """Wait for threads that are no daemons, as the interpreter does before it ends: they may be what trains."""
    here = threading.current_thread()
    if here is not threading.main_thread() or all(t.daemon or t is here for t in threading.enumerate()):
        return ending
    try:
        # Only this also ends the idle workers of executors; the interpreter calls it again, to no effect.
        threading._shutdown()  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        return Ending(ending.code, "interrupted")
    return ending


Finish = Callable[[str, str], None]


@contextlib.contextmanager
def _finish_before_exit(finish: Finish) -> Iterator[None]:
    """Make sure that a script that calls ``os._exit`` leaves a report: no other code of poise would run after it."""
    original = os._exit

    def _exit(status: int) -> None:
        _finish_now(finish, "exit", f"os._exit({status})")
        original(status)

    os._exit = _exit  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = original


@contextlib.contextmanager
def _finish_when_terminated(finish: Finish) -> Iterator[None]:
    """Make sure that a job that its scheduler or terminal ends leaves a report; a script's own handler runs first."""

    def terminated(number: int, frame: types.FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        _finish_now(finish, "terminated", signal.Signals(number).name)
        os.kill(os.getpid(), number)

    fatal = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    caught = [number for number in fatal if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        caught = []  # Python allows handlers in the main thread only
    for number in caught:
        signal.signal(number, terminated)
    try:
        yield
    finally:
        for number in caught:
            if signal.getsignal(number) is terminated:
                signal.signal(number, signal.SIG_DFL)


def _finish_now(finish: Finish, how: str, detail: str) -> None:
    try:
        finish(how, detail)
    except Exception as error:  # the process ends all the same
        print_line(f"poise: no report ({type(error).__name__}: {error})")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
        sys.stderr.flush()
