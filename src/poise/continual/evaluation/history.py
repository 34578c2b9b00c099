"""What an evaluator recorded: one array of scores, and the metrics of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from poise.continual.evaluation import metrics

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class AccuracyHistory:
    """Scores of every task after every evaluated update.

    Args:
        accuracy: by update and task; NaN where a task was not evaluated.
        trained: the task that was trained, as a column of ``accuracy``; -1 before the first update.
        steps: number of updates before each row.
        names: of the tasks.
        sizes: held-out samples that were evaluated, by task.
        metric: what the scores are; higher is better.
        exact: whether every held-out sample was used, or a fixed random subset.
        seconds: that evaluation took.
    """

    accuracy: Float[np.ndarray, "updates tasks"]
    trained: Int[np.ndarray, " updates"]
    steps: Int[np.ndarray, " updates"]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    metric: str = "accuracy"
    exact: bool = True
    seconds: float = 0.0

    def summary(self) -> dict[str, float]:
        """Return the metrics by name; NaN where one needs an old task and there is none."""
        a, t = self.accuracy, self.trained
        return {
            "average accuracy (mean over tasks)": metrics.average_accuracy(a, t),
            "average accuracy (mean over samples)": metrics.average_accuracy(a, t, self.sizes),
            "minimum accuracy": metrics.min_accuracy(a, t),
            "worst-case accuracy": metrics.worst_case_accuracy(a, t),
            "forgetting (from the end of training)": metrics.forgetting(a, t, "end"),
            "forgetting (from the maximum)": metrics.forgetting(a, t, "max"),
            "windowed forgetting, 10": metrics.windowed_forgetting(a, 10),
            "windowed forgetting, 100": metrics.windowed_forgetting(a, 100),
            "windowed plasticity, 10": metrics.windowed_plasticity(a, 10),
            "windowed plasticity, 100": metrics.windowed_plasticity(a, 100),
            "learning curve area": metrics.learning_curve_area(a, t),
            "average anytime accuracy": metrics.average_anytime_accuracy(a, t),
        }

    def at_task_ends(self) -> AccuracyHistory:
        """Return the rows at which the training of a task ended: what an evaluation after each task would see."""
        change = np.flatnonzero(np.diff(self.trained) != 0)
        kept = np.append(change[self.trained[change] >= 0], len(self.trained) - 1)
        return AccuracyHistory(
            self.accuracy[kept],
            self.trained[kept],
            self.steps[kept],
            self.names,
            self.sizes,
            self.metric,
            self.exact,
            self.seconds,
        )

    def interval(self, value: float, task: int, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of an accuracy, from the number of samples that were evaluated (Wilson's).

        Args:
            value: an accuracy in [0, 1].
            task: on which it was measured.
            level: confidence.

        Raises:
            ValueError: if ``value`` is no accuracy.
        """
        if not 0 <= value <= 1:
            raise ValueError(f"value must be an accuracy in [0, 1], got {value}")
        from scipy import stats

        found = stats.binomtest(round(value * self.sizes[task]), self.sizes[task]).proportion_ci(level, "wilson")
        return float(found.low), float(found.high)

    def frame(self) -> pd.DataFrame:
        """Return a pandas data frame with the columns step, trained_task, eval_task, value and n.

        Raises:
            ImportError: if pandas is missing.
        """
        import pandas as pd

        rows = [
            (int(self.steps[n]), int(self.trained[n]), self.names[i], float(self.accuracy[n, i]), self.sizes[i])
            for n in range(len(self.steps))
            for i in range(len(self.names))
            if not math.isnan(self.accuracy[n, i])
        ]
        return pd.DataFrame(rows, columns=["step", "trained_task", "eval_task", "value", "n"])
