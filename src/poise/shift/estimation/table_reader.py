"""From a table of the user to the arrays of scored rows: columns, classes, encodings, and what was wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np

from poise.shift.estimation.scored_rows import ScoredRows
from poise.tools.listing import listing

_UNSEEN = -1.0


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column of a table is what.

    Args:
        y_true: the label.
        y_score: the score of the positive class, or a mapping from each class to the column of its score.
        y_pred: the prediction; None where it follows from the scores.
        timestamp: the time; None if there is none.
        features: inputs of the classifier; None for all other columns.
        threshold: score from which a row is predicted positive, where there is no ``y_pred``.
        positive: label of the positive class.
    """

    y_true: str
    y_score: str | Mapping[Any, str]
    y_pred: str | None = None
    timestamp: str | None = None
    features: Sequence[str] | None = None
    threshold: float = 0.5
    positive: Any = 1

    @property
    def score_columns(self) -> list[str]:
        """The columns of scores."""
        return [self.y_score] if isinstance(self.y_score, str) else list(self.y_score.values())


class TableReader:
    """Reads tables with the columns, classes and categories of a labelled reference.

    Args:
        reference: pandas, Polars or Arrow table.
        roles: which column is what.

    Attributes:
        classes: the classes in the order of their numbers.
        features: names of the features in use.
        left_out: columns that could have been features, with the reason why they are not.
        notes: what the user should know about the table.
    """

    def __init__(self, reference: Any, roles: Roles) -> None:
        table = as_table(reference, "reference")
        _require(table, [roles.y_true, *roles.score_columns, *_given(roles.y_pred, roles.timestamp)], "reference")
        self.roles = roles
        self.classes = _classes(table[roles.y_true], roles)
        self.notes: list[str] = []
        self.features, self.left_out = _features(table, roles)
        self.categories = {name: _categories(table[name]) for name in self.features if _is_text(table[name])}

    def read(
        self, frame: Any, *, labels: bool, features: bool = True, name: str = "production", index: Any = None
    ) -> ScoredRows:
        """Return rows of a table as arrays.

        Args:
            frame: the table.
            labels: whether labels are read; where the column is missing or empty, there are none. A label that is
                missing is -1.
            features: whether features are read.
            name: of the table, in errors.
            index: numbers of the rows; all by default.

        Raises:
            ValueError: if a column is missing, scores are not probabilities, or a label is unknown.
        """
        table = as_table(frame, name)
        self.require_columns(table, features, name)
        if index is not None:  # columns first: a table may be wide, and taking rows copies them
            kept = {*self.roles.score_columns, *_given(self.roles.y_pred), *((self.roles.y_true,) if labels else ())}
            kept |= set(self.features) if features else set()
            table = table.select([column for column in table.columns if column in kept])
            table = table[index] if not isinstance(index, slice) else table[index.start : index.stop]
        score = self._scores(table, name)
        prediction = self._predictions(table, score, name)
        label = self._labels(table, name) if labels else None
        return ScoredRows(score, prediction, label, self._encoded(table) if features else None)

    def require_columns(self, table: nw.DataFrame, features: bool, name: str) -> None:
        """Raise ValueError if a column is missing."""
        wanted = [*self.roles.score_columns, *_given(self.roles.y_pred)]
        _require(table, [*wanted, *(self.features if features else ())], name)

    def _scores(self, table: nw.DataFrame, name: str) -> np.ndarray:
        columns = [_floats(table[column], f"{name}[{column!r}]") for column in self.roles.score_columns]
        for column, values in zip(self.roles.score_columns, columns, strict=True):
            wrong = ~((values >= 0) & (values <= 1))
            if wrong.any():
                missing = int(np.isnan(values).sum())
                what = f"{missing} missing scores" if missing else f"{values[wrong][0]:g}"
                raise ValueError(
                    f"{name}[{column!r}] must hold probabilities in [0, 1], such as from predict_proba, got {what}"
                )
        return np.stack(columns, 1)

    def _predictions(self, table: nw.DataFrame, score: np.ndarray, name: str) -> np.ndarray:
        by_score = score.argmax(1) if score.shape[1] > 1 else (score[:, 0] >= self.roles.threshold).astype(np.int64)
        if self.roles.y_pred is None:
            return by_score
        prediction = self._numbered(table[self.roles.y_pred], f"{name}[{self.roles.y_pred!r}]")
        differ = int((prediction != by_score).sum())
        if name == "reference" and differ:
            rule = "the class with the largest score" if score.shape[1] > 1 else f"a score of {self.roles.threshold:g}"
            self.notes.append(f"In {differ:,} rows of the reference the prediction is not that of {rule}.")
            warnings.warn(self.notes[-1], UserWarning, stacklevel=4)
        return prediction

    def _labels(self, table: nw.DataFrame, name: str) -> np.ndarray | None:
        if self.roles.y_true not in table.columns:
            return None
        column = table[self.roles.y_true]
        missing = _missing(column)
        if missing == len(column):
            return None
        if missing and name == "reference":
            raise ValueError(f"reference[{self.roles.y_true!r}] must have no missing labels, got {missing:,}")
        return self._numbered(column, f"{name}[{self.roles.y_true!r}]", missing)

    def _numbered(self, column: nw.Series, what: str, missing: int = 0) -> np.ndarray:
        values = column.to_numpy()
        numbers = np.full(len(values), -1, dtype=np.int64)
        for number, label in enumerate(self.classes):
            numbers[np.asarray(values == label, dtype=bool)] = number
        if (numbers < 0).sum() != missing:
            wrong = next(value for value in values[numbers < 0] if not _is_missing(value))
            wrong = wrong.item() if isinstance(wrong, np.generic) else wrong
            raise ValueError(f"{what} must be one of {list(self.classes)}, got {wrong!r}")
        return numbers

    def _encoded(self, table: nw.DataFrame) -> np.ndarray:
        # float32 keeps half the memory; trees compare quantiles of each feature only.
        out = np.empty((len(table), len(self.features)), dtype=np.float32)
        for i, name in enumerate(self.features):
            if name in self.categories:
                out[:, i] = _codes(table[name], self.categories[name])
            else:
                out[:, i] = _floats(table[name], name)
        return out

    def times(self, frame: Any, name: str) -> np.ndarray | None:
        """Return the times of all rows, or None if there is no such column."""
        if self.roles.timestamp is None:
            return None
        table = as_table(frame, name)
        _require(table, [self.roles.timestamp], name)
        column = table[self.roles.timestamp]
        if column.dtype == nw.String:
            column = column.str.to_datetime()
        if not column.dtype.is_temporal():
            raise ValueError(f"{name}[{self.roles.timestamp!r}] must hold dates or times, got {column.dtype}")
        return column.to_numpy().astype("datetime64[us]")


