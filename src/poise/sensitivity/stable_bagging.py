"""Averages over bags whose stability is guaranteed, and measured without training again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import joblib
import numpy as np
from jaxtyping import Bool, Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from poise.sensitivity.bagging_guarantee import guaranteed_change, guaranteed_fraction
from poise.sensitivity.resampling import Bernoulli, Bootstrap, PoissonBootstrap, Resampling, Subsample

SchemeName = Literal["subsample", "bootstrap", "poisson", "bernoulli"]
Clip = Literal["range"] | tuple[Any, Any] | None
Self = TypeVar("Self", bound="_StableBagging")


class _StableBagging(MetaEstimatorMixin, BaseEstimator):
    """What both bags share: members, membership of rows, leave-one-out outputs and guarantees."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        resampling: SchemeName | Resampling = "subsample",
        max_samples: float | int = 0.5,
        n_estimators: int = 200,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.resampling = resampling
        self.max_samples = max_samples
        self.n_estimators = n_estimators
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _fit(self: Self, X: Any, y: Any, sample_weight: Any) -> Self:
        random = check_random_state(self.random_state)
        if self.n_estimators < 1:
            raise ValueError(f"n_estimators must be at least 1, got {self.n_estimators!r}")
        rows = self._copies(X, sample_weight)
        n = len(rows)
        self.scheme_ = self._scheme(n)
        rng = np.random.default_rng(random.randint(2**31 - 1))
        counts = np.stack([self.scheme_.draw(n, rng) for _ in range(self.n_estimators)])
        if (empty := counts.sum(1) == 0).any():
            raise ValueError(f"max_samples must give bags with rows, got {int(empty.sum())} empty bags")
        seeds = random.randint(2**31 - 1, size=self.n_estimators)
        jobs = (
            joblib.delayed(_fitted)(self._base(), X, y, np.repeat(rows, c), s)
            for c, s in zip(counts, seeds, strict=True)
        )
        self.estimators_ = joblib.Parallel(self.n_jobs)(jobs)
        self._remember(counts > 0, rows)
        return self

    def _remember(self, membership: Bool[np.ndarray, "bags copies"], rows: Shaped[np.ndarray, " copies"]) -> None:
        self.n_rows_ = len(rows)
        # Of equal copies of a row, leaving out the first stands for leaving out any.
        _, first = np.unique(rows, return_index=True)
        self.membership_ = membership[:, first]

    def _copies(self, X: Any, sample_weight: Any) -> Shaped[np.ndarray, " copies"]:
        """Rows, each as often as its weight says."""
        if sample_weight is None:
            return np.arange(len(X))
        weight = _check_sample_weight(sample_weight, X)
        if (weight < 0).any() or (weight != np.round(weight)).any():
            raise ValueError("sample_weight must be whole numbers of at least 0: how often each row counts")
        if (weight == 0).any() and self.resampling in ("subsample", "bernoulli"):
            row = int(np.flatnonzero(weight == 0)[0])
            raise ValueError(f"sample_weight must be at least 1 without replacement, got 0 for row {row}: leave it out")
        return np.repeat(np.arange(len(weight)), weight.astype(int))

    def _scheme(self, n: int) -> Resampling:
        if not isinstance(self.resampling, str):
            return self.resampling
        size = self.max_samples
        if not (size > 0 and (isinstance(size, int | np.integer) or size <= 1)):
            raise ValueError(f"max_samples must be a number of rows, or a fraction in (0, 1], got {size!r}")
        m = int(size) if isinstance(size, int | np.integer) else max(1, round(size * n))
        if self.resampling == "bernoulli":
            return Bernoulli(m / n)
        kinds: dict[str, Callable[[int], Resampling]] = {
            "subsample": Subsample,
            "bootstrap": Bootstrap,
            "poisson": PoissonBootstrap,
        }
        if self.resampling not in kinds:
            raise ValueError(f"resampling must be one of {', '.join([*kinds, 'bernoulli'])}, got {self.resampling!r}")
        return kinds[self.resampling](m)

    def _base(self) -> Any:
        raise NotImplementedError

    def _outputs(self, X: Any) -> Float[np.ndarray, "bags rows outputs"]:
        raise NotImplementedError

    def _averaged(self, X: Any) -> Float[np.ndarray, "rows outputs"]:
        return np.asarray(self._outputs(X).mean(0))

    def _leave_one_out(self, X: Any) -> Float[np.ndarray, "train rows outputs"]:
        outputs = self._outputs(X)
        without = ~self.membership_
        count = without.sum(0)
        if (never := np.flatnonzero(count == 0)).size:
            names = ", ".join(str(row) for row in never[:5]) + (f" and {len(never) - 5} more" if len(never) > 5 else "")
            raise ValueError(f"every bag holds row {names}: take more bags or smaller ones")
        flat = outputs.reshape(len(outputs), -1)
        left = (without.T.astype(float) @ flat) / count[:, None]
        return left.reshape(len(count), *outputs.shape[1:])

    def guarantee(self, *, delta: float | None = None, eps: float | None = None) -> float:
        """Return what holds for any data and learner when a row is left out, for outputs in [0, 1].

        Args:
            delta: fraction of the rows; the change is returned that at most so many can exceed.
            eps: change; the fraction of the rows is returned that can exceed it.

        Raises:
            ValueError: unless one of both is given.
        """
        check_is_fitted(self, "membership_")
        if (delta is None) == (eps is None):
            raise ValueError(f"give delta or eps, got delta={delta!r} and eps={eps!r}")
        bags = len(self.membership_)
        if delta is not None:
            return guaranteed_change(self.scheme_, self.n_rows_, delta, bags)
        return guaranteed_fraction(self.scheme_, self.n_rows_, float(eps or 0), bags)


