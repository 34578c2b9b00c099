"""How many bytes a step reads and writes beside its peers: the bound of what is limited by memory, not by arithmetic.

Run with ``python benchmarks/memory_traffic.py``. Every tensor that an operation reads or writes is counted once for
that operation, views and allocations not at all. Where tensors stay in the cache between two operations this is what
the cores move; where they do not, the peer's and ours both cost less than counted, each by what it finds there. The
counts do not depend on how busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from adamp import AdamP as AuthorsAdamP
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nn import PlainUnifiedNorm
from poise.nn import UnifiedNorm
from poise.optim import EMA, AdamP, OrthoGrad

Shapes = Sequence[tuple[int, ...]]
CONVOLUTIONS: Shapes = [
    (64, 3, 3, 3),
    *[(64, 64, 3, 3)] * 4,
    (128, 64, 3, 3),
    *[(128, 128, 3, 3)] * 3,
    (10, 128),
    (128,),
    (64,),
]
GPT_BLOCK: Shapes = [(960, 320), (320, 320), (1280, 320), (320, 1280), (320,), (320,)]


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, and the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or func.name().startswith(("aten::empty", "aten::detach")):
            return result
        arguments = func._schema.arguments
        given = {**dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}
        written = [given[a.name] for a in arguments if a.is_write and given.get(a.name) is not None]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        inside = {t.data_ptr() for t in tree_leaves(written) if isinstance(t, Tensor)}
        outputs = [t for t in made if t.data_ptr() not in inside]
        only_written = func.name().startswith(("aten::zero_", "aten::fill_", "aten::copy_"))
        read = [t for name, v in given.items() if not only_written or name != "self" for t in tensors(v)]
        distinct = {t.data_ptr(): t for t in read}.values()  # a square reads its factor once
        self.bytes += sum(t.numel() * t.element_size() for t in [*distinct, *outputs, *tensors(written)])
        self.operations += 1
        return result


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an argument."""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def accesses(step: Callable[[], Any], numbers: int) -> tuple[float, int]:
    """Return how often a step reads or writes each of so many float32 numbers, and its operations."""
    for _ in range(12):  # states are made, and windows are full
        step()
    with Traffic() as traffic:
        step()
    return traffic.bytes / (4 * numbers), traffic.operations


def optimizer_step(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], shapes: Shapes) -> Callable[[], Any]:
    """Return the step of an optimizer on parameters of these shapes with random gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return make(params).step


def ema_step(shapes: Shapes) -> Callable[[], Any]:
    """Return the update of an average of parameters of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return EMA(nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)).update


def training_step(norm: nn.Module, shape: tuple[int, ...]) -> Callable[[], Any]:
    """Return a norm's forward and backward pass."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        x.grad = None
        for p in norm.parameters():
            p.grad = None
        norm(x).backward(weights)

    return step


def main() -> None:
    """Count and print everything."""
    torch.set_num_threads(1)
    for title, shapes in (("a GPT's block", GPT_BLOCK), ("convolutions", CONVOLUTIONS)):
        numbers = sum(torch.Size(shape).numel() for shape in shapes)
        steps = {
            "torch AdamW, foreach": optimizer_step(lambda params: AdamW(params, foreach=True), shapes),
            "poise EMA": ema_step(shapes),
            "poise OrthoGrad of AdamW": optimizer_step(lambda p: OrthoGrad(AdamW(p, foreach=True)), shapes),
            "poise AdamP": optimizer_step(lambda params: AdamP(params, weight_decay=0.01), shapes),
            "adamp AdamP": optimizer_step(lambda params: AuthorsAdamP(params, weight_decay=0.01), shapes),
        }
        print(f"\n{title}: accesses to each of {numbers:,} numbers in a step, and operations")
        for name, step in steps.items():
            print("{:28s}{:8.2f}{:8d}".format(name, *accesses(step, numbers)))
    for shape in ((8, 197, 256), (16, 16, 32)):
        numbers = torch.Size(shape).numel()
        norms: dict[str, nn.Module] = {"torch LayerNorm": nn.LayerNorm(shape[-1])}
        for filtering in (False, True):
            word = ", filter" if filtering else ""
            norms[f"as published{word}"] = PlainUnifiedNorm(shape[-1], filtering, channels_second=True)
            norms[f"poise UnifiedNorm{word}"] = UnifiedNorm(shape[-1], warmup_iters=0, outlier_filtration=filtering)
        print(f"\na norm of {shape}, forward and backward: accesses to each of {numbers:,} numbers, and operations")
        for name, norm in norms.items():
            print("{:28s}{:8.2f}{:8d}".format(name, *accesses(training_step(norm, shape), numbers)))


if __name__ == "__main__":
    main()
