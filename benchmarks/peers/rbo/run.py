"""Rank-biased overlap of pairs of rankings by the package rbo: run.py IN.npz OUT.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from rbo import RankingSimilarity

pairs = np.load(sys.argv[1])["pairs"]
lists = [(a.tolist(), b.tolist()) for a, b in pairs]
times, values = [], []
for a, b in lists:
    start = time.process_time()
    values.append(RankingSimilarity(a, b).rbo(p=0.9))
    times.append(time.process_time() - start)
Path(sys.argv[2]).write_text(json.dumps({"seconds": times, "values": values}))
