"""Change the seeds of an unmodified script."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from poise.doctor.tap.patches import Patches

_SEEDERS = (
    (torch, "manual_seed"),
    (torch.random, "manual_seed"),
    (torch.cuda, "manual_seed"),
    (torch.cuda, "manual_seed_all"),
    (random, "seed"),
    (np.random, "seed"),
    (np.random, "default_rng"),
)


@contextlib.contextmanager
def offset_seeds(offset: int) -> Iterator[None]:
    """Add ``offset`` to every integer seed that the script sets, and seed what it does not.

    Reaches ``torch.manual_seed``, ``random.seed``, ``numpy.random.seed`` and ``numpy.random.default_rng``. It does not
    reach ``torch.Generator().manual_seed``, which is no Python function.

    Args:
        offset: number to add; 0 leaves the script's own seeds as they are.
    """
    patches = Patches()
    random.seed(offset)
    np.random.seed(offset % 2**32)  # noqa: NPY002 - the global state is what scripts use
    torch.manual_seed(offset)
    for owner, name in _SEEDERS:
        patches.replace(owner, name, functools.partial(_offset, offset))
    try:
        yield
    finally:
        patches.undo()


def _offset(offset: int, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int):
            return original(args[0] + offset, *args[1:], **kwargs)
        if isinstance(kwargs.get("seed"), int):
            kwargs["seed"] += offset
        return original(*args, **kwargs)

    return seeded
