"""A process that has imported the slow packages, and forks a child for every command that it gets.

Run as a script. Each line on stdin is a JSON object with ``arguments`` of ``python -m poise`` (or, with ``plain``, of
``python``), ``cwd``, ``env``, and files for ``stdin``, ``stdout`` and ``stderr``; the answer is the process id and
then, when the command has ended, by its exit code as :mod:`subprocess` gives it.
"""

import gc
import json
import os
import runpy
import sys

import plotly.graph_objects
import sklearn.datasets
import sklearn.model_selection
import sklearn.preprocessing
import torch
import torch._dynamo  # the first optimizer of a script imports it
import typer.main

import poise.cli.app
import poise.doctor.live_curvature
import poise.doctor.run_report
from poise.doctor.main_module import Script, run_as_main

IMPORTED = (plotly, sklearn, torch, poise)


def run_command(command):
    """Turn this process into ``python -m poise ...``."""
    for stream, path in ((0, command["stdin"]), (1, command["stdout"]), (2, command["stderr"])):
        file = os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(command["cwd"])
    os.environ.update(command["env"])
    sys.argv = ["poise", *command["arguments"]]
    sys.path[0] = command["cwd"]
    if command["plain"]:
        run_as_main(Script(*command["arguments"]))
        return
    runpy._run_module_as_main("poise", alter_argv=False)  # as `python -m` does: nothing is restored


def main():
    typer.main.get_command(poise.cli.app.app)  # imports more
    # Otherwise the garbage collector of a child that ends would visit all of this, and copy every page.
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            run_command(json.loads(line))
            break
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
