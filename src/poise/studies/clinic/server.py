"""A process that has imported the slow packages, and forks a child for every script that it is given.

Started by :mod:`poise.studies.clinic.runner`. Each line on stdin is a JSON object with the arguments of ``python``
(``watched`` false) or of ``python -m poise``, and files for output and errors; the answer is a line with the exit code
and the CPU seconds of the child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any

import jinja2
import plotly.graph_objects
import plotly.offline
import sklearn.datasets
import sklearn.model_selection
import sklearn.neighbors
import sklearn.preprocessing
import torch
import torch._dynamo  # the first optimizer of a script imports it
import typer.main

import poise.doctor.launcher
import poise.doctor.live_curvature
import poise.doctor.recorder
import poise.doctor.remedies
import poise.doctor.run_report
import poise.doctor.seeds
import poise.losses
import poise.optim
import poise.report.html
import poise.store.run_file
import poise.store.writer
from poise.doctor.main_module import Script, run_as_main

IMPORTED = (jinja2, plotly, sklearn, torch, poise)


def run(order: dict[str, Any]) -> None:
    """Become the script, in a child that was just forked."""
    signal.alarm(order["seconds"])  # ends the child
    for stream, path in ((1, order["stdout"]), (2, order["stderr"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(order["folder"])
    sys.path[0] = order["folder"]
    sys.argv = ["poise", *order["arguments"]]
    if order["watched"]:
        runpy._run_module_as_main("poise", alter_argv=False)  # type: ignore[attr-defined]  # as `python -m` does
    else:
        run_as_main(Script(order["arguments"][0], order["arguments"][1:]))


def main() -> None:
    """Answer orders until stdin is closed."""
    torch.set_num_threads(1)
    # By name, as `python -m poise` finds it: no module below the command line imports it. This imports more.
    typer.main.get_command(importlib.import_module("poise.cli.app").app)
    gc.collect()
    gc.freeze()  # otherwise the collector of a child would touch, and so copy, every page
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            run(json.loads(line))
            break
        _, status, used = os.wait4(child, 0)
        seconds = used.ru_utime + used.ru_stime
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "cpu_seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
