"""Recommenders: rank-biased overlap beside the package rbo, exact cascade scores, a FINEST step beside a loop.

Run with ``python benchmarks/recsys.py``. The peer is a process with an environment of its own, made by

    python -m venv benchmarks/peers/rbo/.venv
    benchmarks/peers/rbo/.venv/bin/pip install -r benchmarks/peers/rbo/requirements.txt

and is left out if that is not there.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from poise.data import load_movielens_100k
from poise.recsys import InteractionGraph, RankPreservingLoss, rbo

ITEMS, PAIRS = 1682, 200
PEER = Path(__file__).parent / "peers" / "rbo"


def median_seconds(call: Callable[[], object], repeat: int = 7, number: int = 1) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        for _ in range(number):
            call()
        times.append((time.process_time() - start) / number)
    return statistics.median(times)


def overlap() -> None:
    """One pair of permutations of 1,682 items."""
    rng = np.random.default_rng(0)
    pairs = np.stack([np.stack([rng.permutation(ITEMS), rng.permutation(ITEMS)]) for _ in range(PAIRS)])
    own = median_seconds(lambda: [rbo(a, b) for a, b in pairs]) / PAIRS
    print(f"rbo, one pair of {ITEMS} items: {1e6 * own:.1f} us")
    python = Path(os.environ.get("POISE_PEER_RBO", PEER / ".venv" / "bin" / "python"))
    if not python.exists():
        print(f"rbo: no environment at {python}, left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "pairs.npz", Path(folder) / "out.json"
        np.savez(data, pairs=pairs)
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([python, PEER / "run.py", data, out], check=True, env=clean)
        found = json.loads(out.read_text())
    theirs = statistics.median(found["seconds"])
    again = median_seconds(lambda: [rbo(a, b) for a, b in pairs]) / PAIRS
    differences = [abs(value - rbo(a, b)) for value, (a, b) in zip(found["values"], pairs, strict=True)]
    ratios = theirs / own, theirs / again
    print(
        f"rbo 0.1.3: {1e3 * theirs:.2f} ms, ratio {min(ratios):.0f} to {max(ratios):.0f}; largest difference "
        f"{max(differences):.1e}"
    )


def cascade() -> None:
    """Scores of all 100,000 ratings, exact."""
    ratings = load_movielens_100k().ratings.sort_values(["timestamp", "user_id", "item_id"])
    ratings = ratings.assign(time=np.arange(len(ratings)))
    start = time.process_time()
    scores = InteractionGraph.from_frame(ratings, "user_id", "item_id", "time").cascade_scores()
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"cascade scores of {len(scores):,} events: {seconds:.2f} s CPU, {memory:.0f} MiB of the whole process at most"
    )


def naive_rank_loss(scores: torch.Tensor, reference: torch.Tensor, competitors: torch.Tensor) -> torch.Tensor:
    """The published form: a loop over the sequences of a batch, and over their positions."""
    total = scores.new_zeros(())
    for s, r, c in zip(scores, reference, competitors, strict=True):
        parts = []
        for z, kept, rivals in zip(s, r, c, strict=True):
            order = (0.1 - (z[kept[:-1]] - z[kept[1:]])).clamp(min=0).mean()
            parts.append(order + (0.1 - (z[kept] - z[rivals])).clamp(min=0).mean())
        total = total + torch.stack(parts).mean()
    return total


def finest() -> None:
    """Loss and gradient of a batch of 32 sequences of 50, 100 items kept of 791."""
    torch.manual_seed(0)
    scores = torch.randn(32, 50, 791, requires_grad=True)
    order = torch.rand(32, 50, 791).argsort(-1)
    reference, competitors = order[..., :100], order[..., 100:200]
    every, loss = torch.ones(32, 50, dtype=torch.bool), RankPreservingLoss(reduction="sequence_sum")

    def step(own: bool) -> torch.Tensor:
        arguments = (scores, reference, competitors)
        return torch.autograd.grad(loss(*arguments, every) if own else naive_rank_loss(*arguments), scores)[0]

    difference = (step(True) - step(False)).abs().max().item()
    ratios = [median_seconds(lambda: step(False), 1) / median_seconds(lambda: step(True), 1) for _ in range(7)]
    times = statistics.median(ratios)
    print(f"FINEST loss and gradient: a loop over positions takes {times:.1f} times; difference {difference:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    overlap()
    cascade()
    finest()
