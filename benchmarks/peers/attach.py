"""Run scripts with a peer attached to each optimizer; executed by the Python of the peer's environment.

    python attach.py PEER FOLDER SEED SCRIPT...

For every script one line of JSON on stdout: its name, and what the peer said, the most severe first, each with its
severity and title. The peers want calls in the training loop; here hooks of torch make these calls. With the peer `log`
the line holds the losses instead.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets
import sklearn.model_selection
import sklearn.neighbors
import sklearn.preprocessing
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

SECONDS = 180
Report = list[dict[str, Any]]
IMPORTED = (sklearn,)


class Log:
    """The losses of an optimizer's steps."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.losses: list[float] = []

    def before_step(self, loss: float) -> None:
        self.losses.append(loss)

    def after_step(self, loss: float) -> None:
        pass

    def report(self) -> Report:
        return [{"losses": self.losses}]


class Trainscope:
    """At its defaults: a spike detector on the loss, and the signals that its own report reads."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        from trainscope import TrainScope
        from trainscope.core.config import TrainScopeConfig

        self.folder = Path(tempfile.mkdtemp())
        config = TrainScopeConfig(run_dir=str(self.folder), run_name="run")
        self.scope = TrainScope(model, optimizer, config=config).attach()

    def before_step(self, loss: float) -> None:
        self.scope.step(loss)

    def after_step(self, loss: float) -> None:
        pass

    def report(self) -> Report:
        import asyncio

        from trainscope.analysis import run_signal_signature

        self.scope.detach()
        signature = asyncio.run(run_signal_signature(self.folder / "run"))
        said = [{"severity": 1, "title": name} for name in signature["fired"]]
        return [*said, *([{"severity": 2, "title": "explosion"}] if signature["explosion_step"] is not None else [])]


class Torchmortem:
    """At its defaults."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        from torchmortem import Autopsy

        self.autopsy = Autopsy(model, optimizer=optimizer)
        self.autopsy.attach()

    def before_step(self, loss: float) -> None:
        pass

    def after_step(self, loss: float) -> None:
        self.autopsy.step(loss=loss)

    def report(self) -> Report:
        self.autopsy.detach()
        report = self.autopsy.get_report()
        return [{"severity": int(f.severity), "title": f.title} for f in report.findings] if report else []


PEERS: dict[str, Callable[[nn.Module, Optimizer], Any]] = {
    "log": Log,
    "trainscope": Trainscope,
    "torchmortem": Torchmortem,
}


def attach(make: Callable[[nn.Module, Optimizer], Any]) -> Callable[[], list[Report]]:
    """Attach a peer to every optimizer at its first step; return a function that collects the reports."""
    roots: dict[int, nn.Module] = {}
    attached: dict[int, Any] = {}
    last = [float("nan")]
    backward = torch.Tensor.backward

    def note_loss(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.numel() == 1:
            last[0] = float(self.detach())
        return backward(self, *args, **kwargs)

    def note_module(module: nn.Module, inputs: Any) -> None:
        roots[id(module)] = module

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in attached:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            shared = {id(m): sum(id(p) in own for p in m.parameters()) for m in roots.values()}
            best = max(shared.values(), default=0)
            models = [m for m in roots.values() if best and shared[id(m)] == best]
            # The largest module that holds most of the optimizer's parameters.
            model = max(models, key=lambda m: sum(1 for _ in m.modules()), default=None)
            attached[id(optimizer)] = (make(model, optimizer), optimizer) if model is not None else None
        if attached[id(optimizer)]:
            attached[id(optimizer)][0].before_step(last[0])

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if attached.get(id(optimizer)):
            attached[id(optimizer)][0].after_step(last[0])

    torch.Tensor.backward = note_loss  # type: ignore[method-assign]
    register_module_forward_pre_hook(note_module)
    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)
    return lambda: [entry[0].report() for entry in attached.values() if entry]


def run(peer: str, script: Path, seed: str, out: Path) -> None:
    """In a child: run one script, and write what the peer says."""
    signal.alarm(SECONDS)
    result: dict[str, Any] = {"error": ""}
    with open(os.devnull, "w") as nowhere, contextlib.chdir(tempfile.mkdtemp()):
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        collect = attach(PEERS[peer])
        sys.argv = [str(script), seed]
        try:
            runpy.run_path(str(script), run_name="__main__")
        except BaseException as error:
            result["error"] = repr(error)
        try:
            reports = collect()
        except Exception as error:
            reports, result["error"] = [], f"{result['error']} report: {error!r}"
    if peer == "log":
        result["said"] = max(reports, key=lambda report: len(report[0]["losses"]), default=[])
    else:
        result["said"] = sorted(itertools.chain(*reports), key=lambda entry: -entry["severity"])
    out.write_text(json.dumps(result))
    os._exit(0)


def main() -> None:
    peer, folder, seed, *scripts = sys.argv[1:]
    torch.set_num_threads(1)
    if peer != "log":
        __import__(peer)
    for name in scripts:
        out = Path(tempfile.mkdtemp()) / "said.json"
        child = os.fork()
        if child == 0:
            run(peer, Path(folder).absolute() / f"{name}.py", seed, out)
        os.waitpid(child, 0)
        said = json.loads(out.read_text()) if out.exists() else {"error": "killed", "said": []}
        print(json.dumps({"script": name, **said}), flush=True)


if __name__ == "__main__":
    main()
