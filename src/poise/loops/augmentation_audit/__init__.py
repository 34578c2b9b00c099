"""The audit of synthetic training rows: whether they help, how many, and what else would do as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.report import Report


def audit_augmentation(
    fit: Any,
    real: tuple[Any, Any],
    generator: Any,
    *,
    ratios: Sequence[float] = (1, 2, 5, 10),
    seeds: int = 8,
    test_fraction: float = 0.3,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Train with and without synthetic rows on the same splits, and report whether they lower the held-out error.

    For each seed the real rows are divided; the generator is fitted to the training part only (where it has ``fit``),
    and classifiers are trained with 0 and with each ratio of synthetic rows. Beside them stand two controls of the
    same size: real rows with small noise, and real rows repeated. Judged is the held-out error, never the generator's
    own loss or the gap between training and test.

    Args:
        fit: a scikit-learn classifier, of which clones are fitted, or ``fit(X, y, seed)`` that returns an object with
            ``predict``.
        real: ``(X, y)``, arrays or data frames of numbers.
        generator: any object with ``sample(n)`` that returns ``n`` rows and their labels. With ``fit(X, y)`` a clone is
            fitted for each split; without, it is used as it is, and the report says that it may have seen test rows.
        ratios: synthetic rows for each real one.
        seeds: splits.
        test_fraction: of the rows, for the error.
        n_jobs: parallel splits, as in joblib.
        progress: called after each split with those done and those in all; a progress bar by default.

    Returns:
        A report whose verdict is ``"add N synthetic rows"``, ``"none helps"`` or ``"too few rows to tell"``.

    Raises:
        TypeError: if ``fit`` is neither a classifier nor a function, or the generator has no ``sample``.
        ValueError: if a class has fewer than four rows, a ratio is not above 0, or the generator returns rows of
            another width, values that are not finite, or unknown labels.

    References:
        Zheng, Wu, Li, "Toward understanding generative data augmentation", NeurIPS 2023, arXiv:2305.17476.
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.loops.augmentation_audit.measure import Plan, measure
    from poise.loops.augmentation_audit.report import augmentation_report

    plan = Plan(tuple(float(ratio) for ratio in ratios), seeds, test_fraction)
    return augmentation_report(measure(fit, real, generator, plan, n_jobs=n_jobs, progress=progress))
