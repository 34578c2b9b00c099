"""What the estimators of this room read, checked: a table, an outcome, the arms of a treatment, weights and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, column_or_1d, validate_data

_MOST_ARMS = 20


@dataclass(frozen=True, slots=True, eq=False)
class CausalData:
    """Checked inputs of a fit.

    Args:
        x: covariates, float64.
        y: outcome, float64.
        arm: index of each row's arm in ``levels``.
        levels: labels of the arms, the control first.
        weight: weights of rows, of mean 1; ``None`` where all count the same.
        groups: number of each row's group, for clustered folds and standard errors; ``None`` where rows are
            independent.
    """

    x: Float[np.ndarray, "rows columns"]
    y: Float[np.ndarray, " rows"]
    arm: Int[np.ndarray, " rows"]
    levels: np.ndarray
    weight: Float[np.ndarray, " rows"] | None = None
    groups: Int[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> CausalData:
        """Return a part of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        groups = None if self.groups is None else self.groups[rows]
        return CausalData(self.x[rows], self.y[rows], self.arm[rows], self.levels, weight, groups)


def checked_data(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    treatment: Any,
    sample_weight: Any = None,
    groups: Any = None,
    control: Any = None,
    allow_constant: bool = False,
) -> CausalData:
    """Check the inputs of a fit and set ``n_features_in_`` and ``feature_names_in_`` of an estimator.

    Args:
        estimator: what is fitted.
        X: numeric table of shape (rows, columns): an array, or a pandas, Polars or Arrow table.
        y: numeric outcome of shape (rows,).
        treatment: labels of arms, of shape (rows,).
        sample_weight: weights of shape (rows,), not negative.
        groups: labels of groups, of shape (rows,).
        control: label of the arm that others are compared with; the smallest by default.
        allow_constant: whether ``y`` may be constant.

    Raises:
        ValueError: if lengths differ, something is not finite, ``y`` is constant, there is one arm only, or the
            treatment is continuous.
    """
    require_numeric_columns(X)
    x, y = validate_data(estimator, X, y, dtype=np.float64, order="C", y_numeric=True, ensure_min_samples=2)
    y = np.asarray(y, dtype=np.float64)
    if np.ptp(y) == 0 and not allow_constant:
        raise ValueError(f"y must vary, got {len(y)} times the value {y[0]:g}")
    arm, levels = arms_of(treatment, control)
    check_consistent_length(x, arm)
    weight = None if sample_weight is None else _checked_weight(sample_weight, len(y))
    return CausalData(x, y, arm, levels, weight, None if groups is None else _checked_groups(groups, len(y)))


def checked_rows(estimator: BaseEstimator, X: Any) -> Float[np.ndarray, "rows columns"]:
    """Check covariates of a prediction against those of the fit.

    Raises:
        ValueError: if columns differ from those of the fit, or something is not finite.
    """
    require_numeric_columns(X)
    x: np.ndarray = validate_data(estimator, X, dtype=np.float64, order="C", reset=False)
    return x


def require_numeric_columns(X: Any) -> None:
    """Raise an error that names the columns of a table that hold no numbers.

    Raises:
        ValueError: if there are such columns.
    """
    frame = nw.from_native(X, eager_only=True, pass_through=True)
    if isinstance(frame, nw.DataFrame):
        odd = [name for name, kind in frame.schema.items() if not (kind.is_numeric() or kind == nw.Boolean)]
        if odd:
            raise ValueError(f"X must hold numbers, got other values in column {', '.join(map(repr, odd))}")


def arms_of(treatment: Any, control: Any = None) -> tuple[Int[np.ndarray, " rows"], np.ndarray]:
    """Return the arm of each row as a number, and the labels of the arms, the control first.

    Args:
        treatment: labels of shape (rows,): 0 and 1, ``bool``, text, or whole numbers of several arms.
        control: label of the control; the smallest by default.

    Raises:
        ValueError: if labels are missing, there is one arm only, the treatment is continuous, or there is no such
            control.
    """
    labels = column_or_1d(_one_column(treatment), warn=False)
    if labels.dtype.kind == "O" and any(label is None or label != label for label in labels):
        raise ValueError("treatment must have no missing labels, got some")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError("treatment must have no missing labels, got NaN or infinity")
        if (labels != np.round(labels)).any():
            raise ValueError(
                "treatment must hold labels of arms; it is continuous "
                f"(for example {labels[labels != np.round(labels)][0]:g}), which no estimator of this room handles"
            )
    levels, arm = np.unique(labels, return_inverse=True)
    if len(levels) < 2:
        raise ValueError(f"treatment must have at least two arms, got only {levels[0]!r}")
    if len(levels) > _MOST_ARMS:
        raise ValueError(
            f"treatment must have at most {_MOST_ARMS} arms, got {len(levels)} different values: is it continuous?"
        )
    first = 0
    if control is not None:
        if control not in levels:
            raise ValueError(f"control must be one of {levels.tolist()}, got {control!r}")
        first = int(np.flatnonzero(levels == control)[0])
    order = np.array([first, *(i for i in range(len(levels)) if i != first)])
    return np.argsort(order)[arm], levels[order]


def binary_column(name: str, values: Any) -> Float[np.ndarray, " rows"]:
    """Return a column of two labels as 0.0 and 1.0, the smaller label being 0.

    Raises:
        ValueError: if it has not exactly two labels.
    """
    try:
        arm, levels = arms_of(values)
    except ValueError as error:
        raise ValueError(str(error).replace("treatment", name, 1)) from None
    if len(levels) != 2:
        raise ValueError(f"{name} must be binary, got the {len(levels)} values {levels.tolist()}")
    return arm.astype(float)


def _one_column(values: Any) -> np.ndarray:
    native = nw.from_native(values, allow_series=True, pass_through=True)
    if isinstance(native, nw.Series):
        return native.to_numpy()
    return np.asarray(native.to_numpy() if isinstance(native, nw.DataFrame) else values)


def _checked_weight(sample_weight: Any, rows: int) -> Float[np.ndarray, " rows"]:
    weight = column_or_1d(_one_column(sample_weight)).astype(float)
    if len(weight) != rows:
        raise ValueError(f"sample_weight must have one weight for each of {rows} rows, got {len(weight)}")
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise ValueError("sample_weight must be finite, not negative and not all zero")
    return weight / weight.mean()


def _checked_groups(groups: Any, rows: int) -> Int[np.ndarray, " rows"]:
    labels = column_or_1d(_one_column(groups))
    if len(labels) != rows:
        raise ValueError(f"groups must have one label for each of {rows} rows, got {len(labels)}")
    number: np.ndarray = np.unique(labels, return_inverse=True)[1]
    return number


def refuse_instrument(instrument: Any, estimator: BaseEstimator) -> None:
    """Raise an error where an instrument is given to an estimator that does not use one.

    Raises:
        ValueError: if ``instrument`` is not ``None``.
    """
    if instrument is not None:
        raise ValueError(
            f"instrument must be None for {type(estimator).__name__}, which assumes no unmeasured confounding; "
            "InvalidIVATE uses an instrument"
        )


FIT_REQUESTS: Mapping[str, bool] = {"treatment": True, "instrument": True, "sample_weight": True, "groups": True}
"""What ``fit`` of every estimator of this room asks of scikit-learn's metadata routing."""
