"""Which starts in a box come to the goal: their fraction, the nearest that does not, and a level set without any."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from poise.control.region.state_difference import state_difference
from poise.evidence import clopper_pearson

Step = Callable[[Tensor], Tensor]
Level = Callable[[Tensor], Tensor]

_LOST = 1e4  # half widths of the box from the goal, beyond which a run is not followed any more
_PARTS, _DIVISIONS = 16, 4  # a line is divided so often into so many parts: to 1.5e-5 of its length
_CANDIDATES = 64
_SEARCHES = 6
_ROUNDS = 6


@dataclass(frozen=True, slots=True, eq=False)
class AttractedRegion:
    """What was found by simulation. Nothing here is certified: between samples, starts may behave differently.

    Attributes:
        states: sampled starts, uniform in the box, of shape (samples, n).
        attracted: which of them were near the goal at the end, of shape (samples,).
        fraction: of the box that is attracted.
        interval: 95 % interval of it (Clopper-Pearson).
        nearest_failing: the start nearest to the goal, of all that were simulated, that did not come to it; ``None`` if
            all did.
        nearest_distance: its distance, in half widths of the box; infinite if there is none.
        level: largest sampled level of the function whose level sets were tried, above its value at the goal; ``None``
            if none was.
        limited_by: what ends that level set: ``"failing start"`` or ``"box"``; ``None`` without one.
        checked: starts inside the level set that were simulated last; all of them came to the goal.
    """

    states: Float64[Tensor, "samples n"]
    attracted: Bool[Tensor, " samples"]
    fraction: float
    interval: tuple[float, float]
    nearest_failing: Float64[Tensor, " n"] | None
    nearest_distance: float
    level: float | None
    limited_by: str | None
    checked: int


def attracted_region(
    step: Step,
    goal: Any,
    box: tuple[Any, Any],
    *,
    steps: int,
    level: Level | None = None,
    n_samples: int = 400,
    tolerance: float = 0.01,
    angles: Sequence[int] = (),
    seed: int = 0,
) -> AttractedRegion:
    """Sample starts in a box and follow each; then look for the largest level set in which none fails.

    A start is attracted if, at the end, it is nearer to the goal than ``tolerance`` half widths of the box. One that is
    still on its way counts as failing. The level set is searched from the failing starts: along the lines from the goal
    to them, then around the lowest point found, then by fresh starts inside it, until a round finds no failing start.

    Args:
        step: the closed loop over one sampling period; takes states of shape (batch, n), returns the next ones.
        goal: state of shape (n,).
        box: (lowest, highest) states, each of shape (n,); the goal lies in it.
        steps: how many periods to follow.
        level: a function of states (batch, n) -> (batch,) that is smallest at the goal, such as the cost of a linear
            regulator; only the order of its values matters. Without it no level set is searched.
        n_samples: starts.
        tolerance: in half widths of the box.
        angles: indices of the entries that are angles.
        seed: of the starts.

    Raises:
        ValueError: if the box is empty or not finite, the goal lies outside, ``step`` returns another shape, or an
            argument is out of range.
    """
    target, low, high = checked_box(goal, box)
    if n_samples < 1 or steps < 1 or not tolerance > 0:
        raise ValueError(
            f"n_samples, steps and tolerance must be positive, got {n_samples!r}, {steps!r} and {tolerance!r}"
        )
    generator = torch.Generator().manual_seed(seed)
    search = _Search(step, target, low, high, steps, tolerance, tuple(angles))
    states = search.uniform(n_samples, generator)
    attracted = search.attracts(states)
    count = int(attracted.sum())
    found: tuple[float | None, str | None, int] = (None, None, 0)
    if level is not None:
        found = _largest_level(search, level, states, attracted, generator)
    if search.nearest is not None:
        search.edge(search.nearest[None])
    return AttractedRegion(
        states=states,
        attracted=attracted,
        fraction=count / n_samples,
        interval=clopper_pearson(count, n_samples),
        nearest_failing=search.nearest,
        nearest_distance=search.distance,
        level=found[0],
        limited_by=found[1],
        checked=found[2],
    )


def checked_box(
    goal: Any, box: tuple[Any, Any]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Return goal, lowest and highest states in float64.

    Raises:
        ValueError: if they do not fit together, are not finite, the box is empty or the goal lies outside.
    """
    if len(box) != 2:
        raise ValueError(f"box must be a pair (lowest, highest) of states, got {len(box)} entries")
    target, low, high = (torch.as_tensor(value).detach().to(torch.float64) for value in (goal, *box))
    if target.ndim != 1 or not len(target):
        raise ValueError(f"goal must be a state of shape (n,), got shape {tuple(target.shape)}")
    if low.shape != target.shape or high.shape != target.shape:
        raise ValueError(
            f"box must hold two states of shape {tuple(target.shape)}, got {tuple(low.shape)} and {tuple(high.shape)}"
        )
    if not bool(torch.isfinite(torch.stack([target, low, high])).all()):
        raise ValueError("goal and box must be finite, got NaN or infinite entries")
    if not bool((low < high).all()):
        empty = int((low >= high).nonzero()[0])
        raise ValueError(f"box is empty: entry {empty} runs from {float(low[empty]):g} to {float(high[empty]):g}")
    if not bool(((low <= target) & (target <= high)).all()):
        raise ValueError(f"goal must lie in the box, got {target.tolist()}")
    return target, low, high


