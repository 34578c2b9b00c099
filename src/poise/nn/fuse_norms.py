"""Fold norms that are constant in evaluation into the linear maps that follow them."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from poise.nn.surgery import Surgery, is_conv1d_of_transformers, kinds, named, replace
from poise.nn.unified_norm import UnifiedNorm

Constant = UnifiedNorm | nn.BatchNorm1d
_RESHAPES = ("view", "reshape", "flatten", "contiguous", "dropout")


@torch.no_grad()
def fuse_norms(model: nn.Module, example_input: Any, tolerance: float = 1e-4) -> tuple[nn.Module, Surgery]:
    r"""Return a copy of the model without the norms whose outputs feed linear maps only.

    In evaluation such a norm is :math:`y = s \odot x + b`; the map :math:`Ay + a` after it becomes
    :math:`A\,\mathrm{diag}(s)\,x + (a + Ab)`. Who uses an output is seen in a forward of the example, so the example
    must take the path that later inputs take. Every :class:`UnifiedNorm` and ``nn.BatchNorm1d`` before linear layers,
    1x1 convolutions or transformers' ``Conv1D`` is considered.

    Args:
        model: in evaluation mode; it is not changed.
        example_input: a tensor, a tuple of arguments, or a dict of named ones.
        tolerance: allowed largest difference of the outputs, relative to the largest output.

    Returns:
        The fused model, and the report with the largest difference on the example.

    Raises:
        RuntimeError: if the model is in training mode, or the outputs differ by more than the tolerance.
        ValueError: if the model has no such norm.

    References:
        Yang et al., 2022, arXiv:2208.01313.

    Example:
        >>> model = nn.Sequential(UnifiedNorm(4), nn.Linear(4, 2)).eval()
        >>> fused, report = fuse_norms(model, torch.randn(3, 4))
        >>> fused[0]
        Identity()
    """
    if model.training:
        raise RuntimeError("model is in training mode, where norms are not constant; call model.eval() first")
    fused = copy.deepcopy(model)
    norms = dict(named(fused, lambda module: isinstance(module, Constant)))
    if not norms:
        raise ValueError(f"model has no UnifiedNorm or BatchNorm1d; its modules are {kinds(model)}")
    uses = _Uses(fused, norms)
    before = uses.watch(fused, example_input)
    changed, skipped = {}, {}
    for name, norm in norms.items():
        reason = uses.obstacle(name)
        if reason is not None:
            skipped[name] = reason
            continue
        for consumer in uses.consumers[name]:
            _fold(norm, uses.maps[consumer])
        replace(fused, norm, nn.Identity())
        changed[name] = f"folded into {', '.join(sorted(uses.consumers[name]))}"
    difference, size = _difference(before, _tensors(_call(fused, example_input)))
    if difference > tolerance * max(size, 1.0):
        raise RuntimeError(f"fused outputs differ by {difference:.3g} (outputs up to {size:.3g}): {changed}")
    return fused, Surgery("Norms folded into the following maps", changed, skipped, difference)


class _Uses(TorchFunctionMode):
    """Who uses the outputs of norms: every function that is called with one of them."""

    def __init__(self, model: nn.Module, norms: dict[str, nn.Module]) -> None:
        super().__init__()
        self.maps = dict(named(model, _is_map))
        self.by_weight = {id(getattr(module, "weight")): name for name, module in self.maps.items()}  # noqa: B009
        self.norms = norms
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id is not used again
        self.inside = 0
        self.calls: dict[str, int] = defaultdict(int)
        self.consumers: dict[str, set[str]] = defaultdict(set)
        self.others: dict[str, set[str]] = defaultdict(set)
        self.fed_otherwise: set[str] = set()

    def watch(self, model: nn.Module, example: Any) -> list[Tensor]:
        handles = []
        for name, norm in self.norms.items():
            handles.append(norm.register_forward_hook(lambda _, __, output, name=name: self._made(name, output)))
        with self:
            results = _tensors(_call(model, example))
        for handle in handles:
            handle.remove()
        for tensor in results:
            if id(tensor) in self.outputs:
                self.others[self.outputs[id(tensor)][0]].add("the model's output")
        return results

    def _made(self, name: str, output: Tensor) -> None:
        self.calls[name] += 1
        self.outputs[id(output)] = (name, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [tensor for tensor in _tensors((args, kwargs)) if isinstance(tensor, Tensor)]
        weight = next((self.by_weight[id(t)] for t in given if id(t) in self.by_weight), None)
        sources = {self.outputs[id(tensor)][0] for tensor in given if id(tensor) in self.outputs}
        if weight is not None and isinstance(result, Tensor) and func is not Tensor.detach and not sources:
            self.fed_otherwise.add(weight)
        for source in sources:
            if weight is not None:
                self.consumers[source].add(weight)
            elif isinstance(result, Tensor) and _keeps_channels(func, args, given, result):
                self.outputs[id(result)] = (source, result)
            elif _tensors(result):
                self.others[source].add(getattr(func, "__name__", str(func)))
        return result

    def obstacle(self, name: str) -> str | None:
        """Why a norm cannot be folded, or None."""
        if self.calls[name] != 1:
            return f"it is called {self.calls[name]} times in the example"
        if self.others[name]:
            return f"its output is also used by {', '.join(sorted(self.others[name]))}"
        if not self.consumers[name]:
            return "no linear map follows it"
        for consumer in sorted(self.consumers[name]):
            others = [norm for norm, users in self.consumers.items() if norm != name and consumer in users]
            if consumer in self.fed_otherwise or others:
                return f"the weights of {consumer} are used with other inputs too"
            if isinstance(self.norms[name], nn.BatchNorm1d) and type(self.norms[name]) is nn.BatchNorm1d:
                three = self.outputs_ndim(name) == 3
                if three != isinstance(self.maps[consumer], nn.Conv1d):
                    return f"its channels are not those of {consumer}"
        return None

    def outputs_ndim(self, name: str) -> int:
        """Dimensions of the norm's output."""
        return next(tensor.ndim for norm, tensor in self.outputs.values() if norm == name)


