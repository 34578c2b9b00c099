"""How to start a training that runs in processes of its own, so that poise can watch it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poise.doctor import Script

_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch", "torch.distributed.elastic_launch")
_CHILD_SECONDS = 0.5  # of CPU; a child that asked git for the commit took less, one that imported torch more


def launch_hint(script: Script) -> str:
    """Return how to launch what starts the training in other processes; empty if ``script`` is no launcher."""
    if script.module and script.target in _LAUNCHERS:
        name = script.target
    elif not script.module and Path(script.target).name == "torchrun":
        name = "torchrun"
    else:
        return ""
    return f"{name} trains in processes of its own, which poise cannot watch from here. Launch it as: " + shlex.join(
        ["torchrun", *_with_poise(list(script.args))]
    )


def _with_poise(args: list[str]) -> list[str]:
    """Put ``poise run`` before the script, or the module, in the arguments of torchrun."""
    for i, arg in enumerate(args):
        if arg in ("-m", "--module"):
            return [*args[:i], "-m", "poise", "run", "-m", *args[i + 1 :]]
        if arg.endswith(".py") and not arg.startswith("-"):
            return [*args[:i], "-m", "poise", "run", *args[i:]]
    return [*args, "-m", "poise", "run", "train.py"]


def children_hint(seconds: float) -> str:
    """Return how to watch a training in child processes, given their CPU time; empty if it was nearly zero.

    It is empty in a process that torchrun started, in which the training itself runs.
    """
    if seconds < _CHILD_SECONDS or "TORCHELASTIC_RUN_ID" in os.environ:
        return ""
    return (
        f"Child processes took {seconds:.1f} s of CPU time: a training in a child process (torch.multiprocessing.spawn,"
        " subprocess, os.fork) is not watched. Launch it with `torchrun --nproc-per-node=N -m poise run train.py`, or"
        " put `with poise.watch(model, optimizer):` around the loop in the function that the child runs."
    )
