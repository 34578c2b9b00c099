"""How the gradient changes with depth; shared by the causes of vanishing and exploding gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.doctor.causes.reading import embeddings, first_run, in_forward_order, layer_table, matrices
from poise.store import Record, Series

FEWEST = 4


@dataclass(frozen=True, slots=True)
class DepthProfile:
    """Gradient norms of the weight matrices over depth.

    Args:
        names: weight matrices in the order of the forward pass.
        steps: sampled steps, shape (samples,).
        ratio: norm in the first third of the matrices over that in the last third (medians), shape (samples,).
        slope: rank correlation of the norm with depth, from -1 (falls from first to last) to 1, shape (samples,).
        norms: the norms, shape (samples, matrices).
    """

    names: list[str]
    steps: np.ndarray
    ratio: np.ndarray
    slope: np.ndarray
    norms: np.ndarray

    def first(self, broken: np.ndarray) -> int | None:
        """Return the first sample that ends three broken ones in a row."""
        return first_run(broken, 3)


def depth_profiles(record: Record) -> list[DepthProfile]:
    """Return a profile of each chain of at least four weight matrices: fewer are too few to vanish or explode over.

    Towers that stand side by side are chains of their own, as far as the run recorded which weights follow one another.
    Embedding tables are left out.
    """
    tables = embeddings(record)
    layers = {n: s for n, s in matrices(record.by_layer("grad_norm"), record).items() if n not in tables}
    chains = [chain for event in record.events("chains")[:1] for chain in event.payload.get("chains", [])]
    parts = [{n: layers[n] for n in chain if n in layers} for chain in chains] or [layers]
    return [profile for part in parts if (profile := _profile(part, in_forward_order(part, record))) is not None]


def _profile(layers: dict[str, Series], names: list[str]) -> DepthProfile | None:
    if len(names) < FEWEST:
        return None
    steps, norms = layer_table({name: layers[name] for name in names})
    finite = np.where(np.isfinite(norms), norms, np.nan)
    keep = (np.isfinite(finite).sum(axis=1) >= FEWEST) & (np.nan_to_num(finite).max(axis=1, initial=0.0) > 0)
    steps, finite = steps[keep], finite[keep]
    if not len(steps):
        return None
    third = max(len(names) // 3, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _middle(finite[:, :third]) / _middle(finite[:, -third:])
    return DepthProfile(names, steps, ratio, np.array([_rank_correlation(row) for row in finite]), finite)


def _middle(norms: np.ndarray) -> np.ndarray:
    out = np.full(len(norms), np.nan)
    some = np.isfinite(norms).any(axis=1)
    out[some] = np.nanmedian(norms[some], axis=1)
    return out


def _rank_correlation(row: np.ndarray) -> float:
    row = row[np.isfinite(row)]
    ranks = np.argsort(np.argsort(row, kind="stable"), kind="stable")
    return float(np.corrcoef(np.arange(len(row)), ranks)[0, 1])