class StableBaggingRegressor(RegressorMixin, _StableBagging):
    """The average of regressors on bags of rows, with leave-one-out predictions and guarantees.

    Args:
        estimator: regressor; clones are fitted. A fully grown decision tree by default.
        resampling: ``"subsample"`` (without replacement), ``"bootstrap"``, ``"poisson"``, ``"bernoulli"``, or an object
            such as ``Subsample(100)``.
        max_samples: rows of a bag, as a number or a fraction of the rows.
        n_estimators: number of bags.
        clip: interval to which each member's outputs are clipped before they are averaged: None, ``"range"`` (of the
            targets), ``("order", k)`` (from the k-th smallest to the k-th largest target), or ``(low, high)``.
            Guarantees are in units of its length; without it they are in units of the range of the members' outputs.
        n_jobs: parallel fits, as in joblib.
        random_state: of bags and members.

    References:
        Soloff, Barber, Willett, "Bagging provides assumption-free stability", JMLR 2024, arXiv:2301.12600.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> bag = StableBaggingRegressor(n_estimators=50, random_state=0).fit(X, y)
        >>> bag.loo_predictions(X[:3]).shape
        (442, 3)
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        resampling: SchemeName | Resampling = "subsample",
        max_samples: float | int = 0.5,
        n_estimators: int = 200,
        clip: Clip = None,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            estimator,
            resampling=resampling,
            max_samples=max_samples,
            n_estimators=n_estimators,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.clip = clip

    def fit(
        self, X: Float[np.ndarray, "rows dim"], y: Float[np.ndarray, " rows"], sample_weight: Any = None
    ) -> StableBaggingRegressor:
        """Fit a clone on each bag.

        Args:
            X: rows.
            y: targets.
            sample_weight: whole numbers, how often each row counts: 2 is the row twice.

        Raises:
            ValueError: if a bag would hold every row, a weight is 0 without replacement, or an interval is empty.
        """
        X, y = validate_data(self, X, y, y_numeric=True)
        self.clip_interval_ = _interval(self.clip, y)
        return self._fit(X, y, sample_weight)

    def _base(self) -> Any:
        return DecisionTreeRegressor() if self.estimator is None else self.estimator

    def _outputs(self, X: Any) -> Float[np.ndarray, "bags rows"]:
        outputs = _finite(np.stack([member.predict(X) for member in self.estimators_]))
        return outputs if self.clip_interval_ is None else np.clip(outputs, *self.clip_interval_)

    def predict(self, X: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, " rows"]:
        """Return the average of the members' predictions."""
        check_is_fitted(self, "membership_")
        return self._averaged(validate_data(self, X, reset=False))

    def loo_predictions(self, X: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "train rows"]:
        """Return the predictions without each training row in turn, by the bags that do not hold it: nothing is fitted.

        Raises:
            ValueError: if every bag holds some row.
        """
        check_is_fitted(self, "membership_")
        return self._leave_one_out(validate_data(self, X, reset=False))

    def output_range(self, X: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, " rows"]:
        """Return the unit of the guarantees: the length of the clipping interval, or the range of the outputs."""
        check_is_fitted(self, "membership_")
        if self.clip_interval_ is not None:
            return np.full(len(X), self.clip_interval_[1] - self.clip_interval_[0])
        return np.asarray(np.ptp(self._outputs(validate_data(self, X, reset=False)), axis=0))


