"""The choice between learners of nuisances by how little the estimate moves when others of them are exchanged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from poise.causal.average_effect import AverageEffect, ratio_average
from poise.causal.inputs import FIT_REQUESTS, checked_data
from poise.causal.invalid_iv.functional import Candidate, FittedNuisance, Functional
from poise.report import Report, Table
from poise.tools.nearest_name import did_you_mean
from poise.tools.number import number

CRITERIA = ("mixed-minimax", "minimax")
_MOST = 4096
_CLIPPED, _WEIGHT = 0.05, 0.05


def pseudo_risk(
    psi: Float[np.ndarray, "*candidates"],
    nuisances: Sequence[str],
    sufficient_sets: Sequence[frozenset[str]],
    criterion: str = "mixed-minimax",
) -> Float[np.ndarray, "*candidates"]:
    """Return how much the estimate of each combination of candidates moves when some of them are exchanged.

    For a set of nuisances that suffices, the others may be anything without changing the true estimate, if the set is
    right. So the squared change, at its largest over all exchanges of the others, shows how wrong the set is.

    Args:
        psi: estimates, one axis a nuisance.
        nuisances: names of the axes.
        sufficient_sets: sets of names, each of which suffices.
        criterion: ``"mixed-minimax"`` (the sum over the sets) or ``"minimax"`` (the largest of them).

    Raises:
        ValueError: if the criterion is unknown.

    References:
        Sun, Cui and Tchetgen Tchetgen (2022), arXiv:1907.11882; Cui and Tchetgen Tchetgen (2019), arXiv:1911.02029.

    Example:
        >>> psi = np.array([[1.0, 1.0], [1.0, 3.0]])  # the second candidates of both nuisances are wrong
        >>> pseudo_risk(psi, ["pi", "mu"], [frozenset({"pi"}), frozenset({"mu"})]).tolist()
        [[0.0, 4.0], [4.0, 8.0]]
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {CRITERIA}, got {criterion!r}")
    moves = []
    for chosen in sufficient_sets:
        others = tuple(axis for axis, name in enumerate(nuisances) if name not in chosen)
        high, low = psi.max(axis=others, keepdims=True), psi.min(axis=others, keepdims=True)
        moves.append(np.maximum(high - psi, psi - low) ** 2)
    stacked = np.stack(moves)
    found: np.ndarray = stacked.sum(0) if criterion == "mixed-minimax" else stacked.max(0)
    return found


