"""CBPE of nannyml, as a process: ``python run.py IN.npz OUT.json``; telemetry is off, and imports are not timed."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
warnings.filterwarnings("ignore")

import nannyml as nml  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

METRICS = ["accuracy", "f1", "roc_auc"]


def main(source: str, target: str) -> None:
    data = np.load(source)
    reference = pd.DataFrame({"p": data["p_reference"], "h": data["h_reference"], "y": data["y_reference"]})
    analysis = pd.DataFrame({"p": data["p_analysis"], "h": data["h_analysis"]})
    wall, cpu = time.perf_counter(), time.process_time()
    estimator = nml.CBPE(
        y_pred_proba="p",
        y_pred="h",
        y_true="y",
        metrics=METRICS,
        problem_type="classification_binary",
        chunk_size=int(data["chunk"]),
    )
    found = estimator.fit(reference).estimate(analysis)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    table = found.filter(period="analysis").to_df()
    values = {name: table[name]["value"].tolist() for name in METRICS}
    with open(target, "w", encoding="utf-8") as file:
        json.dump({"seconds": seconds, "values": values}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
