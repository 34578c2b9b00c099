"""Run the model's forward pass once more for the watch, without side effects."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from poise.tools.random_states import preserved_random_states
from poise.tools.unwrap import unwrap


@dataclass
class RootCall:
    """One call of a root module: what it was given, and under which autocast."""

    root: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[tuple[str, torch.dtype], ...]

    @classmethod
    def capture(cls, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RootCall:
        """Keep references to the inputs; nothing is copied."""
        if not torch._C._is_any_autocast_enabled():
            return cls(root, args, kwargs, ())
        devices = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
        return cls(root, args, kwargs, tuple((d, torch.get_autocast_dtype(d)) for d in devices))


@contextlib.contextmanager
def shadow(call: RootCall) -> Iterator[Callable[[], Any]]:
    """Yield a function that repeats ``call`` eagerly.

    Random states, buffers and attributes of the modules are put back afterwards, and what the forward pass prints is
    discarded. DDP wrappers are left out, so that no other process is waited for.
    """
    model = unwrap(call.root)

    def forward() -> Any:
        with contextlib.ExitStack() as stack:
            for device, dtype in call.autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            return model(*call.args, **call.kwargs)

    with undisturbed([model]), torch._C._EnableTorchFunction(), contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the check would import it
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield forward


@contextlib.contextmanager
def undisturbed(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put random states, buffers and attributes of the models back at the end, and discard what is printed."""
    with contextlib.ExitStack() as stack:
        for device in _devices():
            stack.enter_context(preserved_random_states(device))
        for model in models:
            stack.enter_context(_own_buffers(model))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def can_shadow(call: RootCall) -> bool:
    """Return whether a forward pass can be repeated by this process alone."""
    return not any(isinstance(m, nn.SyncBatchNorm) for m in call.root.modules())


def _devices() -> list[torch.device]:
    if not torch.cuda.is_initialized():
        return [torch.device("cpu")]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _own_buffers(model: nn.Module) -> Iterator[None]:
    """Let every module work on copies of its buffers, and undo whatever its forward assigns to attributes."""
    before = [(m, dict(m.__dict__), dict(m._buffers)) for m in model.modules()]
    for module, _, buffers in before:
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.detach().clone()
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
