"""A generator that is trained on its own samples, generation after generation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from sklearn.base import clone

from poise.loops.contraction import allowed_ratio
from poise.loops.correctors import Corrector, Samples
from poise.loops.loop_trace import LoopTrace

Accumulate = Literal["last", "linear"]
Metric = Callable[[Samples], float]


class Generator(Protocol):
    """A generative model: ``fit`` on rows, ``sample`` new ones."""

    def fit(self, X: Samples) -> Any:
        """Fit to rows."""

    def sample(self, n: int) -> Any:
        """Return ``n`` rows, alone or (as scikit-learn's mixtures do) first in a tuple."""


@dataclass(frozen=True, slots=True)
class SelfConsumingLoop:
    """Fits a generator to real rows and its own, corrected samples, and repeats it.

    Generation 0 sees real rows only. In generation t the last model draws ``ratio`` x n samples (n real rows), they are
    corrected, and a new model is fitted to the real rows and the synthetic ones.

    Args:
        generator: ``fit(X)`` and ``sample(n)``; each generation fits a clone, with ``random_state`` set where it has
            one.
        ratio: synthetic rows for each real one.
        corrector: ``corrector(samples, generator)``; None for no correction.
        generations: number of generations after generation 0.
        accumulate: ``"last"`` keeps the newest synthetic rows only; ``"linear"`` the first (i + 1) / t of the rows of
            generation i = 0 .. t - 1, as the published code does.
        real: whether the real rows stay; without them the loop is fully synthetic.
        seed: of all that is random.

    Raises:
        ValueError: if a number is out of range.

    References:
        Gillman et al., "Self-correcting self-consuming loops for generative model training", ICML 2024,
        arXiv:2402.07087.
    """

    generator: Generator
    ratio: float = 0.5
    corrector: Corrector | None = None
    generations: int = 50
    accumulate: Accumulate = "last"
    real: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ratio >= 0:
            raise ValueError(f"ratio must be at least 0, got {self.ratio!r}")
        if self.generations < 1:
            raise ValueError(f"generations must be at least 1, got {self.generations!r}")
        if self.accumulate not in ("last", "linear"):
            raise ValueError(f"accumulate must be 'last' or 'linear', got {self.accumulate!r}")
        if not self.real and self.ratio == 0:
            raise ValueError("ratio must be above 0 where the real rows do not stay, got 0")
        if self.real and self.corrector is None and self.ratio >= allowed_ratio():
            warnings.warn(
                f"ratio {self.ratio:g} is not below {allowed_ratio():g}, up to which theory promises that the loop "
                "contracts without a correction",
                stacklevel=3,
            )

    def run(
        self,
        real: Samples,
        metrics: Mapping[str, Metric],
        *,
        n_eval: int = 1000,
        progress: Callable[[int, int], None] | None = None,
    ) -> LoopTrace:
        """Run the loop and measure the samples of each generation.

        Args:
            real: real rows.
            metrics: by name, ``metric(samples)``; :func:`poise.loops.loop_metrics` gives the usual ones.
            n_eval: samples that are drawn for the metrics.
            progress: called after each generation with those done and those in all.

        Raises:
            ValueError: if the rows are not finite, or the generator or the corrector returns another shape or NaN.
        """
        real = np.asarray(real, float)
        if real.ndim != 2 or len(real) < 2 or not np.isfinite(real).all():
            raise ValueError(f"real must be at least two finite rows of shape (rows, dim), got shape {real.shape}")
        rng = np.random.default_rng(self.seed)
        count = int(self.ratio * len(real))
        past: list[Samples] = []
        found: dict[str, list[float]] = {name: [] for name in metrics}
        model, synthetic = self._fitted(real, rng), 0
        rows: list[int] = []
        for t in range(self.generations + 1):
            samples = drawn(model, n_eval, real.shape[1])
            for name, metric in metrics.items():
                found[name].append(float(metric(samples)))
            rows.append(synthetic)
            if progress is not None:
                progress(t + 1, self.generations + 1)
            if t == self.generations:
                break
            past.append(self._corrected(drawn(model, count, real.shape[1]), rng))
            used = np.concatenate(self._used(past, count))
            synthetic = len(used)
            model = self._fitted(np.concatenate([real, used]) if self.real else used, rng)
        return LoopTrace(
            {name: np.array(values) for name, values in found.items()},
            {"human": np.full(len(rows), len(real) if self.real else 0), "model": np.array(rows)},
            settings={"ratio": self.ratio, "generations": self.generations, "seed": self.seed},
        )

    def _used(self, past: list[Samples], count: int) -> list[Samples]:
        if self.accumulate == "last":
            return past[-1:]
        t = len(past)
        return [samples[: int((i + 1) / t * count)] for i, samples in enumerate(past)]

    def _fitted(self, rows: Samples, rng: np.random.Generator) -> Generator:
        model = clone(self.generator)
        if "random_state" in model.get_params():
            model.set_params(random_state=int(rng.integers(2**31)))
        model.fit(rows)
        return model

    def _corrected(self, samples: Samples, rng: np.random.Generator) -> Samples:
        if self.corrector is None or not len(samples):
            return samples
        corrected = np.asarray(self.corrector(samples, rng), float)
        if corrected.shape != samples.shape or not np.isfinite(corrected).all():
            raise ValueError(
                f"corrector must return finite samples of shape {samples.shape}, got shape {corrected.shape}"
                + ("" if np.isfinite(corrected).all() else " with values that are not finite")
            )
        return corrected


def drawn(model: Generator, count: int, dim: int) -> Samples:
    """Return samples of a fitted generator.

    Args:
        model: it.
        count: how many.
        dim: width of a row.

    Raises:
        ValueError: if they have another shape or are not finite.
    """
    if not count:
        return np.empty((0, dim))
    samples = model.sample(count)
    samples = np.asarray(samples[0] if isinstance(samples, tuple) else samples, float)
    if samples.shape != (count, dim) or not np.isfinite(samples).all():
        raise ValueError(f"generator must return finite samples of shape ({count}, {dim}), got shape {samples.shape}")
    return samples
