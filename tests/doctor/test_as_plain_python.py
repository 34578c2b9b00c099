"""What a script says, how it ends and what it sees of its start: byte by byte as under plain Python."""

import os
import subprocess
import sys
import textwrap
import zipfile

import pytest

SCRIPTS = {
    "an exception": """
        def f(n):
            return g(n)
        def g(n):
            return 1 / n
        print("before")
        f(0)
        """,
    "causes, contexts and groups": """
        import contextlib
        @contextlib.contextmanager
        def managed():
            try:
                yield
            except KeyError as error:
                raise ValueError("in between") from error
        def fail():
            with managed():
                {}["gone"]
        try:
            fail()
        except ValueError as error:
            first = error
        try:
            raise ExceptionGroup("both", [first, TypeError("second")])
        except ExceptionGroup:
            raise RuntimeError("last")
        """,
    "a syntax error": "x = 1\nprint('never'\ny = (2\n",
    "a syntax error in a module": "import broken\n",
    "a module that is not there": "import nothing_of_this_name\n",
    "an exit with a text": "import sys\nsys.exit('sorry, näh')\n",
    "an exit with a list": "import sys\nsys.exit(['a', 1])\n",
    "an exit with True": "import sys\nsys.exit(True)\n",
    "an exit in a function of an exit": """
        import sys
        try:
            sys.exit(4)
        finally:
            sys.exit(5)
        """,
    "a hook for exceptions": """
        import sys, traceback
        def hook(kind, error, trace):
            print(kind, error, error.__traceback__ is trace, traceback.extract_tb(trace), file=sys.stderr)
        print(sys.excepthook is sys.__excepthook__)
        sys.excepthook = hook
        raise KeyError("mine")
        """,
    "a hook that fails": """
        import sys
        def hook(kind, error, trace):
            raise TypeError("hook")
        sys.excepthook = hook
        raise KeyError("mine")
        """,
    "a hook that exits": """
        import sys
        sys.excepthook = lambda *_: sys.exit(9)
        raise KeyError("mine")
        """,
    "the last exception at exit": """
        import atexit, sys
        atexit.register(lambda: print(type(sys.last_value), __name__, sys.modules["__main__"].__dict__ is globals()))
        raise KeyError("mine")
        """,
    "an exception in a thread": """
        import threading
        def fail():
            raise KeyError("thread")
        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
        """,
    "a hook for threads": """
        import sys, threading, traceback
        def hook(args):
            print(isinstance(args, threading.ExceptHookArgs), type(args).__name__, args.thread.name, file=sys.stderr)
            traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
        threading.excepthook = hook
        thread = threading.Thread(target=lambda: [][1], name="worker")
        thread.start()
        thread.join()
        """,
    "threads that go on": """
        import threading, time
        class Late:
            pass
        def work():
            time.sleep(0.2)
            import pickle
            print("worked", type(pickle.loads(pickle.dumps(Late()))).__module__)
        threading.Thread(target=work).start()
        print("end")
        """,
    "an executor that nobody closed": """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(2)
        print(pool.submit(pow, 2, 3).result())
        """,
    "warnings": """
        import warnings
        def f(level):
            warnings.warn(f"level {level}", stacklevel=level)
        warnings.warn("here")
        for level in range(1, 7):
            f(level)
        warnings.warn("once", DeprecationWarning, stacklevel=2)
        class Child(f and object):
            warnings.warn("in a class", stacklevel=2)
        """,
    "the name and attributes of main": """
        import inspect, pickle, sys
        class Thing:
            pass
        def f():
            return 1  # the source
        print(sorted(globals()), type(__builtins__), __annotations__, __doc__, __package__, __spec__, __cached__)
        print(__file__, type(__loader__), __name__, sys.modules["__main__"].__dict__ is globals())
        print(sys.argv, sys.orig_argv[-len(sys.argv):], sys.path[0], sys.flags, sys.gettrace(), sys.getprofile())
        print(pickle.loads(pickle.dumps(Thing())).__class__, pickle.dumps(f))
        print(inspect.getsource(f), inspect.getsourcefile(Thing), inspect.getmodule(f).__name__)
        print("after", "annotations" in dir())
        x: int = 1
        print(__annotations__)
        """,
    "stdout closed": "import sys\nprint('a')\nsys.stdout.close()\nsys.exit(6)\n",
    "stderr closed": "import sys\nprint('a')\nsys.stderr.close()\nsys.exit(6)\n",
    "both closed": "import sys\nsys.stdout.close()\nsys.stderr.close()\nsys.exit(6)\n",
    "no stdout and no stderr": "import sys\nprint('a')\nsys.stdout = sys.stderr = None\nsys.exit('text')\n",
    "stderr is something else": "import io, sys\nsys.stderr = io.StringIO()\n1 / 0\n",
    "descriptors closed": "import os\nos.close(1)\nos.close(2)\nraise SystemExit(3)\n",
    "stdin": "import sys\nprint(input(), sys.stdin.read())\n",
    "a fork that falls off the end": """
        import os, sys
        print("parent", flush=True)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            print("child", flush=True)
            1 / 0
        """,
    "a fork that exits": """
        import os, sys
        child = os.fork()
        if not child:
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    "spawned and forked processes": """
        import multiprocessing, sys
        def work(x):
            return __name__, x * x
        if __name__ == "__main__":
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    print(method, pool.map(work, [3]))
        """,
    "Ctrl-C": "import os, signal, atexit\natexit.register(print, 'bye')\nos.kill(os.getpid(), signal.SIGINT)\n",
    "Ctrl-C in a finally": """
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            print("cleaned")
            os.kill(os.getpid(), signal.SIGINT)
        """,
    "SIGTERM": "import os, signal\nprint('a', flush=True)\nos.kill(os.getpid(), signal.SIGTERM)\nprint('b')\n",
    "SIGHUP": "import os, signal\nprint('a', flush=True)\nos.kill(os.getpid(), signal.SIGHUP)\nprint('b')\n",
    "SIGHUP that is handled": """
        import os, signal
        signal.signal(signal.SIGHUP, lambda *_: print("handled"))
        os.kill(os.getpid(), signal.SIGHUP)
        """,
}


def plain(*arguments, cwd, stdin=""):
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, env=environment, input=stdin.encode()
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def watched(poise, *arguments, cwd, **options):
    done = poise("run", "-q", "--out", cwd / "run", *arguments, cwd=cwd, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(name, poise, tmp_path):
    (tmp_path / "train it.py").write_text(textwrap.dedent(SCRIPTS[name]), encoding="utf-8")
    (tmp_path / "broken.py").write_text("def f(:\n")
    arguments = ("train it.py", "--lr", "3", "-q", "--", "ü")
    expected = plain(*arguments, cwd=tmp_path, stdin="line\nrest\n")
    assert watched(poise, *arguments, cwd=tmp_path, stdin="line\nrest\n") == expected
    assert (tmp_path / "run" / "report.html").exists()


MODULE = """
    import sys, warnings
    print(sys.argv, sys.path[0], __name__, __spec__.name, __package__, __file__, sorted(globals()))
    warnings.warn("level 2", stacklevel=2)
    warnings.warn("level 4", stacklevel=4)
    warnings.warn("level 7", stacklevel=7)
    def fail():
        raise KeyError("gone")
    fail()
    """


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "single", "a", "-b"),
        ("-m", "package", "a"),
        ("-m", "package.inner", "a"),
        ("-m", "nothing.of.this.name"),
        ("-m", "empty"),
        ("package", "a"),
        ("archive.zip", "a"),
        ("-", "a", "-b"),
    ],
    ids=" ".join,
)
def test_modules_folders_archives_and_standard_input(arguments, poise, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "__init__.py").touch()
    (tmp_path / "package").mkdir()
    for file in ("single.py", "package/__init__.py", "package/__main__.py", "package/inner.py"):
        (tmp_path / file).write_text("" if "init" in file else textwrap.dedent(MODULE))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(tmp_path / "single.py", "__main__.py")
    stdin = textwrap.dedent(MODULE).replace("__spec__.name", "__spec__")
    expected = plain(*arguments, cwd=tmp_path, stdin=stdin)
    assert expected[0] == 1
    assert watched(poise, *arguments, cwd=tmp_path, stdin=stdin) == expected


@pytest.mark.slow
def test_frames_of_the_watch_are_in_no_traceback(poise, tmp_path):
    script = """
        import sys, threading, warnings
        import torch
        from torch import nn
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        class Fails(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.sum()
            @staticmethod
            def backward(ctx, gradient):
                raise KeyError("inside backward")
        def train():
            for step in range(3):
                loss = model(torch.ones(3, 2)).square().mean()
                loss.backward()
                optimizer.step()
            nn.functional.softmax(torch.ones(2, 3))  # warns of a missing dim
            torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 1).step()
            Fails.apply(model(torch.ones(2))).backward()
        thread = threading.Thread(target=train, name="worker")
        thread.start()
        thread.join()
        train()
        """
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    code, _, stderr = plain("train.py", cwd=tmp_path)
    assert code == 1
    assert stderr.count("inside backward") == 4
    assert stderr.count("UserWarning") == 2
    assert watched(poise, "train.py", cwd=tmp_path) == (code, "", stderr)
