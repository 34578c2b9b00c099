"""A sweep over an unmodified script: its command line is a template, and the doctor's tap records each run."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from poise.doctor import parse_remedy
from poise.preflight.sweeps.divergence import LossWatch
from poise.preflight.sweeps.sweep import SweepResult, sweep
from poise.preflight.sweeps.sweep_progress import Progress
from poise.store import Record, RunFileError, read_run
from poise.tools.child_process import ChildProcesses

LOGIT, GRADIENT, EPS_SHRINK = "attention_logit_max", "grad_norm", "adam_eps_shrink"

_POLL = 0.3  # seconds between reads of the loss of a running script, and more where reading is slow


@dataclass(frozen=True, slots=True)
class ScriptPlan:
    """What runs at each point of the sweep.

    Args:
        script: path of the script.
        args: its arguments; ``{lr}``, ``{seed}`` and the names of ``sets`` in braces are replaced.
        sets: name -> values that grow together, the size first; empty for one size.
        remedies: specs of the remedies that act on every run.
        overhead: fraction of a run's time that watching may take.

    Raises:
        FileNotFoundError: if there is no such script.
        ValueError: if no argument uses the learning rate or a name of ``sets``, a size is no whole number or they do
            not increase, lists differ in length, or a remedy is unknown.
    """

    script: str
    args: tuple[str, ...]
    sets: Mapping[str, tuple[str, ...]]
    remedies: tuple[str, ...] = ()
    overhead: float = 0.5

    def __post_init__(self) -> None:
        if not Path(self.script).is_file():
            raise FileNotFoundError(f"script must be a file, got {self.script!r}")
        for spec in self.remedies:
            parse_remedy(spec)
        for name in ("lr", *self.sets):
            if not any(f"{{{name}}}" in arg for arg in self.args):
                raise ValueError(_how_templates_work(name, self.script, self.args, tuple(self.sets)))
        lengths = {name: len(values) for name, values in self.sets.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"all --set must have as many values, because they change together; got {lengths}")
        sizes = self.sizes or ()
        if any(size <= 0 for size in sizes) or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"values of {self.size_name!r} must be positive and increasing, got {list(sizes)}")

    @property
    def size_name(self) -> str:
        """Name of the size."""
        return next(iter(self.sets), "size")

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """Values of the first of ``sets``; ``None`` for one size."""
        for name, values in self.sets.items():
            try:
                return tuple(map(int, values))
            except ValueError:
                raise ValueError(f"values of {name!r} must be whole numbers, got {', '.join(values)}") from None
        return None

    @property
    def fingerprint(self) -> str:
        """What identifies this plan: the script's text, the arguments, what changes together, remedies."""
        facts = {**asdict(self), "text": hashlib.sha256(Path(self.script).read_bytes()).hexdigest()}
        facts["sets"] = dict(self.sets) if len(self.sets) > 1 else list(self.sets)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def command(self, lr: float, seed: int, size: int | None) -> tuple[list[str], bool]:
        """Return the arguments of one run, and whether the script takes its seed from them."""
        values = {"lr": repr(lr), "seed": str(seed)}
        if size is not None:
            at = (self.sizes or ()).index(size)
            values |= {name: given[at] for name, given in self.sets.items()}
        out = list(self.args)
        for name, value in values.items():
            out = [arg.replace(f"{{{name}}}", value) for arg in out]
        return out, any("{seed}" in arg for arg in self.args)


def _how_templates_work(name: str, script: str, args: Sequence[str], sets: Sequence[str]) -> str:
    example = " ".join(f"--{n} {{{n}}}" for n in ("lr", *sets, "seed"))
    given = " ".join(args) or "nothing"
    return (
        f"no argument of the script uses {{{name}}} (after -- came {given}). Write the script's own arguments after "
        f"--, with names in braces where a value goes, for example:\n"
        f"  poise preflight {script} --lr 1e-4:1:9log -- {example}"
    )


def script_sweep(
    plan: ScriptPlan,
    lrs: Sequence[float],
    seeds: int,
    n_jobs: int,
    folder: Path,
    progress: Progress | bool | None = None,
) -> SweepResult:
    """Run a script at every learning rate, size and seed, each in a process of its own under the doctor's tap.

    Args:
        plan: what is run.
        lrs: learning rates.
        seeds: number of seeds; where no argument holds ``{seed}`` it is added to every seed that the script sets.
        n_jobs: runs at a time.
        folder: where points and runs are kept; the same call continues from there.
        progress: see :func:`sweep`.

    Returns:
        The points. Loss is the mean over the last tenth of the steps, the loss at initialisation is the first one;
        signals are medians over the second half of a run: the largest attention logit of any layer, the norm of the
        gradient, the smallest ``adam_eps_shrink``.

    Raises:
        ValueError: if a run shows no loss, or the folder belongs to another plan.
    """
    with _Runs(plan, folder / "runs") as train, joblib.parallel_config("threading", n_jobs=n_jobs):
        return sweep(train, lrs, plan.sizes, seeds, n_jobs, progress, folder)


