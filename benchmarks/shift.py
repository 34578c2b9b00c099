"""CBPE beside nannyml's on the employment data: CPU time, agreement; and ten million rows in bounded memory.

Run with ``python benchmarks/shift.py``. nannyml has an environment of its own, ``.venv-peers/nannyml``, which is made
on first use (or the one whose Python ``POISE_PEER_NANNYML`` names). Each run is a process of its own, both in turn;
imports are not timed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PEER = HERE / "peers" / "nannyml"
ROUNDS, CHUNK, METRICS = 5, 2_000, ("accuracy", "f1", "roc_auc")
MILLION = 1_000_000


def peer_python() -> str:
    """Return the peer's Python, whose environment is made if it is missing."""
    if given := os.environ.get("POISE_PEER_NANNYML"):
        return given
    folder = HERE.parent / ".venv-peers" / "nannyml"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", PEER / "requirements.txt"], check=True)
    return str(python)


def run_here(source: str, target: str) -> None:
    """Do what the peer's process does."""
    import pandas as pd

    from poise.shift import CBPE

    data = np.load(source)
    reference = pd.DataFrame({"p": data["p_reference"], "h": data["h_reference"], "y": data["y_reference"]})
    analysis = pd.DataFrame({"p": data["p_analysis"], "h": data["h_analysis"]})
    CBPE(METRICS, chunk=CHUNK).fit(reference.iloc[:1000], y_true="y", y_score="p", y_pred="h", features=[])  # imports
    wall, cpu = time.perf_counter(), time.process_time()
    estimator = CBPE(METRICS, chunk=int(data["chunk"]))
    found = estimator.fit(reference, y_true="y", y_score="p", y_pred="h", features=[]).estimate(analysis)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    values = {name: found.loc[found["metric"] == name, "value"].tolist() for name in METRICS}
    Path(target).write_text(json.dumps({"seconds": seconds, "values": values}), encoding="utf-8")


def run_many(rows: str, folder: str) -> None:
    """Run a monitor over one file of many rows, and print seconds and peak memory."""
    import resource

    import pandas as pd

    from poise.data import load_employment
    from poise.shift import CBPE, Monitor

    work = Path(folder)
    table = load_employment().reference[["predicted_probability", "prediction", "employed"]]
    table.to_parquet(work / "reference.parquet")
    big = work / f"{rows}.parquet"
    if not big.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        random = np.random.default_rng(0)
        with pq.ParquetWriter(big, pa.Schema.from_pandas(table, preserve_index=False)) as writer:
            for _ in range(int(rows) // 100_000):
                drawn = pd.DataFrame(table.to_numpy()[random.integers(0, len(table), 100_000)], columns=table.columns)
                writer.write_table(pa.Table.from_pandas(drawn.astype(table.dtypes), preserve_index=False))
    roles = {"y_true": "employed", "y_score": "predicted_probability", "y_pred": "prediction", "features": []}
    monitor = Monitor.fit(work / f"monitor-{rows}", work / "reference.parquet", CBPE(METRICS, chunk=50_000), **roles)
    wall, cpu = time.perf_counter(), time.process_time()
    chunks = len(monitor.run([big]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps({"chunks": chunks, "peak": peak, **seconds}))


def compare(folder: Path) -> None:
    """Print CPU times and agreement."""
    from poise.data import load_employment

    data = load_employment()
    old, new = data.reference, data.production.iloc[:100_000]
    rank = np.arange(len(new)) * 1e-13  # scores without ties
    source = folder / "in.npz"
    np.savez(
        source,
        p_reference=old["predicted_probability"],
        h_reference=old["prediction"],
        y_reference=old["employed"],
        p_analysis=np.clip(new["predicted_probability"] + rank, 0, 1),
        h_analysis=new["prediction"],
        chunk=CHUNK,
    )
    commands = {
        "nannyml": [peer_python(), str(PEER / "run.py")],
        "poise": [sys.executable, __file__, "here"],
    }
    results: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            out = folder / f"{name}.json"
            subprocess.run([*command, str(source), str(out)], check=True, capture_output=True)
            results[name].append(json.loads(out.read_text(encoding="utf-8")))
    for clock in ("cpu", "wall"):
        seconds = {name: [one["seconds"][clock] for one in runs] for name, runs in results.items()}
        ratios = [a / b for a, b in zip(seconds["nannyml"], seconds["poise"], strict=True)]
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        print(
            f"{clock}: nannyml {middle['nannyml']:.2f} s, here {middle['poise']:.2f} s, "
            f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) (bar 10)"
        )
    for name, bar in zip(METRICS, (1e-9, 1e-9, 1e-6), strict=True):
        here, peer = (np.array(results[who][-1]["values"][name]) for who in ("poise", "nannyml"))
        print(f"{name}: largest difference {np.abs(here - peer).max():.1e} (bar {bar:.0e})")


def many_rows(folder: Path) -> None:
    """Print seconds and peak memory of one and of ten million rows."""
    found = {}
    for rows in (MILLION, 10 * MILLION):
        command = [sys.executable, __file__, "many", str(rows), str(folder)]
        subprocess.run(command, check=True, capture_output=True)  # the file is made in a process of its own
        subprocess.run(["rm", "-r", str(folder / f"monitor-{rows}")], check=True)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[rows] = json.loads(done.stdout)
        one = found[rows]
        print(f"{rows:,} rows: {one['wall']:.1f} s, CPU {one['cpu']:.1f} s, peak {one['peak']:.0f} MiB")
    more = found[10 * MILLION]["peak"] - found[MILLION]["peak"]
    print(f"ten million rows need {more:.0f} MiB more than one million (bar 200), bar 60 s")


def main() -> None:
    """Compare, then measure many rows."""
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name))
        many_rows(Path(name))


if __name__ == "__main__":
    commands = {"here": run_here, "many": run_many}
    if len(sys.argv) > 1:
        commands[sys.argv[1]](*sys.argv[2:])
    else:
        main()