def _is_map(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d):
        return module.kernel_size == (1,) and module.groups == 1 and module.padding in ((0,), "valid")
    return isinstance(module, nn.Linear) or is_conv1d_of_transformers(module)


def _keeps_channels(func: Any, args: tuple[Any, ...], given: list[Tensor], result: Tensor) -> bool:
    """Whether it only rearranges or selects rows of channels."""
    if func is Tensor.__getitem__:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        simple = all(isinstance(part, int | slice) for part in index)
        return simple and (len(index) < given[0].ndim or index[-1] == slice(None))
    return getattr(func, "__name__", "") in _RESHAPES and given[0].shape[-1:] == result.shape[-1:]


def _fold(norm: nn.Module, module: nn.Module) -> None:
    scale, shift = _affine(norm)
    weight = module.get_parameter("weight")
    if is_conv1d_of_transformers(module):
        matrix, column = weight.double().T, scale[None]
    else:
        matrix, column = weight.double().flatten(1), scale[None]
    old = getattr(module, "bias", None)
    bias = matrix @ shift + (0 if old is None else old.double())
    folded = matrix * column
    weight.copy_((folded.T if is_conv1d_of_transformers(module) else folded).reshape(weight.shape))
    module.bias = nn.Parameter(bias.to(weight.dtype))


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    if isinstance(norm, UnifiedNorm):
        return norm.scale().double(), norm.bias.double()
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double())
    shift = 0 if norm.bias is None else norm.bias.double()
    return scale, shift - norm.running_mean.double() * scale


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts (transformers' outputs are dicts)."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [tensor for part in tree for tensor in _tensors(part)] if isinstance(tree, tuple | list) else []


def _difference(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.numel() and a.is_floating_point()]
    return max((a - b).abs().max().item() for a, b in pairs), max(a.abs().max().item() for a, _ in pairs)
