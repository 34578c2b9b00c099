"""Features for effect learners in small samples: hidden layers that predict the outcome, evolved over generations."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from poise.causal.inputs import FIT_REQUESTS, checked_data, checked_rows, refuse_instrument
from poise.causal.representation.cohort import (
    ACTIVATIONS,
    Cohort,
    Training,
    cross_entropy,
    hidden,
    joined,
    random_cohort,
    squared_error,
    train_cohort,
)
from poise.causal.representation.crossover import aligned, crossover

_FEWEST = 30
_SMALL = 1000
_PROBE_UNITS = 10
_PROBE_L2 = (0.5, 0.1)
_COLLAPSED = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    network: Cohort
    outcome_loss: float
    fitness: float


class EvolvedFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""The hidden layer of a small network that predicts the outcome, as features for any learner of effects.

    With few rows and many covariates, T- and X-learners have a large variance; a layer of few units that was trained on
    the outcome lowers it. Several such layers may be evolved, with preference for those from which the treatment is
    hard to predict (``select=True``). Whether the selection helps beyond the layer itself is an open question: compare
    with ``select=False`` by :func:`representation_report`.

    Standardise the columns before, and fit on the rows of the effect learner's training only: it is a transformer, and
    a pipeline does so. The outcome is standardised inside. All networks of a generation train as one batched network.

    Args:
        latent_dim: units of the layer, the number of features.
        activation: ``"tanh"``, ``"relu"`` or ``"elu"``.
        cohort_size: networks of a generation.
        n_progenitors: the best ones; each pair of them has a child.
        n_generations: how many, with the first.
        outcome_penalty: factor of the outcome's validation loss, which the fitness (the validation loss of a network
            that predicts the treatment from the layer) is lowered by.
        select: whether there is a selection; ``False`` trains one network.
        dropout: probability of alpha dropout after the layer.
        l2: factors of the squared weights of the layer and of the output.
        align: whether units of two parents are matched by correlation before a child takes units of both.
        max_epochs: most epochs of a training.
        validation_fraction: part of the rows that training stops by.
        random_state: of everything random.
        device: of torch.

    Attributes:
        components_: weights of the layer, shape (columns, latent_dim).
        intercept_: biases, shape (latent_dim,).
        history_: fitness of all members by generation, best first; empty without selection.
        probe_auc_: area under the curve of a logistic regression of the treatment on the features, on validation rows.
        outcome_r2_: fraction of the outcome's variance on validation rows that the network explains.

    Raises:
        ValueError: in ``fit``, if a setting is out of range, there are fewer than 30 rows, the treatment is not binary
            or constant in a part of the rows, or something is not finite.

    References:
        Burkhart and Ruiz (2022). Neuroevolutionary feature representations for causal inference. arXiv:2205.10541.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, t = rng.normal(size=(200, 8)), rng.integers(2, size=200)
        >>> features = EvolvedFeatures(latent_dim=3, n_generations=2, random_state=0)
        >>> features.fit_transform(X, X[:, 0] + t, treatment=t).shape
        (200, 3)
    """

    __metadata_request__fit = FIT_REQUESTS

    def __init__(
        self,
        latent_dim: int = 20,
        activation: str = "tanh",
        cohort_size: int = 4,
        n_progenitors: int = 2,
        n_generations: int = 5,
        outcome_penalty: float = 0.0,
        *,
        select: bool = True,
        dropout: float = 0.05,
        l2: tuple[float, float] = (0.5, 0.1),
        align: bool = False,
        max_epochs: int = 100,
        validation_fraction: float = 0.2,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.latent_dim = latent_dim
        self.activation = activation
        self.cohort_size = cohort_size
        self.n_progenitors = n_progenitors
        self.n_generations = n_generations
        self.outcome_penalty = outcome_penalty
        self.select = select
        self.dropout = dropout
        self.l2 = l2
        self.align = align
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        treatment: Any,
        instrument: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> EvolvedFeatures:
        """Train and evolve the networks; return the transformer.

        Args:
            X: covariates of shape (rows, columns), standardised.
            y: outcome of shape (rows,).
            treatment: two labels, of shape (rows,).
            instrument: must be ``None``.
            sample_weight: accepted for the sake of pipelines, and not used: what is learned here are features.
            groups: the same.
        """
        refuse_instrument(instrument, self)
        self._check()
        data = checked_data(self, X, y, treatment, allow_constant=True)
        if len(data.levels) != 2:
            raise ValueError(f"treatment must be binary, got {len(data.levels)} arms")
        if len(data) < _FEWEST:
            raise ValueError(f"X must have at least {_FEWEST} rows, got {len(data)}")
        random = check_random_state(self.random_state)
        evolution = _Evolution(self, data.x, data.y, data.arm, random)
        members = evolution.run()
        best = members[0].network
        self.components_ = best.w[0].cpu().numpy()
        self.intercept_ = best.b[0].cpu().numpy()
        self.history_ = evolution.history
        self.outcome_r2_ = 1 - members[0].outcome_loss / max(evolution.outcome_variance, 1e-300)
        self.probe_auc_ = evolution.probe_auc(self.transform(data.x))
        norm = float(np.linalg.norm(self.components_))
        if norm < _COLLAPSED:
            warnings.warn(
                f"the features have collapsed (norm of the weights {norm:.1e}): the network found nothing in X that "
                "predicts y",
                stacklevel=2,
            )
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "rows latent_dim"]:
        """Return the features of rows.

        Args:
            X: covariates of shape (rows, columns), with the columns of the fit.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
            ValueError: if the columns are others.
        """
        check_is_fitted(self)
        x = torch.from_numpy(checked_rows(self, X))
        layer = x @ torch.from_numpy(self.components_) + torch.from_numpy(self.intercept_)
        found: np.ndarray = ACTIVATIONS[self.activation](layer).numpy()
        return found

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim

    def _check(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {self.activation!r}")
        for name in ("latent_dim", "cohort_size", "n_generations", "max_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in (0, 1), got {self.validation_fraction}")
        if self.select:
            if self.n_progenitors < 2:
                raise ValueError(f"n_progenitors must be at least 2 with select=True, got {self.n_progenitors}")
            least = 1 + math.comb(self.n_progenitors, 2)
            if self.cohort_size < max(least, self.n_progenitors):
                raise ValueError(
                    f"cohort_size must be at least {max(least, self.n_progenitors)} for {self.n_progenitors} "
                    f"progenitors (the best one and a child of each pair), got {self.cohort_size}"
                )


class _Evolution:
    """One fit: the rows as tensors, and the generations."""

    def __init__(
        self, settings: EvolvedFeatures, x: np.ndarray, y: np.ndarray, arm: np.ndarray, random: np.random.RandomState
    ) -> None:
        self._settings = settings
        seed = int(random.randint(2**31 - 1))
        self._seeds = itertools.count(seed)
        rows = np.arange(len(x))
        held_out = settings.validation_fraction
        train, validation = train_test_split(rows, test_size=held_out, random_state=seed, stratify=arm)
        for name, part in (("training", train), ("validation", validation)):
            if len(np.unique(arm[part])) < 2:
                raise ValueError(f"treatment must vary in the {name} rows, it is constant there")
        spread = float(y.std())
        standard = (y - y.mean()) / (spread if spread > 0 else 1.0)

        def parts(values: np.ndarray) -> tuple[Tensor, Tensor]:
            both = (torch.as_tensor(values[part], dtype=torch.float64) for part in (train, validation))
            first, second = (tensor.to(settings.device) for tensor in both)
            return first, second

        self._x, self._y, self._t = parts(x), parts(standard), parts(arm)
        self._validation, self._train, self._arm = validation, train, arm
        self.outcome_variance = float(self._y[1].var(unbiased=False))
        schedule = {True: (0.1, 64, 5), False: (0.01, 256, 20)}[len(train) < _SMALL]
        self._training = Training(*schedule, settings.max_epochs, settings.l2, settings.dropout)
        self.history: list[list[float]] = []

    def run(self) -> list[_Member]:
        """Return the last generation, the fittest first."""
        settings = self._settings
        if not settings.select:
            return self._trained(self._fresh(1), probed=False)
        members = _ranked(self._trained(self._fresh(settings.cohort_size)))
        self.history.append([member.fitness for member in members])
        for _ in range(settings.n_generations - 1):
            pairs = list(itertools.combinations(members[: settings.n_progenitors], 2))
            parts = [self._child(*pair) for pair in pairs]
            missing = settings.cohort_size - 1 - len(parts)
            if missing:
                parts.append(self._fresh(missing))
            members = _ranked([members[0], *self._trained(joined(parts))])
            self.history.append([member.fitness for member in members])
        return members

    def probe_auc(self, features: np.ndarray) -> float:
        """Return how well the treatment is predicted from features by a line, on validation rows."""
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features[self._train], self._arm[self._train])
        found = model.predict_proba(features[self._validation])[:, 1]
        return float(roc_auc_score(self._arm[self._validation], found))

    def _generators(self, count: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(next(self._seeds)) for _ in range(count)]

    def _fresh(self, count: int) -> Cohort:
        inputs, units = self._x[0].shape[-1], self._settings.latent_dim
        return random_cohort(inputs, units, self._generators(count), self._x[0])

    def _child(self, first: _Member, second: _Member) -> Cohort:
        (generator,) = self._generators(1)
        other = second.network
        if self._settings.align:
            layers = [hidden(self._x[0], m.network, self._settings.activation)[0] for m in (first, second)]
            order = aligned(*layers)
            other = Cohort(other.w[..., order], other.b[..., order], other.v[..., order], other.c)
        w, b = crossover(first.network, other, generator)
        output = random_cohort(w.shape[1], w.shape[2], [generator], w)
        return Cohort(w, b, output.v, output.c)

    def _trained(self, cohort: Cohort, probed: bool = True) -> list[_Member]:
        settings, count = self._settings, len(cohort)
        generators = self._generators(count)
        order, training = self._order(), self._training
        trained, losses = train_cohort(
            cohort, self._x, self._y, squared_error, settings.activation, training, order, generators
        )
        fitness = self._probe_loss(trained) - settings.outcome_penalty * losses if probed else torch.zeros(count)
        return [_Member(trained.members([i]), float(losses[i]), float(fitness[i])) for i in range(count)]

    def _probe_loss(self, cohort: Cohort) -> Float[Tensor, " members"]:
        """Return the validation loss of predicting the treatment from each member's layer.

        All probes start from the same weights and see the same batches, so that only the layers differ.
        """
        settings, count = self._settings, len(cohort)
        layers = tuple(hidden(part, cohort, settings.activation) for part in self._x)
        start = [torch.Generator().manual_seed(0) for _ in range(count)]
        probes = random_cohort(settings.latent_dim, _PROBE_UNITS, start, self._x[0])
        training = replace(self._training, l2=_PROBE_L2, dropout=0.0)
        return train_cohort(
            probes, (layers[0], layers[1]), self._t, cross_entropy, "tanh", training, self._order(), start
        )[1]

    def _order(self) -> torch.Generator:
        return torch.Generator().manual_seed(1)


def _ranked(members: list[_Member]) -> list[_Member]:
    # A network that diverged has no fitness, and is last.
    return sorted(members, key=lambda m: -m.fitness if math.isfinite(m.fitness) else math.inf)
