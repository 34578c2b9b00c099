"""A hooked function is the same object with the same source, signature, tracebacks and results."""

import copy
import inspect
import pickle
import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.tap.function_hook import FunctionHook, installed


def add(a, b=2, *rest, scale=1.0, **options):
    """Add."""
    total = a + b
    if rest:
        return (total + sum(rest)) * scale

    def inner():
        return "inner"  # not a value of `add`

    if options:
        return inner()
    return total * scale


def unresolved(failed):
    raise AssertionError(f"a hook failed: {failed}")


def test_hooks_are_called_in_order_with_the_parameters():
    calls = []
    hook = FunctionHook(
        add,
        before=lambda *p: calls.append(("before", p)),
        after=lambda result, *p: calls.append(("after", result, p)) or result * 10,
        finally_=lambda *p: calls.append(("finally", p)),
    )
    with installed([hook], unresolved):
        assert add(1, scale=3.0) == 90.0
    parameters = (1, 2, 3.0, (), {})
    assert calls == [("before", parameters), ("after", 9.0, parameters), ("finally", parameters)]
    calls.clear()
    with installed([hook], unresolved):
        assert add(1, 2, 3, 4) == 100.0
        assert add(1, option=True) == "inner" * 10
    assert add(1) == 3.0
    assert calls[0] == ("before", (1, 2, 1.0, (3, 4), {}))


def test_after_an_exception_only_finally_is_called_and_the_traceback_is_the_same():
    def trace():
        try:
            add(1, "x")
        except TypeError:
            return traceback.format_exc()

    plain, calls = trace(), []
    hook = FunctionHook(
        add, before=lambda *p: None, after=lambda r, *p: calls.append("after"), finally_=lambda *p: calls.append("end")
    )
    with installed([hook], unresolved):
        assert trace() == plain
    assert calls == ["end"]


def test_several_hooks_of_a_function_work_side_by_side_and_leave_in_any_order():
    calls = []
    first = FunctionHook(add, before=lambda *p: calls.append(1))
    second = FunctionHook(add, before=lambda *p: calls.append(2), after=lambda result, *p: -result)
    first.install()
    second.install()
    assert add(1) == -3.0
    first.remove()
    assert add(1) == -3.0
    second.remove()
    assert add(1) == 3.0
    assert calls == [1, 2, 2]


def test_instead_takes_the_place_of_the_body_and_the_original_is_kept():
    hook = FunctionHook(add, instead=lambda a, b, scale, rest, options: hook.original(a, b) + 100)
    with installed([hook], unresolved):
        assert add(1) == 103.0
    with pytest.raises(ZeroDivisionError), installed([FunctionHook(add, instead=lambda *p: 1 / 0)], unresolved):
        add(1)


def test_a_hook_that_raises_does_not_reach_the_caller():
    failures = []
    hook = FunctionHook(add, before=lambda *p: 1 / 0, after=lambda result, *p: 1 / 0, finally_=lambda *p: 1 / 0)
    with installed([hook], failures.append):
        assert add(1) == 3.0
    assert len(failures) == 3


def test_a_function_taken_out_while_it_runs_ends_well():
    hook = FunctionHook(add, before=lambda *p: hook.remove(), after=lambda result, *p: -result, finally_=lambda *p: 1)
    hook.install()
    assert add(1) == 3.0
    assert add(1) == 3.0


@pytest.mark.parametrize(
    "function",
    [F.cross_entropy, nn.Module._call_impl, nn.Module.load_state_dict, torch.autograd.backward, torch.compile],
)
def test_what_is_seen_of_a_function_stays_the_same(function):
    def seen():
        return inspect.getsource(function), inspect.signature(function), inspect.getsourcelines(function)[1]

    before = seen()
    hook = FunctionHook(function, before=lambda *p: None, after=lambda r, *p: r, finally_=lambda *p: None)
    with installed([hook], unresolved):
        assert seen() == before
        assert pickle.loads(pickle.dumps(function)) is function
        assert copy.deepcopy(function) is function
        assert function.__qualname__ == function.__code__.co_qualname


def test_code_that_somebody_else_exchanged_is_left_alone():
    def other(a, b=2, *rest, scale=1.0, **options):
        return "other"

    hook = FunctionHook(add, before=lambda *p: None)
    original = add.__code__
    hook.install()
    add.__code__ = other.__code__
    try:
        hook.remove()
        assert add(1) == "other"
        with pytest.raises(RuntimeError, match="the code of add is no longer"):
            FunctionHook(add, before=lambda *p: None).install()
    finally:
        add.__code__ = original


def test_what_cannot_be_hooked_is_refused_with_the_reason():
    outer = 1
    with pytest.raises(TypeError, match="function must be written in Python, got builtin_function_or_method"):
        FunctionHook(torch.relu)
    with pytest.raises(ValueError, match="is a closure"):
        FunctionHook(lambda: outer, before=lambda: None).install()
