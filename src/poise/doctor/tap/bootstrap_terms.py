"""Find bootstrapped targets and advantages that pass gradients on although they are meant to be constants."""

from __future__ import annotations

from typing import Any

from poise.doctor.tap.graph import op_name, parents, skip_views

_NODES = 2000
_LINEAR = {"add", "cat", "clamp", "mean", "min", "minimum", "maximum", "neg", "stack", "sub", "sum"}
_MAPS = {"addmm", "mm", "bmm", "linear", "addmv", "mv"}
_SELECTED = {"amax", "gather", "index", "max", "maximum", "minimum", "min", "select"}


def target_with_gradient(prediction: Any, target: Any) -> bool:
    """Return whether ``target`` is a reward plus a discounted prediction of the same parameters, gradient included.

    Args:
        prediction: node of what the loss compares.
        target: node of what it is compared with.
    """
    if prediction is None or target is None or _is_reward_plus_value(skip_views(prediction)):
        return False
    return _is_reward_plus_value(skip_views(target)) and bool(_leaves(prediction) & _leaves(target))


def _is_reward_plus_value(node: Any) -> bool:
    if op_name(node) not in ("add", "sub", "rsub") or len(parents(node)) != 1:
        return False
    node, discounted = skip_views(parents(node)[0]), False
    while op_name(node) == "mul" and len(parents(node)) == 1:  # the discount, and whether the episode goes on
        node, discounted = skip_views(parents(node)[0]), True
    return discounted and (op_name(node) in _SELECTED | _MAPS)


def advantage_with_gradient(loss: Any) -> bool:
    """Return whether a log-probability is multiplied with ``return - value`` of which the value has a gradient."""
    pending, visited = [loss], 0
    while pending and visited < _NODES:
        node = pending.pop()
        visited += 1
        before = parents(node)
        name = op_name(node)
        if name == "mul" and len(before) == 2:
            if any(_is_log_probability(a) and _is_advantage(b) for a, b in (before, before[::-1])):
                return True
        elif name in _LINEAR or (name in ("mul", "div") and len(before) == 1):
            pending += [skip_views(b) for b in before]
    return False


def _is_log_probability(node: Any) -> bool:
    for _ in range(6):
        node = skip_views(node)
        if op_name(node) in ("log", "logsoftmax", "nllloss"):
            return True
        if op_name(node) == "sub" and any(op_name(b) == "logsumexp" for b in parents(node)):
            return True
        if op_name(node) in ("cat", "stack"):
            node = parents(node)[0]
            continue
        if op_name(node) not in ("neg", "gather", "sum", "mul") or len(parents(node)) != 1:
            return False
        node = parents(node)[0]
    return False


def _is_advantage(node: Any) -> bool:
    node = skip_views(node)
    while op_name(node) == "neg":
        node = skip_views(parents(node)[0])
    if op_name(node) not in ("sub", "rsub", "add") or len(parents(node)) != 1:
        return False
    value = skip_views(parents(node)[0])
    while op_name(value) in ("cat", "stack"):
        value = skip_views(parents(value)[0])
    return op_name(value) in _MAPS


def _leaves(node: Any) -> set[int]:
    """Return the ids of the parameters that a node depends on."""
    pending, leaves = [node], set()
    seen: set[Any] = set()
    while pending and len(seen) < _NODES:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        pending += parents(node)
    return leaves