class SelectiveEstimator(BaseEstimator):
    """An average effect whose learners are chosen by perturbation.

    Each nuisance is learned by each of its candidates, once; all combinations then need no further fit. The combination
    is chosen whose estimate moves least when nuisances that should not matter are exchanged. Wald intervals take the
    choice for given and are too short; :meth:`bootstrap_interval` repeats it.

    Args:
        functional: what is estimated: ``DoublyRobustAverage()`` or ``InvalidIVAverage()``.
        candidates: for each nuisance, a list of :class:`Candidate`; or one list for all.
        criterion: ``"mixed-minimax"`` or ``"minimax"``.
        screen: whether candidates with more than 5 % of rows clipped, or more than 5 % of the weight in one row, are
            left out first: one terrible candidate would decide every maximum.
        temperature: of a smooth choice, the mean of all estimates with weights ``exp(-risk / temperature)``; ``None``
            takes the best one.
        cv: folds of cross-fitting.
        random_state: of folds, and of every learner inside; ``None`` leaves the learners' own.

    Attributes:
        best_: name of the chosen candidate, by nuisance.
        ate_: the average effect.
        stderr_: its standard error, with the choice taken for given.
        table_: for each combination, the smallest risk first: names by nuisance, ``"estimate"``, ``"stderr"``,
            ``"risk"``; a dict of lists, which ``pandas.DataFrame`` takes.
        screened_: candidates that were left out, by nuisance.

    Raises:
        ValueError: in ``fit``, if a nuisance has no candidate, one is unknown, two candidates have one name, the
            criterion is unknown, or there are more than 4096 combinations.

    References:
        Sun, Cui and Tchetgen Tchetgen (2022). Selective machine learning of the average treatment effect with an
        invalid instrumental variable. arXiv:1907.11882.
    """

    __metadata_request__fit = FIT_REQUESTS

    def __init__(
        self,
        functional: Functional,
        candidates: Mapping[str, Sequence[Candidate]] | Sequence[Candidate],
        *,
        criterion: str = "mixed-minimax",
        screen: bool = True,
        temperature: float | None = None,
        cv: int = 3,
        random_state: Any = None,
    ) -> None:
        self.functional = functional
        self.candidates = candidates
        self.criterion = criterion
        self.screen = screen
        self.temperature = temperature
        self.cv = cv
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        treatment: Any,
        instrument: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> SelectiveEstimator:
        """Fit all candidates and choose; return the estimator. See :meth:`InvalidIVATE.fit` for the arguments."""
        candidates = self._checked_candidates()
        data = checked_data(self, X, y, treatment, sample_weight, groups)
        generator = check_random_state(self.random_state)
        seeds = None if self.random_state is None else generator
        rows = self.functional.prepare(data, instrument, self.cv, seeds, generator)
        fitted = {
            name: [self.functional.fit_nuisance(rows, name, candidate) for candidate in own]
            for name, own in candidates.items()
        }
        kept = {name: _screened(own) if self.screen else list(range(len(own))) for name, own in fitted.items()}
        self.screened_ = {
            name: [candidates[name][i].name for i in range(len(own)) if i not in kept[name]]
            for name, own in fitted.items()
        }
        self._data, self._names = data, {name: [own[i].name for i in kept[name]] for name, own in candidates.items()}
        self._phi = self._moments(rows, {name: [fitted[name][i] for i in kept[name]] for name in fitted})
        weight = np.ones(len(data)) if data.weight is None else data.weight
        self._choose(self._phi @ (weight / weight.sum()))
        return self

    def ate(self) -> AverageEffect:
        """Return the average effect, with the choice taken for given.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        return self._average

    def bootstrap_interval(self, draws: int = 200, alpha: float = 0.05, seed: int = 0) -> tuple[float, float]:
        """Return a percentile interval that repeats the choice on rows (or groups) drawn with replacement.

        Nuisances are not fitted again.

        Args:
            draws: how many.
            alpha: probability outside of the interval.
            seed: of the draws.

        Raises:
            ValueError: if ``draws`` is below 1 or ``alpha`` outside (0, 1).
        """
        check_is_fitted(self)
        if draws < 1 or not 0 < alpha < 1:
            raise ValueError(f"draws must be at least 1 and alpha lie in (0, 1), got {draws} and {alpha}")
        data, generator = self._data, np.random.default_rng(seed)
        unit = np.arange(len(data)) if data.groups is None else data.groups
        units = int(unit.max()) + 1
        base = np.ones(len(data)) if data.weight is None else data.weight
        found = []
        for _ in range(draws):
            weight = base * np.bincount(generator.integers(units, size=units), minlength=units)[unit]
            psi = self._phi @ (weight / weight.sum())
            found.append(float(self._shares(psi) @ psi))
        low, high = np.quantile(found, [alpha / 2, 1 - alpha / 2])
        return float(low), float(high)

    def report(self) -> Report:
        """Return the choice: the ranking with screening, and what the other combinations give.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        table = self.table_
        rows = [list(row) for row in itertools.islice(zip(*table.values(), strict=True), 20)]
        low, high = min(table["estimate"]), max(table["estimate"])
        left_out = ", ".join(f"{c} for {name}" for name, own in self.screened_.items() for c in own) or "none"
        chosen = ", ".join(f"{name}: {candidate}" for name, candidate in self.best_.items())
        summary = (
            f"The average effect is {self._average} with {chosen}. All {len(table['estimate'])} combinations give from "
            f"{number(low)} to {number(high)}. Left out by screening: {left_out}."
        )
        shown = Table("Combinations, the smallest risk first", list(table), rows, "The first 20 at most.")
        return Report("Choice between learners", summary, blocks=[shown], meta={"criterion": self.criterion})

    def _checked_candidates(self) -> dict[str, list[Candidate]]:
        wanted = self.functional.nuisances
        given = self.candidates
        lists = dict(given) if isinstance(given, Mapping) else dict.fromkeys(wanted, given)
        for name in lists:
            if name not in wanted:
                raise ValueError(f"candidates must be of {wanted}, got some of {name!r}; {did_you_mean(name, wanted)}")
        for name in wanted:
            if not lists.get(name):
                raise ValueError(f"candidates must hold at least one for each of {wanted}, got none for {name!r}")
            names = [candidate.name for candidate in lists[name]]
            if len(set(names)) < len(names):
                raise ValueError(f"candidates for {name!r} must have different names, got {names}")
        named: dict[str, Candidate] = {}  # predictions are kept by name, so that no candidate is fitted twice
        for candidate in itertools.chain(*lists.values()):
            if named.setdefault(candidate.name, candidate) != candidate:
                raise ValueError(
                    f"candidates of one name must be the same for all nuisances, got two {candidate.name!r}"
                )
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {CRITERIA}, got {self.criterion!r}")
        if (count := math.prod(len(own) for own in lists.values())) > _MOST:
            raise ValueError(f"candidates must make at most {_MOST} combinations, got {count}")
        return {name: list(lists[name]) for name in wanted}

    def _moments(self, rows: Any, fitted: Mapping[str, list[FittedNuisance]]) -> np.ndarray:
        moments = []
        for combination in itertools.product(*fitted.values()):
            values = {key: array for nuisance in combination for key, array in nuisance.values.items()}
            moments.append(self.functional.moment(rows, values))
        return np.stack(moments)

    def _risk(self, psi: np.ndarray) -> np.ndarray:
        shape = [len(names) for names in self._names.values()]
        functional = self.functional
        return pseudo_risk(psi.reshape(shape), functional.nuisances, functional.sufficient_sets, self.criterion).ravel()

    def _shares(self, psi: np.ndarray) -> np.ndarray:
        """Return the weight of each combination: 1 for the best one, or a smooth choice."""
        risk = self._risk(psi)
        if self.temperature is None:
            return np.eye(1, len(risk), int(risk.argmin()))[0]
        weight = np.exp(-(risk - risk.min()) / self.temperature)
        smooth: np.ndarray = weight / weight.sum()
        return smooth

    def _choose(self, psi: np.ndarray) -> None:
        risk, shares = self._risk(psi), self._shares(psi)
        combinations = list(itertools.product(*self._names.values()))
        best = int(risk.argmin())
        self.best_ = dict(zip(self._names, combinations[best], strict=True))
        mixed = shares @ self._phi
        self._average = ratio_average(mixed, np.ones(len(mixed)), self._data.weight, self._data.groups)
        self.ate_, self.stderr_ = self._average.estimate, self._average.stderr
        order = np.argsort(risk, kind="stable")
        errors = self._phi.std(axis=1, ddof=1) / math.sqrt(self._phi.shape[1])
        self.table_: dict[str, list[Any]] = {
            **{name: [combinations[i][k] for i in order] for k, name in enumerate(self._names)},
            "estimate": psi[order].tolist(),
            "stderr": errors[order].tolist(),
            "risk": risk[order].tolist(),
        }


def _screened(fitted: list[FittedNuisance]) -> list[int]:
    """Return the candidates that pass; all of them if none does."""
    fine = [i for i, own in enumerate(fitted) if own.clipped <= _CLIPPED and own.largest_weight <= _WEIGHT]
    return fine or list(range(len(fitted)))
