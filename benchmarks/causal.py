"""Error and cost of effect estimates beside econml and xcausal, intervals with an invalid instrument, evolved features.

Run with ``python benchmarks/causal.py``, or with the parts wanted: ``effects``, ``instrument``, ``features``. Peers are
processes with an environment of their own, made by

    python -m venv benchmarks/peers/econml/.venv
    benchmarks/peers/econml/.venv/bin/pip install -r benchmarks/peers/econml/requirements.txt

and the same for xcausal; those that are not there are left out. They read one .npz file and write one JSON file. Import
time is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from learners import classifier, measured, regressor  # noqa: E402

from poise.causal import DRLearner, EvolvedFeatures, InvalidIVATE, RLearner, simulated_effects  # noqa: E402
from poise.data import load_ihdp  # noqa: E402

REALISATIONS = 10
DRAWS, ROWS = 200, 5000


def own(kind: type, **settings: Any) -> Any:
    def fit(x: np.ndarray, y: np.ndarray, t: np.ndarray, seed: int) -> np.ndarray:
        learner = kind(
            outcome=regressor(seed), propensity=classifier(seed), effect_model=regressor(seed), random_state=seed,
            **settings,
        )  # fmt: skip
        return learner.fit(x, y, treatment=t).effect(x)

    return fit


def peer(name: str, data: Path) -> dict[str, Any]:
    """Measurements of a peer; none if its environment is not there."""
    python = Path(os.environ.get(f"POISE_PEER_{name.upper()}", PEERS / name / ".venv" / "bin" / "python"))
    if not python.exists():
        print(f"{name}: no environment at {python}, left out")
        return {}
    out = data.with_name(f"{name}.json")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([python, PEERS / name / "run.py", data, out], check=True, env=clean)
    return dict(json.loads(out.read_text()))


def effects() -> None:
    """IHDP, response surface B: root mean squared error of effects."""
    children = load_ihdp()
    draws = [children.surface_b(seed) for seed in range(REALISATIONS)]
    arrays = {
        "x": children.covariates,
        "t": children.treatment,
        "y": np.stack([y for y, _ in draws]),
        "effect": np.stack([effect for _, effect in draws]),
    }
    spread = arrays["effect"].std(axis=1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "ihdp.npz"
        np.savez(data, **arrays)
        ours = {
            "poise DRLearner (inverse variance)": own(DRLearner),
            "poise DRLearner, unweighted": own(DRLearner, weights=None),
            "poise RLearner": own(RLearner),
        }
        found = measured(ours, arrays) | peer("econml", data) | peer("xcausal", data)
    best = np.array(found["poise DRLearner (inverse variance)"]["pehe"])
    print("IHDP-B, 10 realisations: PEHE; PEHE over sd of the effects; CPU seconds a fit (median)")
    for name, runs in found.items():
        pehe = np.array(runs["pehe"])
        ratio = best / pehe
        print(
            f"{name:36s} mean {pehe.mean():.3f} median {np.median(pehe):.3f}; over sd {np.mean(pehe / spread):.3f}; "
            f"CPU {np.median(runs['cpu']):.2f} s, wall {np.median(runs['wall']):.2f} s; ours over it: mean "
            f"{ratio.mean():.3f}, median {np.median(ratio):.3f}, ratio of means {best.mean() / pehe.mean():.3f}, "
            f"won {(ratio < 1).sum()} of {len(ratio)}"
        )


def instrument() -> None:
    """Bias and coverage where the instrument affects the outcome directly."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    from poise.studies.selective_ate_iv import EFFECT, simulated

    estimates, covered, simple = [], [], []
    for seed in range(DRAWS):
        x, y, a, z = simulated(ROWS, 1000 + seed)
        fitted = InvalidIVATE(LinearRegression(), LogisticRegression(), LogisticRegression(), random_state=seed)
        fitted.fit(x, y, treatment=a, instrument=z)
        low, high = fitted.conf_int()
        estimates.append(fitted.ate_)
        covered.append(low <= EFFECT <= high)
        simple.append({row[0]: row[1] for row in fitted.diagnostics().blocks[0].rows}["two-stage least squares"])
    bias, other = np.mean(estimates) - EFFECT, np.mean(simple) - EFFECT
    print(f"invalid instrument, {DRAWS} draws of {ROWS} rows: bias {bias:+.3f} (sd {np.std(estimates):.3f}), coverage ")
    print(f"{np.mean(covered):.3f}; two-stage least squares: bias {other:+.3f}; ratio {abs(bias) / abs(other):.3f}")


def features() -> None:
    """Seconds of 30 evolutions of three generations of four networks."""
    cpu, wall = time.process_time(), time.perf_counter()
    for seed in range(30):
        rows = simulated_effects("A", 200, seed, columns=24)
        EvolvedFeatures(n_generations=3, random_state=seed).fit(rows.X, rows.y, treatment=rows.treatment)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"evolved features, 30 seeds, set-up A, n = 200: CPU {cpu:.1f} s, wall {wall:.1f} s (target 60 s)")


PARTS = {"effects": effects, "instrument": instrument, "features": features}


def main() -> None:
    """Run the parts that are named, or all."""
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sys.argv[1:] or PARTS:
            PARTS[name]()


if __name__ == "__main__":
    main()
