"""The user's own module inside the wrappers of torch."""

from __future__ import annotations

from torch import nn


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers of DDP, DataParallel and ``torch.compile``; itself if there is none.

    Args:
        module: any module. Types are compared by name, so that nothing of torch's distributed training is imported.
    """
    while True:
        children = module._modules
        inner = children.get("_orig_mod") or (children.get("module") if _is_parallel(module) else None)
        if inner is None:
            return module
        module = inner


def _is_parallel(module: nn.Module) -> bool:
    return any(kind.__name__ in ("DistributedDataParallel", "DataParallel") for kind in type(module).__mro__)