class _Search:
    """Simulation of starts, which remembers the nearest one that failed."""

    def __init__(
        self,
        step: Step,
        goal: Tensor,
        low: Tensor,
        high: Tensor,
        steps: int,
        tolerance: float,
        angles: tuple[int, ...],
    ) -> None:
        self._step, self.goal, self.low, self.high = step, goal, low, high
        self._steps, self._tolerance, self._angles = steps, tolerance, angles
        self.half = (high - low) / 2
        self.nearest: Tensor | None = None
        self.distance = math.inf

    def uniform(self, count: int, generator: torch.Generator) -> Tensor:
        draws = torch.rand(count, len(self.goal), generator=generator, dtype=torch.float64)
        return self.low + (self.high - self.low) * draws

    def inside(self, x: Tensor) -> Tensor:
        return ((x >= self.low) & (x <= self.high)).all(-1)

    def from_goal(self, x: Tensor) -> Tensor:
        return (state_difference(x, self.goal, self._angles) / self.half).norm(dim=-1)

    def attracts(self, starts: Tensor) -> Tensor:
        """Follow starts of shape (batch, n) and return which come to the goal."""
        x, alive = starts, torch.arange(len(starts))
        near = torch.zeros(len(starts), dtype=torch.bool)
        for _ in range(self._steps):
            after = torch.as_tensor(self._step(x))
            if after.shape != x.shape:
                raise ValueError(f"step must return the shape it takes, {tuple(x.shape)}; got {tuple(after.shape)}")
            kept = self.from_goal(after) <= _LOST  # of NaN: false
            x, alive = after[kept], alive[kept]
            if not len(alive):
                break
        near[alive] = self.from_goal(x) <= self._tolerance
        self._remember(starts[~near])
        return near

    def _remember(self, failing: Tensor) -> None:
        if len(failing):
            distances = self.from_goal(failing)
            i = int(distances.argmin())
            if float(distances[i]) < self.distance:
                self.nearest, self.distance = failing[i].clone(), float(distances[i])

    def edge(self, failing: Tensor) -> Tensor:
        """Return the last attracted states before the first failing one, on the lines from the goal to failing states.

        All points of a division are simulated together.
        """
        inside = torch.zeros(len(failing), dtype=torch.float64)
        width = torch.ones(len(failing), dtype=torch.float64)
        parts = torch.arange(1, _PARTS, dtype=torch.float64) / _PARTS
        for _ in range(_DIVISIONS):
            places = inside[:, None] + width[:, None] * parts
            starts = self.goal + places[..., None] * (failing - self.goal)[:, None]
            good = self.attracts(starts.flatten(0, 1)).reshape(places.shape)
            before_failure = good.to(torch.int64).cumprod(1).sum(1)
            width = width / _PARTS
            inside = inside + before_failure * width
        return self.goal + inside[:, None] * (failing - self.goal)


def _largest_level(
    search: _Search, level: Level, states: Tensor, attracted: Tensor, generator: torch.Generator
) -> tuple[float | None, str | None, int]:
    def height(x: Tensor) -> Tensor:
        values = torch.as_tensor(level(x)).to(torch.float64)
        if values.shape != x.shape[:1]:
            raise ValueError(f"level must return one number a state, shape {(len(x),)}; got {tuple(values.shape)}")
        return values - lowest

    lowest = torch.zeros((), dtype=torch.float64)
    lowest = height(search.goal[None])[0]
    faces = search.uniform(8 * len(states), generator)
    which = torch.randint(len(search.goal), (len(faces),), generator=generator)
    upper = torch.rand(len(faces), generator=generator) < 0.5
    rows = torch.arange(len(faces))
    faces[rows, which] = torch.where(upper, search.high[which], search.low[which])
    best, by = float(height(faces).min()), "box"
    failing = states[~attracted]
    checked = 0
    for _ in range(_ROUNDS):
        failing = failing[height(failing) < best]
        if len(failing):
            order = height(failing).argsort()[:_CANDIDATES]
            best, by = _around(search, height, search.edge(failing[order]), generator), "failing start"
        if not best > 0:
            return None, by, 0
        # Half of them from the rim, where a failing start is most likely.
        rim = _on_level(search, height, search.uniform(len(states), generator), best)
        inner = search.goal + torch.rand(len(rim), 1, generator=generator, dtype=torch.float64) * (rim - search.goal)
        tried = torch.cat([inner, rim])
        good = search.attracts(tried)
        checked, failing = len(tried), tried[~good]
        if not len(failing):
            return best, by, checked
    return None, by, 0


def _around(search: _Search, height: Level, edge: Tensor, generator: torch.Generator) -> float:
    """Return the lowest height of the edges found around the lowest of those given."""
    i = int(height(edge).argmin())
    at, best, size = edge[i], float(height(edge)[i]), 0.3
    for _ in range(_SEARCHES):
        moves = torch.randn(2 * _CANDIDATES, len(at), generator=generator, dtype=torch.float64)
        tried = _on_level(search, height, at + size * search.half * moves * search.from_goal(at[None]), best)
        tried = tried[search.inside(tried)]
        failing = tried[~search.attracts(tried)] if len(tried) else tried
        if len(failing):
            lower = search.edge(failing[:8])
            i = int(height(lower).argmin())
            if float(height(lower)[i]) < best:
                at, best = lower[i], float(height(lower)[i])
                continue
        size /= 2
    return best


def _on_level(search: _Search, height: Level, x: Tensor, level: float) -> Tensor:
    """Return, for every state, the one on its line from the goal at (just below) a level."""
    inside, outside = torch.zeros(len(x), 1, dtype=torch.float64), torch.ones(len(x), 1).double()
    for _ in range(20):
        low = (height(search.goal + outside * (x - search.goal)) < level)[:, None]
        outside = torch.where(low, 1.5 * outside, outside)
    for _ in range(50):
        middle = (inside + outside) / 2
        low = (height(search.goal + middle * (x - search.goal)) < level)[:, None]
        inside, outside = torch.where(low, middle, inside), torch.where(low, outside, middle)
    return search.goal + inside * (x - search.goal)