class StableBaggingClassifier(ClassifierMixin, _StableBagging):
    """The average of classifiers' probabilities on bags of rows, with leave-one-out probabilities and guarantees.

    Arguments as :class:`StableBaggingRegressor`, without ``clip``: probabilities lie in [0, 1].

    Args:
        estimator: classifier with ``predict_proba``; a fully grown decision tree by default.
        resampling: ``"subsample"``, ``"bootstrap"``, ``"poisson"``, ``"bernoulli"``, or an object.
        max_samples: rows of a bag, as a number or a fraction of the rows.
        n_estimators: number of bags.
        n_jobs: parallel fits, as in joblib.
        random_state: of bags and members.

    References:
        Soloff, Barber, Willett, "Bagging provides assumption-free stability", JMLR 2024, arXiv:2301.12600.
    """

    def fit(
        self, X: Float[np.ndarray, "rows dim"], y: Shaped[np.ndarray, " rows"], sample_weight: Any = None
    ) -> StableBaggingClassifier:
        """Fit a clone on each bag.

        Args:
            X: rows.
            y: labels.
            sample_weight: whole numbers, how often each row counts.

        Raises:
            TypeError: if the classifier has no ``predict_proba``.
            ValueError: if a bag would hold every row, or a weight is 0 without replacement.
        """
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        if not hasattr(self._base(), "predict_proba"):
            raise TypeError(f"estimator must have predict_proba, got {type(self.estimator).__name__}")
        self.classes_, self._numbered = np.unique(y), False
        return self._fit(X, y, sample_weight)

    _numbered = (
        False  # whether members number the classes instead of naming them, as those of scikit-learn's forests do
    )

    def _base(self) -> Any:
        return DecisionTreeClassifier() if self.estimator is None else self.estimator

    def _outputs(self, X: Any) -> Float[np.ndarray, "bags rows classes"]:
        outputs = np.zeros((len(self.estimators_), len(X), len(self.classes_)))
        for output, member in zip(outputs, self.estimators_, strict=True):
            output[:, self._columns(member)] = member.predict_proba(X)  # a bag may lack a class
        return _finite(outputs)

    def _columns(self, member: Any) -> Shaped[np.ndarray, " classes"]:
        if self._numbered:
            return np.asarray(member.classes_).astype(int)
        return np.searchsorted(self.classes_, member.classes_)

    def predict_proba(self, X: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows classes"]:
        """Return the average of the members' probabilities, columns as ``classes_``."""
        check_is_fitted(self, "membership_")
        return self._averaged(validate_data(self, X, reset=False))

    def predict(self, X: Float[np.ndarray, "rows dim"]) -> Shaped[np.ndarray, " rows"]:
        """Return the labels with the largest average probability."""
        check_is_fitted(self, "membership_")
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def loo_predictions(self, X: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "train rows classes"]:
        """Return the probabilities without each training row in turn, by the bags that do not hold it.

        Raises:
            ValueError: if every bag holds some row.
        """
        check_is_fitted(self, "membership_")
        return self._leave_one_out(validate_data(self, X, reset=False))


def from_sklearn(fitted: Any) -> StableBaggingRegressor | StableBaggingClassifier:
    """Return the bag that a fitted scikit-learn ensemble holds, without fitting anything.

    Args:
        fitted: a fitted ``BaggingRegressor``, ``BaggingClassifier``, ``RandomForest*`` or ``ExtraTrees*`` with
            ``bootstrap=True`` (or a bagging without it).

    Raises:
        TypeError: if it does not know the rows of its bags.
        ValueError: if every bag holds every row.
    """
    check_is_fitted(fitted)
    if not hasattr(fitted, "estimators_samples_"):
        raise TypeError(f"fitted must be a bagging or a forest with estimators_samples_, got {type(fitted).__name__}")
    samples = fitted.estimators_samples_
    n = int(getattr(fitted, "_n_samples", 0)) or int(fitted.estimators_samples_[0].max()) + 1
    counts = np.stack([np.bincount(rows, minlength=n) for rows in samples])
    if not getattr(fitted, "bootstrap", True) and (counts > 0).all():
        raise ValueError("fitted must have bags that leave rows out, got every row in every bag: set bootstrap=True")
    draws = int(counts[0].sum())
    kind = StableBaggingClassifier if hasattr(fitted, "classes_") else StableBaggingRegressor
    bag = kind(getattr(fitted, "estimator_", None), n_estimators=len(samples))
    bag.scheme_ = Bootstrap(draws) if getattr(fitted, "bootstrap", True) else Subsample(draws)
    bag.estimators_ = [_on_features(member, f) for member, f in zip(fitted.estimators_, _features(fitted), strict=True)]
    bag.n_features_in_ = fitted.n_features_in_
    if isinstance(bag, StableBaggingClassifier):
        bag.classes_, bag._numbered = fitted.classes_, True
    else:
        bag.clip_interval_ = None
    bag._remember(counts > 0, np.arange(n))
    return bag


def _features(fitted: Any) -> list[Shaped[np.ndarray, " columns"] | None]:
    return list(getattr(fitted, "estimators_features_", [None] * len(fitted.estimators_)))


def _on_features(member: Any, columns: Shaped[np.ndarray, " columns"] | None) -> Any:
    if columns is None or np.array_equal(columns, np.arange(len(columns))):
        return member
    return _OnFeatures(member, columns)


class _OnFeatures:
    """A member that was fitted to some columns only."""

    def __init__(self, member: Any, columns: Shaped[np.ndarray, " columns"]) -> None:
        self.member, self.columns = member, columns
        self.classes_ = getattr(member, "classes_", None)

    def predict(self, X: Any) -> Any:
        return self.member.predict(X[:, self.columns])

    def predict_proba(self, X: Any) -> Any:
        return self.member.predict_proba(X[:, self.columns])


def _fitted(base: Any, X: Any, y: Any, rows: Shaped[np.ndarray, " bag"], seed: int) -> Any:
    member = clone(base)
    if "random_state" in member.get_params():
        member.set_params(random_state=int(seed))
    return member.fit(X[rows], y[rows])


def _finite(outputs: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    if not np.isfinite(outputs).all():
        bag = int(np.argwhere(~np.isfinite(outputs))[0][0])
        raise ValueError(f"members must return finite outputs, got NaN or infinity from bag {bag}")
    return outputs


def _interval(clip: Clip, y: Float[np.ndarray, " rows"]) -> tuple[float, float] | None:
    if clip is None:
        return None
    if isinstance(clip, str):
        if clip != "range":
            raise ValueError(f"clip must be 'range', ('order', k), (low, high) or None, got {clip!r}")
        low, high = float(y.min()), float(y.max())
    elif clip[0] == "order":
        ordered, k = np.sort(y), int(clip[1])
        if not 1 <= k <= len(y) // 2:
            raise ValueError(f"clip ('order', k) must have k in 1 .. {len(y) // 2}, got {k}")
        low, high = float(ordered[k - 1]), float(ordered[-k])
    else:
        low, high = float(clip[0]), float(clip[1])
    if not low < high:
        raise ValueError(f"clip must be an interval with low < high, got {low:g} and {high:g}")
    return low, high
