"""How causes read signals: causal baselines, alignment, first crossings, and the confidence that a margin gives.

Everything here depends on the past only: the entry for a step is computed from that step and those before it. Rules
built from these parts are therefore causal in time by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from poise.report.finding import Evidence
from poise.store import Record, Series
from poise.tools.listing import listing as listing
from poise.tools.number import number as written

EXACT = 0.97
"""Probability of a finding that rests on a recorded fact."""

FAR = 0.1
"""Update over weight from which on each update replaces a good part of the weights; healthy: about 0.001."""

Values = Float[np.ndarray, " samples"]
Steps = Int[np.ndarray, " samples"]
Mask = Bool[np.ndarray, " samples"]


def confidence(value: float, threshold: float) -> float:
    """Logistic function of the number of doublings by which ``value`` exceeds ``threshold``: 0.6 at it, 0.83 at twice.

    Args:
        value: the measured number, positive; not finite counts as infinitely large.
        threshold: the positive number it is compared with. For rules of the form "too small", swap the two.
    """
    if not math.isfinite(value) or threshold <= 0:
        return 0.99
    if value <= 0:
        return 0.01
    doublings = min(max(math.log2(value / threshold), -50.0), 50.0)
    return min(0.99, 1 / (1 + math.exp(-(0.4 + 1.2 * doublings))))


def number(value: float) -> str:
    """Return a number for a sentence: three significant digits."""
    return written(value, digits=3)


def first_run(mask: Mask, length: int) -> int | None:
    """Return the first index that ends ``length`` consecutive true entries, or ``None``."""
    streak = 0
    for i in np.flatnonzero(mask):
        streak = streak + 1 if streak and mask[i - 1] else 1
        if streak == length:
            return int(i)
    return None


def own_baseline(values: Values, samples: int = 10) -> Values:
    """Return, for each entry, the median of the first ``samples`` entries that came before it (itself if it is first).

    Entries that are not finite are left out; NaN where nothing finite came before.
    """
    out = np.full(len(values), np.nan)
    for i in range(len(values)):
        if i > samples:
            out[i:] = out[i - 1]
            break
        head = values[: max(i, 1)]
        head = head[np.isfinite(head)]
        out[i] = np.median(head) if len(head) else np.nan
    return out


def align(series: Series, steps: Steps) -> Values:
    """Return the last value at or before each of ``steps``; NaN before the first."""
    at = np.searchsorted(series.steps, steps, side="right") - 1
    out = np.full(len(steps), np.nan)
    out[at >= 0] = np.asarray(series.values, dtype=float)[at[at >= 0]]
    return out


def value_at(series: Series, step: int) -> float:
    """Return the last value at or before ``step``; NaN if there is none."""
    return float(align(series, np.array([step]))[0])


def upto(series: Series, step: int) -> Values:
    """Return the values recorded at or before ``step``."""
    return np.asarray(series.values[: np.searchsorted(series.steps, step, side="right")], dtype=float)


def typical(series: Series, step: int, samples: int = 5) -> float:
    """Return the median of the last finite ``samples`` values at or before ``step``; NaN if there are none."""
    values = upto(series, step)
    values = values[np.isfinite(values)][-samples:]
    return float(np.median(values)) if len(values) else math.nan


@dataclass(frozen=True, slots=True)
class Crossing:
    """The first step at which a layer broke a rule, and the layers that did so at that step, worst first."""

    step: int
    where: tuple[str, ...]


def first_crossing(layers: dict[str, Series], broken: Callable[[Series], Mask], length: int = 1) -> Crossing | None:
    """Return where a rule was first broken for ``length`` consecutive samples.

    Args:
        layers: one signal per layer.
        broken: marks the samples that break the rule; must be causal.
        length: how many consecutive samples must break it.
    """
    hits: dict[str, int] = {}
    for name, series in layers.items():
        index = first_run(broken(series), length) if len(series.steps) else None
        if index is not None:
            hits[name] = int(series.steps[index])
    if not hits:
        return None
    step = min(hits.values())
    at_once = [name for name, hit in hits.items() if hit == step]
    return Crossing(step, tuple(sorted(at_once, key=lambda name: -_severity_key(layers[name], step))))


def _severity_key(series: Series, step: int) -> float:
    value = abs(value_at(series, step))
    return value if math.isfinite(value) else math.inf


def extreme_after(series: Series, step: int) -> tuple[float, int]:
    """Return the largest magnitude (not finite counts as largest) from ``step`` on, with its sign, and its step."""
    start = int(np.searchsorted(series.steps, step, side="left"))
    values = np.asarray(series.values[start:], dtype=float)
    magnitude = np.where(np.isfinite(values), np.abs(values), np.inf)
    i = int(np.argmax(magnitude))
    return float(values[i]), int(series.steps[start + i])


def parameter_shapes(record: Record) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's parameters as far as the run recorded them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for event in record.events("model"):
        for name, facts in event.payload.get("parameters", {}).items():
            shapes[name] = tuple(facts.get("shape", ()))
    return shapes


def parameter_types(record: Record) -> dict[str, str]:
    """Return the dtypes of the model's parameters as far as the run recorded them."""
    types: dict[str, str] = {}
    for event in record.events("model"):
        for name, facts in event.payload.get("parameters", {}).items():
            types[name] = str(facts.get("dtype", ""))
    return types


