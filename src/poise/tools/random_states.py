"""The random states that a forward pass may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomStates:
    """The states of Python's, NumPy's and torch's generators, as they are now.

    Args:
        device: its generator is included beside that of the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._accelerator = None if device.type == "cpu" else torch.get_device_module(device)
        self._where = () if device.type == "mps" else (device,)
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()  # noqa: NPY002
        self._torch = torch.get_rng_state()
        self._device: Any = None if self._accelerator is None else self._accelerator.get_rng_state(*self._where)

    def restore(self) -> None:
        """Set all generators back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._accelerator is not None:
            self._accelerator.set_rng_state(self._device, *self._where)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RandomStates)
            and self._python == other._python
            and self._numpy[0] == other._numpy[0]
            and np.array_equal(self._numpy[1], other._numpy[1])
            and self._numpy[2:] == other._numpy[2:]
            and torch.equal(self._torch, other._torch)
            and (self._device is None or torch.equal(self._device, other._device))
        )

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def preserved_random_states(device: torch.device) -> Iterator[None]:
    """Set all generators back at the end."""
    states = RandomStates(device)
    try:
        yield
    finally:
        states.restore()


@contextmanager
def seeded_random_states(device: torch.device, seed: int) -> Iterator[None]:
    """Seed all generators, and set them back at the end.

    Args:
        device: its generator is included beside that of the CPU.
        seed: of Python's, NumPy's and torch's generators.
    """
    with preserved_random_states(device):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield
