"""Hooks inside Python functions of a library: the function stays the same object, and no frame is added to a call.

A wrapper around ``torch.nn.functional.cross_entropy`` is seen by everything that compiles (TorchScript reads the source
of what a name holds), pickles (a name must lead back to the same object) or inspects (signature, source), and by code
that reads a traceback or the location of a warning (one frame more). A :class:`FunctionHook` leaves the function object
where it is and exchanges its code for the same code with calls of the hooks in it, compiled from the function's own
source under its own file name and line numbers. Identity, ``inspect.getsource``, signature, pickle, TorchScript and
tracebacks are those of the original, and references to the function that were made before are reached too.
"""

from __future__ import annotations
import __future__

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

from poise.doctor.stderr import print_line

_FUTURE_FLAGS = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_KINDS = ("instead", "after", "finally", "before")  # in the order in which they are put into the code


class FunctionHook:
    """Calls hooks from within one Python function, between :meth:`install` and :meth:`remove`.

    Each hook gets the function's own parameters by position, as they are at that time (``*args`` as one tuple,
    ``**kwargs`` as one dictionary). Several hooks of one function work side by side. An exception of a hook is given to
    :attr:`failed`, and the function goes on without the hook; one of ``instead`` is an exception of the function.

    Args:
        function: the function; decorators around it are unwrapped.
        before: called first.
        after: called with the result, then the parameters; what it returns is returned in place of the result.
        finally_: called at the end, also after an exception.
        instead: called in place of the body; the body is still available as :attr:`original`.

    Raises:
        TypeError: if ``function`` is not written in Python.
        ValueError: if its code cannot be made from its source: it is a closure, or the file has changed.
        OSError: if its source is not available.
    """

    def __init__(
        self,
        function: Any,
        before: Callable[..., object] | None = None,
        after: Callable[..., Any] | None = None,
        finally_: Callable[..., object] | None = None,
        instead: Callable[..., Any] | None = None,
    ) -> None:
        hooks = {"before": before, "after": after, "finally": finally_, "instead": instead}
        self.hooks = {kind: hook for kind, hook in hooks.items() if hook is not None}
        self.failed: Callable[[Exception], object] = _print
        self._target = _target_of(function)

    @property
    def original(self) -> Callable[..., Any]:
        """The function without hooks, as an object of its own."""
        return self._target.original

    def install(self) -> None:
        """Put the hooks in; a second call changes nothing.

        Raises:
            RuntimeError: if other code has exchanged the function's code meanwhile.
        """
        if self not in self._target.hooks:
            self._target.change([*self._target.hooks, self])

    def remove(self) -> None:
        """Take the hooks out. Where other code has exchanged the function's code since, it stays as it is."""
        if self in self._target.hooks:
            self._target.change([hook for hook in self._target.hooks if hook is not self])


@contextmanager
def installed(hooks: Iterable[FunctionHook], failed: Callable[[Exception], object]) -> Iterator[None]:
    """Keep hooks in their functions for as long as the context lasts.

    Args:
        hooks: the hooks.
        failed: called with what a hook raises.
    """
    done: list[FunctionHook] = []
    try:
        for hook in hooks:
            hook.failed = failed
            hook.install()
            done.append(hook)
        yield
    finally:
        for hook in reversed(done):
            hook.remove()


class _Target:
    """A function, the code it had, and the hooks that are in it now."""

    def __init__(self, function: FunctionType) -> None:
        self.hooks: list[FunctionHook] = []
        self._function = function
        self._code = function.__code__
        self._codes: dict[frozenset[str], CodeType] = {frozenset(): self._code}
        self._code_with(frozenset(_KINDS) - {"instead"})  # raises now if it cannot be made

    @property
    def original(self) -> FunctionType:
        of = self._function
        twin = FunctionType(self._code, of.__globals__, of.__name__, of.__defaults__, of.__closure__)
        twin.__kwdefaults__ = of.__kwdefaults__
        return twin

    def change(self, hooks: list[FunctionHook]) -> None:
        is_ours = self._function.__code__ in self._codes.values()
        if not is_ours and len(hooks) > len(self.hooks):
            raise RuntimeError(f"the code of {self._function.__qualname__} is no longer the one that was read")
        self.hooks = hooks
        if not is_ours:
            return
        by_kind = {kind: [h for h in hooks if kind in h.hooks] for kind in _KINDS}
        present = frozenset(kind for kind, concerned in by_kind.items() if concerned)
        code, namespace = self._code_with(present), self._function.__globals__
        for kind in _KINDS:
            # A call that runs now goes on with the code it began with: its hooks are emptied, but still there.
            namespace[_name(kind, self._code)] = _chain(kind, by_kind[kind])
        self._function.__code__ = code

    def _code_with(self, kinds: frozenset[str]) -> CodeType:
        if kinds not in self._codes:
            self._codes[kinds] = _hooked_code(self._function, self._code, kinds)
        return self._codes[kinds]


_targets: dict[FunctionType, _Target] = {}


def _target_of(function: Any) -> _Target:
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        raise TypeError(f"function must be written in Python, got {type(function).__name__} {function!r}")
    if function not in _targets:
        _targets[function] = _Target(function)
    return _targets[function]


