"""Whether a tensor holds numbers that may be read."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

is_compiling = torch.compiler.is_compiling


def is_transforming() -> bool:
    """Return whether the running code is traced, transformed by torch.func, or intercepted by a dispatch mode.

    Tensors hold no numbers of their own there, or whatever is computed from them would be recorded.
    """
    return (
        is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_plain(tensor: Any) -> TypeGuard[Tensor]:
    """Return whether ``tensor`` is an ordinary dense tensor: no subclass, and not nested, sparse, quantised or meta."""
    if type(tensor) not in (Tensor, nn.Parameter) or is_transforming():
        return False
    with torch._C.DisableTorchFunction():  # otherwise a mode of the script would intercept the attribute access
        is_dense = tensor.layout is torch.strided and not tensor.is_nested
        return is_dense and not tensor.is_quantized and not tensor.is_meta


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured: then no number on the device can be asked for."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