def optimizer_class(record: Record) -> str:
    """Return the class of the optimizer, for example ``"AdamW"``; "the optimizer" where it was not recorded."""
    for event in record.events("optimizer"):
        return str(event.payload.get("class", "the optimizer"))
    return "the optimizer"


def embeddings(record: Record) -> set[str]:
    """Return the names of embedding tables: their gradient is as small as the rows in a batch are few."""
    modules = {
        name: kind for event in record.events("model") for name, kind in event.payload.get("modules", {}).items()
    }
    return {f"{name}.weight" for name, kind in modules.items() if "Embedding" in str(kind)}


def matrices(layers: dict[str, Series], record: Record) -> dict[str, Series]:
    """Return the signals of weight matrices and kernels: known to have two dimensions, else not named a bias."""
    shapes = parameter_shapes(record)
    return {
        name: series
        for name, series in layers.items()
        if (len(shapes[name]) >= 2 if name in shapes else not name.endswith("bias"))
    }


def in_forward_order(layers: dict[str, Series], record: Record) -> list[str]:
    """Return layer names in the order in which the forward pass uses them, as far as the run recorded it."""
    order: list[Any] = []
    for event in record.events("model"):
        order += [name for name in event.payload.get("order", []) if name not in order]
    rank = {name: i for i, name in enumerate(order)}
    return sorted(layers, key=lambda name: rank.get(name, len(rank)))


def update_ratio(record: Record) -> Series:
    """Return the relative size of updates of the whole model, or the median over tensors where only those are there."""
    whole = record["update_ratio"]
    if len(whole.steps):
        return whole
    steps, table = layer_table(record.by_layer("update_ratio"))
    if not len(steps):
        return whole
    finite = np.where(np.isfinite(table), table, np.nan)
    keep = np.isfinite(finite).any(axis=1)
    return Series(steps[keep], np.nanmedian(finite[keep], axis=1))


def weights_replaced_since(record: Record, step: int) -> int:
    """Return the first of the samples right before ``step`` in all of which updates replaced a tenth of the weights.

    It is ``step`` itself where there are fewer than two (or one that replaced all of them).
    """
    updates = update_ratio(record)
    before = np.flatnonzero(updates.steps < step)
    small = before[~(np.asarray(updates.values)[before] >= FAR)]
    far = before[before > (small[-1] if len(small) else -1)]
    replaced = len(far) >= 2 or (len(far) == 1 and updates.values[far[0]] >= 1)
    return int(updates.steps[far[0]]) if replaced else step


def layer_table(layers: dict[str, Series]) -> tuple[Steps, Float[np.ndarray, "samples layers"]]:
    """Return all steps at which any of the layers was sampled and their values there, NaN where one was not."""
    if not layers:
        return np.array([], dtype=np.int64), np.zeros((0, 0))
    steps = np.unique(np.concatenate([np.asarray(series.steps) for series in layers.values()]))
    table = np.full((len(steps), len(layers)), np.nan)
    for column, series in enumerate(layers.values()):
        table[np.searchsorted(steps, series.steps), column] = series.values
    return steps, table


def evidence_at(record: Record, signal: str, step: int, threshold: float | None = None) -> list[Evidence]:
    """Return the last value of a signal at or before ``step`` as evidence; nothing if it was never recorded."""
    series = record[signal]
    at = int(np.searchsorted(series.steps, step, side="right")) - 1
    if at < 0:
        return []
    return [Evidence(signal, float(series.values[at]), threshold, None, int(series.steps[at]))]


def samples_up_to(series: Series, step: int, count: int) -> slice:
    """Return the slice of the last ``count`` values up to ``step``."""
    last = int(np.searchsorted(series.steps, step))
    return slice(max(last - count + 1, 0), last + 1)