def as_table(frame: Any, name: str) -> nw.DataFrame:
    """Return a pandas, Polars or Arrow table as Narwhals reads it, or raise TypeError."""
    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError:
        raise TypeError(
            f"{name} must be a pandas or Polars data frame or an Arrow table, got {type(frame).__name__}"
        ) from None


def _given(*names: str | None) -> list[str]:
    return [name for name in names if name is not None]


def _require(table: nw.DataFrame, names: Sequence[str], where: str) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        has = listing(table.columns, 8)
        raise ValueError(f"{where} must have the columns {', '.join(missing)}; it has {has}")


def _classes(column: nw.Series, roles: Roles) -> tuple[Any, ...]:
    missing = _missing(column)
    if missing:
        raise ValueError(f"reference[{roles.y_true!r}] must have no missing labels, got {missing:,}")
    found = [value.item() if isinstance(value, np.generic) else value for value in np.unique(column.to_numpy())]
    if not isinstance(roles.y_score, str):
        unknown = [label for label in found if label not in roles.y_score]
        if unknown or len(roles.y_score) < 2:
            raise ValueError(f"y_score must name a column for each class of {roles.y_true}, got none for {unknown}")
        return tuple(roles.y_score)
    if len(found) < 2:
        raise ValueError(f"reference[{roles.y_true!r}] must hold two classes, got only {found}")
    if len(found) > 2:
        if any(isinstance(value, float) and value != int(value) for value in found):
            raise ValueError(f"reference[{roles.y_true!r}] must hold classes: classification only, no regression")
        raise ValueError(f"y_score must map each of the {len(found)} classes of {roles.y_true} to its column of scores")
    if roles.positive not in found:
        raise ValueError(f"positive must be one of the labels {found}, got {roles.positive!r}")
    return tuple(sorted(found, key=lambda label: label == roles.positive))


def _features(table: nw.DataFrame, roles: Roles) -> tuple[tuple[str, ...], dict[str, str]]:
    if roles.features is not None:
        _require(table, roles.features, "reference")
        return tuple(roles.features), {}
    taken = {roles.y_true, *roles.score_columns, *_given(roles.y_pred, roles.timestamp)}
    left_out = {}
    for name in table.columns:
        if name not in taken and (reason := _reason_against(table[name])):
            left_out[name] = reason
    return tuple(name for name in table.columns if name not in taken and name not in left_out), left_out


def _reason_against(column: nw.Series) -> str | None:
    if column.dtype.is_temporal():
        return "a time"
    distinct = column.n_unique()
    if distinct == 1:
        return "constant in the reference"
    if distinct == len(column) > 50 and (column.dtype.is_integer() or _is_text(column)):
        return "another value in every row, as an identifier"
    return None


def _is_text(column: nw.Series) -> bool:
    return not (column.dtype.is_numeric() or column.dtype == nw.Boolean)


def _categories(column: nw.Series) -> dict[Any, int]:
    if isinstance(column.dtype, nw.Enum):  # it has an order of its own
        known = list(column.dtype.categories)
    else:
        known = sorted((value for value in column.unique().to_list() if not _is_missing(value)), key=_category_order)
    return {value: code for code, value in enumerate(known)}


def _category_order(value: Any) -> tuple[float, str]:
    """Categories that are numbers come first, by size: trees then split them where it is sensible."""
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return float("inf"), str(value)


def _codes(column: nw.Series, categories: dict[Any, int]) -> np.ndarray:
    return np.array(
        [np.nan if _is_missing(value) else categories.get(value, _UNSEEN) for value in column.to_list()], dtype=float
    )


def _is_missing(value: Any) -> bool:
    return value is None or value != value or type(value).__name__ == "NAType"


def _missing(column: nw.Series) -> int:
    missing = column.is_null()
    if column.dtype.is_float():
        missing = missing | column.is_nan()
    return int(missing.fill_null(True).sum())


def _floats(column: nw.Series, what: str) -> np.ndarray:
    if not (column.dtype.is_numeric() or column.dtype == nw.Boolean):
        raise ValueError(f"{what} must hold numbers, got {column.dtype}")
    return column.cast(nw.Float64).to_numpy()