class _Runs:
    """Runs of one plan; leaving the context with an error or an interrupt ends those that still run."""

    def __init__(self, plan: ScriptPlan, folder: Path) -> None:
        self.plan, self.folder, self.fingerprint = plan, folder, plan.fingerprint
        self._children = ChildProcesses()

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._children.stop()

    def __call__(self, lr: float, seed: int, watch: LossWatch, size: int | None = None) -> dict[str, float]:
        name = f"lr-{lr:g}-seed-{seed}"
        folder = _new_folder(self.folder, name if size is None else f"{self.plan.size_name}-{size}-{name}")
        args, seeded = self.plan.command(lr, seed, size)
        code = self._run(args, None if seeded else seed, folder, watch)
        (folder / "run" / "report.html").unlink(missing_ok=True)  # two megabytes a run; `poise report` makes it again
        numbers = read_script_run(folder, code, args)
        if bounds_logits(self.plan.remedies):
            numbers.pop(LOGIT, None)  # the record has the logits as the script computes them, before the remedy
        return numbers

    def _run(self, args: list[str], seed: int | None, folder: Path, watch: LossWatch) -> int:
        options = ["--quiet", "--json", "--overhead", str(self.plan.overhead), "--out", str(folder / "run")]
        options += [] if seed is None else ["--seed", str(seed)]
        for spec in self.plan.remedies:
            options += ["--remedy", spec]
        command = [sys.executable, "-m", "poise", "run", *options, self.plan.script, *args]
        with self._children.child(command, folder) as child:
            return _follow(child, folder / "run" / "run.db", watch)


def _follow(child: subprocess.Popen[bytes], file: Path, watch: LossWatch) -> int:
    wait = _POLL
    while True:
        try:
            return child.wait(wait)
        except subprocess.TimeoutExpired:
            start = time.perf_counter()
            _report_losses(file, watch)
            wait = max(_POLL, 20 * (time.perf_counter() - start))


def _report_losses(file: Path, watch: LossWatch) -> None:
    try:
        loss = read_run(file)["loss"]
    except (RunFileError, FileNotFoundError):
        return  # not begun yet
    seen = len(watch.losses)
    for step, value in zip(loss.steps[seen:].tolist(), loss.values[seen:].tolist(), strict=True):
        watch(step, value)


def _new_folder(parent: Path, name: str) -> Path:
    # Never that of an earlier attempt: after a kill its process may still be writing there.
    number, folder = 1, parent / name
    while folder.exists():
        number, folder = number + 1, parent / f"{name}-again-{number}"
    folder.mkdir(parents=True)
    return folder


def bounds_logits(remedies: Iterable[str]) -> bool:
    """Return whether one of these remedies keeps attention logits bounded at any size of model."""
    return any(parse_remedy(spec).bounds_logits for spec in remedies)


def read_script_run(folder: Path, exit_code: int, args: Sequence[str] = ()) -> dict[str, float]:
    """Return the result of one run, from the record in its folder.

    Args:
        folder: holds ``run/run.db`` and ``stderr.txt``.
        exit_code: of the script. A script that fails after a loss was recorded counts as diverged.
        args: of the script, for messages.

    Raises:
        ValueError: if the run shows no finite loss, or continued without a remedy that failed.
    """
    try:
        record = read_run(folder / "run" / "run.db")
        loss = record["loss"].values
    except (RunFileError, FileNotFoundError):
        record, loss = None, np.empty(0)
    if record is None or not len(loss) or not np.isfinite(loss[0]):
        said = (
            _last_lines(folder / "stderr.txt") or "it must call backward() on a loss and step a torch.optim optimizer"
        )
        raise ValueError(f"the script showed no loss with {' '.join(args)!r} (exit code {exit_code}):\n{said}")
    dropped = record.events("remedy_failed")
    if dropped:
        raise ValueError(f"a remedy could not be applied to {' '.join(args)!r}: {dropped[0].payload.get('error')}")
    last = loss[-max(5, math.ceil(0.1 * len(loss))) :]
    out = {"loss": math.nan if exit_code else float(last.mean()), "init_loss": float(loss[0])}
    looked = {
        LOGIT: _late(record, LOGIT, max),
        GRADIENT: _late(record, GRADIENT, max),
        EPS_SHRINK: _late(record, EPS_SHRINK, min),
    }
    return {**out, **{n: v for n, v in looked.items() if v is not None}, "steps": len(loss), "exit_code": exit_code}


def _last_lines(file: Path, lines: int = 8) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if file.is_file() else ""


def _late(record: Record, name: str, choose: Any) -> float | None:
    """The median over the second half of a run, of the whole or of the layer that is chosen; ``None`` without one."""
    last_step = int(record["loss"].steps[-1])
    layers = [whole] if len(whole := record[name]) else list(record.by_layer(name).values())
    medians = []
    for layer in layers:
        late = layer.values[layer.steps >= 0.5 * last_step]
        if len(late) and np.isfinite(late).all():
            medians.append(float(np.median(late)))
    return choose(medians) if medians else None


def with_remedy(plan: ScriptPlan, spec: str) -> ScriptPlan:
    """Return the plan under a remedy, or several joined by ``+``."""
    return replace(plan, remedies=tuple(parse_remedy(part).spec for part in spec.split("+")))
