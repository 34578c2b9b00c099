"""Tensors of a checkpoint file by name, read on first use."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.tools.atomic_write import atomic_write

_NESTED = ("state_dict", "model_state_dict", "model")


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file; each is read from the disk on first use.

    Args:
        path: the file.

    Raises:
        ImportError: if the ``safetensors`` package is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(f"{path} needs the package safetensors: pip install 'poise[checkpoints]'") from error
        self._file = safe_open(path, framework="pt", device="cpu")
        self._names = tuple(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint by name, without reading them all.

    A torch file may hold a ``state_dict`` itself or one under ``"state_dict"``, ``"model_state_dict"`` or ``"model"``.
    It is loaded with ``weights_only=True`` and mapped into memory.

    Args:
        path: a file that ends in ``.safetensors``, or one that ``torch.save`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if ``safetensors`` is needed and missing.
        ValueError: if the file holds no named tensors, or something that could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(path)!r} holds more than tensors and is not loaded: to build other objects may execute code"
        ) from error
    except (RuntimeError, ValueError, OSError, EOFError, ModuleNotFoundError) as error:
        raise ValueError(f"{str(path)!r} is no checkpoint that torch can read: {error}") from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{str(path)!r} holds no state_dict (names with tensors), but {type(found).__name__}")
    return found


def save_checkpoint(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write named tensors; an existing file is replaced only when the new one is whole.

    Args:
        tensors: what to write.
        path: ends in ``.safetensors``, or in anything else for a torch file.

    Raises:
        ImportError: if ``safetensors`` is needed and missing.
    """
    path = Path(path)
    with atomic_write(path) as draft:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            # The format has no shared tensors: a tied one is written at each of its names.
            save_file(
                {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, draft
            )
        else:
            torch.save(dict(tensors), draft)
