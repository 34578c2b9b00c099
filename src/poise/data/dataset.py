"""Tables of inputs and targets that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from sklearn import datasets
from sklearn.utils import Bunch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Inputs and targets of a supervised problem, on the scale on which they were measured.

    Args:
        name: name of the data set.
        inputs: float32, one row a sample.
        targets: int64 class numbers, or float32 values in a regression.
        input_names: names of the columns of ``inputs``.
        target_names: names of the classes; empty in a regression.
    """

    name: str
    inputs: Float[Tensor, "samples columns"]
    targets: Shaped[Tensor, " samples"]
    input_names: tuple[str, ...]
    target_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)


def load_digits() -> Dataset:
    """Load 1797 handwritten digits of 8 x 8 pixels, ten classes.

    ``inputs`` has shape (1797, 64) with values 0 to 16, row after row of the image (``inputs.view(-1, 1, 8, 8)`` are
    images); ``targets`` int64 with shape (1797,), the digit.

    References:
        E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    return _classes("digits", datasets.load_digits())


def load_breast_cancer() -> Dataset:
    """Load 569 tumours described by 30 measurements of cell nuclei, two classes.

    ``inputs`` has shape (569, 30) with columns of very different scale; ``targets`` int64 with shape (569,),
    0 malignant and 1 benign.

    References:
        W. Wolberg, O. Mangasarian, N. Street, W. Street (1995), Breast Cancer Wisconsin (Diagnostic), UCI Machine
        Learning Repository.
    """
    return _classes("breast cancer", datasets.load_breast_cancer())


def load_diabetes() -> Dataset:
    """Load 442 diabetes patients: ten measurements and the progression of the disease within a year.

    ``inputs`` has shape (442, 10) in the units of the clinic (years, kg/m2, mmHg, mg/dl; sex is 1 or 2), not in
    scikit-learn's rescaled ones; ``targets`` float32 with shape (442,), from 25 to 346.

    References:
        B. Efron, T. Hastie, I. Johnstone, R. Tibshirani (2004), Least Angle Regression, Annals of Statistics 32.
    """
    raw = datasets.load_diabetes(scaled=False)
    inputs, targets = (torch.tensor(array, dtype=torch.float32) for array in (raw.data, raw.target))
    return Dataset("diabetes", inputs, targets, tuple(raw.feature_names))


def _classes(name: str, raw: Bunch) -> Dataset:
    inputs, targets = torch.tensor(raw.data, dtype=torch.float32), torch.tensor(raw.target, dtype=torch.int64)
    names = tuple(str(item) for item in raw.feature_names)
    return Dataset(name, inputs, targets, names, tuple(str(item) for item in raw.target_names))
