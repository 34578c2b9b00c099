"""Fashion-MNIST, from the package of Debian."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from poise.data.dataset import Dataset

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's and Ubuntu's package ``dataset-fashion-mnist`` puts its files."""

_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_PREFIX = {"train": "train", "test": "t10k"}
_SIDE = 28


def has_fashion_mnist(folder: str | os.PathLike[str] = FOLDER) -> bool:
    """Return whether :func:`load_fashion_mnist` finds its files in this folder."""
    return all(_file(Path(folder), part, kind).is_file() for part in _PREFIX for kind in ("images-idx3", "labels-idx1"))


def load_fashion_mnist(
    part: Literal["train", "test"] = "train", samples: int | None = None, folder: str | os.PathLike[str] = FOLDER
) -> Dataset:
    """Load photographs of clothes of 28 x 28 pixels, ten classes: 60,000 for training or 10,000 for testing.

    ``inputs`` has shape (samples, 784) with values 0 to 255, row after row of the image
    (``inputs.view(-1, 1, 28, 28)`` are images); ``targets`` int64 with shape (samples,). The files are read where the
    package ``dataset-fashion-mnist`` of Debian and Ubuntu puts them; nothing is downloaded.

    Args:
        part: ``"train"`` or ``"test"``.
        samples: the first so many; all by default. Their order is random in the files.
        folder: of the four ``.gz`` files.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if ``part`` is unknown, there are fewer than ``samples`` or ``samples`` is below 1, or a file is not
            of the IDX format.

    References:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
        2017, arXiv:1708.07747.
    """
    if part not in _PREFIX:
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    images = _read(_file(Path(folder), part, "images-idx3"), samples, _SIDE * _SIDE)
    labels = _read(_file(Path(folder), part, "labels-idx1"), samples, 1)
    inputs = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))
    targets = torch.from_numpy(labels.reshape(-1).astype(np.int64))
    columns = tuple(f"pixel_{row}_{column}" for row in range(_SIDE) for column in range(_SIDE))
    return Dataset("Fashion-MNIST", inputs, targets, columns, _NAMES)


def _file(folder: Path, part: str, kind: str) -> Path:
    return folder / f"{_PREFIX[part]}-{kind}-ubyte.gz"


def _read(path: Path, samples: int | None, size: int) -> np.ndarray:
    """Read the first samples of a file of the IDX format: magic number, extents (big-endian), bytes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {str(path)!r}: install the package dataset-fashion-mnist (apt-get install "
            "dataset-fashion-mnist), or give the folder of its four files"
        )
    with gzip.open(path) as file:
        head = np.frombuffer(file.read(4), np.uint8)
        if len(head) < 4 or head[0] or head[1] or head[2] != 8:
            raise ValueError(f"{str(path)!r} must be an IDX file of bytes, got the magic number {head.tolist()}")
        extents = np.frombuffer(file.read(4 * int(head[3])), ">u4")
        count, own = int(extents[0]), int(np.prod(extents[1:]))
        if own != size:
            raise ValueError(f"{str(path)!r} must hold {size} bytes a sample, got {own}")
        if samples is not None and samples > count:
            raise ValueError(f"samples must be at most {count}, got {samples}")
        wanted = count if samples is None else samples
        values = np.frombuffer(file.read(wanted * size), np.uint8)
    if len(values) < wanted * size:
        raise ValueError(f"{str(path)!r} ends after {len(values)} bytes, {wanted * size} are wanted")
    return values.reshape(wanted, size)