def _name(kind: str, code: CodeType) -> str:
    # A global of the function's module: a constant in the code would be an object that torch.compile cannot trace.
    return f"_poise_{kind}_{code.co_qualname.replace('.', '_')}"


def _chain(kind: str, hooks: list[FunctionHook]) -> Callable[..., Any]:
    if hooks and kind == "instead":
        return hooks[-1].hooks[kind]
    chain = _Chain([(hook.hooks[kind], hook) for hook in hooks])
    return chain.pass_through if kind == "after" else chain.call_all


class _Chain:
    """The hooks of one kind in one function."""

    def __init__(self, calls: list[tuple[Callable[..., Any], FunctionHook]]) -> None:
        self._calls = calls

    def call_all(self, *parameters: Any) -> None:
        for call, hook in self._calls:
            try:
                call(*parameters)
            except Exception as error:
                hook.failed(error)

    def pass_through(self, result: Any, *parameters: Any) -> Any:
        for call, hook in self._calls:
            try:
                result = call(result, *parameters)
            except Exception as error:
                hook.failed(error)
        return result


def _keep_from_compiler(*codes: CodeType) -> None:
    """Let ``torch.compile``, which examines every frame below a compiled module, skip hooks and what they call."""
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
        for code in codes:
            eval_frame.set_code_exec_strategy(code, skip)
    except (ImportError, AttributeError):  # an older torch: it examines the frames and finds nothing to compile
        return


_keep_from_compiler(_Chain.call_all.__code__, _Chain.pass_through.__code__)


def _print(error: Exception) -> None:
    print_line(f"poise: a hook failed ({type(error).__name__}: {error})")


def _hooked_code(function: FunctionType, code: CodeType, kinds: frozenset[str]) -> CodeType:
    if code.co_freevars:
        raise ValueError(f"function {function.__qualname__} is a closure: its code cannot be made from its source")
    # Below an "if", an indented method keeps the columns that tracebacks point at.
    source = inspect.getsource(code)
    tree = ast.parse(("if True:\n" if source[:1].isspace() else "\n") + source)
    ast.increment_lineno(tree, code.co_firstlineno - 2)
    if _identity(_compiled(tree, code)) != _identity(code):
        raise ValueError(f"the source of {function.__qualname__} is not the code that runs")
    outer = tree.body[0]
    definition = outer.body[0] if isinstance(outer, ast.If) else outer
    assert isinstance(definition, ast.FunctionDef)
    _insert_calls(definition, code, kinds)
    return _compiled(tree, code)


def _compiled(tree: ast.Module, original: CodeType) -> CodeType:
    module = compile(tree, original.co_filename, "exec", flags=original.co_flags & _FUTURE_FLAGS, dont_inherit=True)
    code = next(c for c in module.co_consts if isinstance(c, CodeType) and c.co_name == original.co_name)
    return code.replace(co_qualname=original.co_qualname)


def _identity(code: CodeType) -> tuple[Any, ...]:
    # Not the bytecode: the compiler chooses some instructions by the imports of the whole file.
    lines = {line for _, _, line in code.co_lines()}
    return code.co_varnames, set(code.co_names), code.co_flags, code.co_firstlineno, lines


def _insert_calls(definition: ast.FunctionDef, code: CodeType, kinds: frozenset[str]) -> None:
    start = 0 if ast.get_docstring(definition, clean=False) is None else 1
    body = definition.body[start:]
    place = body[0]

    def call(kind: str, *result: ast.expr, at: ast.stmt = place) -> ast.Call:
        count = code.co_argcount + code.co_kwonlyargcount
        count += sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))
        parameters = [_at(at, ast.Name(name, ast.Load())) for name in code.co_varnames[:count]]
        hook = _at(at, ast.Name(_name(kind, code), ast.Load()))
        return _at(at, ast.Call(hook, [*result, *parameters], []))

    if "instead" in kinds:
        body = [_at(place, ast.Return(call("instead")))]
    if "after" in kinds:
        returns = _Returns(lambda statement, result: call("after", result, at=statement))
        body = [returns.visit(statement) for statement in body]
    if "finally" in kinds:
        body = [_at(place, ast.Try(body, [], [], [_at(place, ast.Expr(call("finally")))]))]
    if "before" in kinds:
        body = [_at(place, ast.Expr(call("before"))), *body]
    definition.body[start:] = body


def _at(place: ast.stmt, node: Any) -> Any:
    """Give ``node`` the line of ``place``."""
    node.lineno = node.end_lineno = place.lineno
    node.col_offset = node.end_col_offset = place.col_offset
    return node


class _Returns(ast.NodeTransformer):
    """Passes every value that the function itself returns through a call."""

    def __init__(self, call: Callable[[ast.stmt, ast.expr], ast.Call]) -> None:
        self._call = call

    def visit_Return(self, node: ast.Return) -> ast.Return:
        """Replace ``return x`` by ``return hook(x, ...)``."""
        value: ast.expr = _at(node, ast.Constant(None)) if node.value is None else node.value
        return ast.copy_location(ast.Return(self._call(node, value)), node)

    def _keep(self, node: Any) -> Any:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _keep  # they return for themselves
