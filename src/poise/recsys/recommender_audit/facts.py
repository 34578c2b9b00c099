"""What the audit of a recommender measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from poise.evidence.estimate import Estimate
from poise.recsys.rank_list_sensitivity import RankListSensitivity

ArmKind = Literal["control", "random", "chosen"]


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One training that is compared with the base.

    Attributes:
        name: what was changed, in words.
        kind: a control, a random interaction, or one that was chosen.
        similarity: of its lists to the base's, user by user.
        recall: fraction of held-out interactions among its first k; NaN if none is held out.
        row: position in ``events`` of the interaction that was changed; -1 in a control.
        reached: later interactions that it reaches through users and items; -1 in a control.
    """

    name: str
    kind: ArmKind
    similarity: RankListSensitivity
    recall: float
    row: int = -1
    reached: int = -1

    @property
    def jaccard(self) -> float:
        """Mean top-k Jaccard similarity of the users' lists."""
        return float(self.similarity.jaccard.mean())


@dataclass(frozen=True, slots=True, eq=False)
class RecommenderFacts:
    """All that the audit measured.

    Attributes:
        arms: the trainings that were finished, controls first.
        missing: names of those that were not.
        k: places that count.
        p: persistence of the rank-biased overlap.
        users: number of users.
        items: number of items.
        events: number of interactions trained on.
        recall: of the base.
        low: the fifth of the users with the lowest accuracy under the base; none if nothing is held out.
        high: the fifth with the highest.
        seconds: of one training.
        seed: of the base.
    """

    arms: Sequence[Arm]
    missing: Sequence[str]
    k: int
    p: float
    users: int
    items: int
    events: int
    recall: float
    low: Bool[np.ndarray, " users"]
    high: Bool[np.ndarray, " users"]
    seconds: float
    seed: int

    def arm(self, name: str) -> Arm | None:
        """Return the arm of this name, if it was finished."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def of_kind(self, kind: ArmKind) -> list[Arm]:
        """Return the arms of one kind."""
        return [arm for arm in self.arms if arm.kind == kind]

    @property
    def floor(self) -> float:
        """Similarity of two trainings without any change: 1 if training is deterministic."""
        same = self.arm("same seed")
        return 1.0 if same is None else same.jaccard

    @property
    def random(self) -> float | None:
        """Mean similarity after one random change."""
        arms = self.of_kind("random")
        return float(np.mean([arm.jaccard for arm in arms])) if arms else None

    @property
    def gap(self) -> Estimate | None:
        """How much less similar the lists of users with low accuracy are, over all changes of one interaction."""
        arms = [*self.of_kind("random"), *self.of_kind("chosen")]
        if not arms or min(self.low.sum(), self.high.sum()) < 2:
            return None
        by_user = np.mean([arm.similarity.jaccard for arm in arms], axis=0)
        low, high = by_user[self.low], by_user[self.high]
        error = np.sqrt(low.var(ddof=1) / len(low) + high.var(ddof=1) / len(high))
        mean = float(high.mean() - low.mean())
        return Estimate(mean, mean - 1.96 * float(error), mean + 1.96 * float(error))
