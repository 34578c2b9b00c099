"""The trial of a remedy: the same script again, untreated and treated, over seeds, and what the difference proves."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from poise.doctor.events import find_events
from poise.doctor.remedies import parse_remedy
from poise.report import Finding
from poise.store import Record, RunFileError, read_run

if TYPE_CHECKING:
    from poise.evidence import PairedComparison, RateComparison, Verdict

SMALLEST_EFFECT = 0.01
"""A loss has to be lower by more than this share before it counts as better, or higher as worse."""

_MARKER = "arm.json"
_SECONDS_TO_END = 5.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a trial: what is applied, and with which seed.

    Args:
        remedies: specs of the remedies that act together; empty for the untreated run.
        seed: added to every seed that the script sets.
    """

    remedies: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """``"untreated"``, or the specs joined by ``+``."""
        return arm_name(self.remedies)


def arm_name(remedies: Sequence[str]) -> str:
    """Return how arms with these remedies are called."""
    return "+".join(remedies) or "untreated"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one run left behind.

    Args:
        arm: which run it was.
        folder: where its files are: ``run/run.db``, ``run/findings.json``, ``stdout.txt``, ``stderr.txt``.
        exit_code: of the script; negative if a signal ended it.
        error: last lines of its stderr if it failed, else empty.
        record: its numbers; ``None`` if it left none.
        findings: what was found in it.
    """

    arm: Arm
    folder: Path
    exit_code: int
    error: str
    record: Record | None
    findings: tuple[Finding, ...]

    @property
    def steps(self) -> int:
        """Number of steps with a loss."""
        loss = None if self.record is None else self.record["loss"]
        return int(loss.steps[-1]) + 1 if loss is not None and len(loss) else 0

    @property
    def dropped(self) -> str:
        """Why poise dropped a remedy during the run, which then went on untreated; empty if it did not."""
        failures = [] if self.record is None else self.record.events("remedy_failed")
        return str(failures[0].payload.get("error", "no reason given")) if failures else ""

    @property
    def failed(self) -> str:
        """How the script failed, in a sentence; empty if it did not."""
        if not self.exit_code:
            return ""
        last = self.error.strip().splitlines()[-1:] or ["nothing on stderr"]
        return f"{self.arm.name}, seed {self.arm.seed}, ended with exit code {self.exit_code}: {last[0]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the numbers stay in the folder."""
        run = {"name": self.arm.name, "seed": self.arm.seed, "folder": str(self.folder)}
        return {**run, "exit_code": self.exit_code, "steps": self.steps}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the trial says of one remedy (or of several that act together).

    Args:
        remedies: their specs.
        verdict: in the words of the evidence room; ``None`` if no pair of runs could be compared.
        steps: number of steps after which the losses were compared; the smallest over the pairs.
        losses: comparison of the final losses, seed by seed; ``None`` without a pair.
        divergences: comparison of how many runs diverged or broke off; ``None`` without a pair.
        reason: why there is no verdict; empty if there is one.
    """

    remedies: tuple[str, ...]
    verdict: Verdict | None
    steps: int
    losses: PairedComparison | None
    divergences: RateComparison | None
    reason: str = ""

    @property
    def name(self) -> str:
        """Specs of the remedies."""
        return arm_name(self.remedies)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if self.losses is None or self.divergences is None:
            return f"{self.name}: not compared, because {self.reason}."
        a, b, rates = self.losses.mean_control, self.losses.mean_treated, self.divergences
        return (
            f"{self.name}: {self.verdict}. Loss after {self.steps} steps {a:.4g} untreated, {b:.4g} treated "
            f"({self.losses.n} {'pair' if self.losses.n == 1 else 'pairs'}); diverged {rates.events_a} of {rates.n_a} "
            f"untreated, {rates.events_b} of {rates.n_b} treated."
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a trial runs.

    Args:
        script: path of the script, or name of the module.
        args: its arguments.
        module: whether ``script`` is the name of a module (``python -m``).
        remedies: one entry per treated arm: the specs that act together there.
        seeds: number of seeds, from 0.
        steps: compare after at most so many steps; ``None`` for as many as both runs have.
        sha256: hash of the script's text.
    """

    script: str
    args: tuple[str, ...]
    module: bool
    remedies: tuple[tuple[str, ...], ...]
    seeds: int
    steps: int | None
    sha256: str

    @property
    def arms(self) -> list[Arm]:
        """All runs, the untreated ones first."""
        return [Arm(remedies, seed) for remedies in ((), *self.remedies) for seed in range(self.seeds)]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial found.

    Args:
        plan: what was run.
        folder: where the runs are.
        arms: the runs, in the order of the plan.
        comparisons: one per remedy, in the order in which they were given.
        notices: what limits the trial, in sentences.
    """

    plan: Plan
    folder: Path
    arms: list[ArmResult]
    comparisons: list[Comparison]
    notices: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> list[Comparison]:
        """The comparisons, best first: the surest word, then the largest improvement; those without a verdict last."""
        return sorted(self.comparisons, key=_rank)

    @property
    def best(self) -> Comparison | None:
        """The remedy that helps most; ``None`` if none helps."""
        first = self.ranked[0]
        return first if first.verdict in ("proved", "helps, not proved") else None

    def runs(self, remedies: Sequence[str] = ()) -> list[ArmResult]:
        """Return the runs with these remedies, by seed; the untreated ones by default."""
        return [result for result in self.arms if result.arm.remedies == tuple(remedies)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types (infinite intervals become text)."""
        return {
            "script": self.plan.script,
            "args": list(self.plan.args),
            "seeds": self.plan.seeds,
            "folder": str(self.folder),
            "best": self.best.name if self.best else None,
            "comparisons": [_plain({**asdict(c), "name": c.name, "sentence": c.sentence}) for c in self.comparisons],
            "arms": [r.to_dict() for r in self.arms],
            "notices": list(self.notices),
        }


Runner = Callable[[Arm, Path], int]
Progress = Callable[[int, int, ArmResult], None]


def trial(
    script: str | Path,
    args: Sequence[str] = (),
    remedies: Sequence[str | Sequence[str]] = (),
    seeds: int = 3,
    n_jobs: int = 2,
    module: bool = False,
    out: str | Path = "runs/trial",
    steps: int | None = None,
    progress: Progress | None = None,
) -> TrialResult:
    """Run a script untreated and under each remedy, over seeds, and compare.

    Every run is ``poise run`` in a process of its own with one thread, in the current directory; what the script
    prints goes to files in the folder of the run. A script that writes files under fixed names writes the same files
    in every run.

    Outcome of a run is its loss at the end: the mean of the last tenth of the steps, at least 5, after as many steps
    as both runs of a pair have. Hence a remedy that only slows training down is charged for it. A run that ends above
    its first loss, with a loss that is not finite, or breaks off with an error while its partner goes on, has learned
    nothing: it counts as the first loss. How many runs diverged (see :mod:`poise.doctor.events`) or broke off is
    compared too. The verdict is the stronger word of the two comparisons, unless one of them says *hurts*.

    Interrupted, it ends the running scripts; called again with the same ``out`` it takes over the runs that were
    finished, as long as the script's own file, its arguments, the remedies and the seed are the same.

    Args:
        script: path of the script; with ``module``, name of the module.
        args: arguments of the script.
        remedies: one entry per treated arm: a spec such as ``"lr_scale=0.3"``, or several that act together.
        seeds: number of seeds; seed ``k`` adds ``k`` to every seed that the script sets.
        n_jobs: runs at a time; a surrounding ``joblib.parallel_config`` is obeyed.
        module: whether ``script`` is run as ``python -m`` would.
        out: folder for the runs.
        steps: compare after at most so many steps; by default after as many as there are.
        progress: called with (runs finished, runs in all, the run) after each.

    Raises:
        FileNotFoundError: if there is no such script.
        ModuleNotFoundError: if there is no such module.
        FileExistsError: if a folder that is needed holds something else.
        ValueError: if a remedy is unknown or given twice, or a number is out of range.
    """
    plan = make_plan(script, args, remedies, seeds, module, steps)
    with _Children() as children:
        return carry_out(plan, Path(out), partial(_run_script, children, plan), n_jobs, progress)


def make_plan(
    script: str | Path,
    args: Sequence[str],
    remedies: Sequence[str | Sequence[str]],
    seeds: int,
    module: bool = False,
    steps: int | None = None,
) -> Plan:
    """Check what a trial is asked for; arguments and errors as for :func:`trial`."""
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if isinstance(remedies, str) or not remedies:
        raise ValueError(f"remedies must be a list of at least one remedy, got {remedies!r}")
    groups = tuple(
        tuple(parse_remedy(spec).spec for spec in ([given] if isinstance(given, str) else given)) for given in remedies
    )
    twice = next((g for i, g in enumerate(groups) if g in groups[:i] or not g), None)
    if twice is not None:
        raise ValueError(f"remedies must be different and not empty, got {arm_name(twice)} more than once or nothing")
    path = _module_file(str(script)) if module else Path(script)
    path = path / "__main__.py" if path.is_dir() else path  # Python runs folders in this way
    if not path.is_file():
        raise FileNotFoundError(f"script must be a file, or a folder with a __main__.py, got {str(script)!r}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Plan(str(script), tuple(map(str, args)), module, groups, seeds, steps, sha256)


def carry_out(plan: Plan, out: Path, runner: Runner, n_jobs: int, progress: Progress | None = None) -> TrialResult:
    """Run all arms of a plan and compare them.

    Args:
        plan: what is run.
        out: folder for the runs.
        runner: runs one arm in the folder it is given and returns the exit code; it leaves ``run/run.db`` there,
            ``run/findings.json`` and ``stderr.txt`` if it has them.
        n_jobs: runs at a time.
        progress: called with (runs finished, runs in all, the run) after each.

    Raises:
        FileExistsError: if a folder that is needed holds something else.
    """
    arms = plan.arms
    for arm in arms:
        _require_ours(_folder(out, arm))
    finished: dict[Arm, ArmResult] = {}
    # Threads suffice: each of them only waits for a process.
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator_unordered")
    for arm, exit_code in parallel(delayed(_run_or_reuse)(plan, arm, _folder(out, arm), runner) for arm in arms):
        finished[arm] = read_arm(arm, _folder(out, arm), exit_code)
        if progress is not None:
            progress(len(finished), len(arms), finished[arm])
    return compare(plan, out, [finished[arm] for arm in arms])


def compare(plan: Plan, out: Path, arms: list[ArmResult]) -> TrialResult:
    """Compare the runs of a plan."""
    untreated = [result for result in arms if not result.arm.remedies]
    same = _all_equal(untreated)
    kept = [result for result in arms if not (same and result.arm.seed)]
    control = [result for result in kept if not result.arm.remedies]
    comparisons = [
        _compare_remedy(remedies, control, [r for r in kept if r.arm.remedies == remedies], plan.steps)
        for remedies in plan.remedies
    ]
    return TrialResult(plan, out, arms, comparisons, _notices(arms, same))


def read_arm(arm: Arm, folder: Path, exit_code: int) -> ArmResult:
    """Read what a run left in its folder."""
    error = _tail(folder / "stderr.txt") if exit_code else ""
    try:
        record: Record | None = read_run(folder / "run" / "run.db")
    except (RunFileError, FileNotFoundError) as fault:
        record, error = None, error or str(fault)
    return ArmResult(arm, folder, exit_code, error, record, _read_findings(folder / "run" / "findings.json"))


# ---- one run -------------------------------------------------------------------------------------------------------


def _folder(out: Path, arm: Arm) -> Path:
    return out / arm.name / f"seed-{arm.seed}"


def _run_or_reuse(plan: Plan, arm: Arm, folder: Path, runner: Runner) -> tuple[Arm, int]:
    key = {
        "script": plan.script,
        "sha256": plan.sha256,
        "args": list(plan.args),
        "module": plan.module,
        "remedies": list(arm.remedies),
        "seed": arm.seed,
    }
    marker = _read_marker(folder)
    # A run that a signal ended (out of memory, say) may go better the next time.
    if marker is not None and marker["key"] == key and marker["exit_code"] is not None and marker["exit_code"] >= 0:
        return arm, int(marker["exit_code"])
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_marker(folder, key, None)
    exit_code = runner(arm, folder)
    _write_marker(folder, key, exit_code)
    return arm, exit_code


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return marker if isinstance(marker, dict) and {"key", "exit_code"} <= marker.keys() else None


def _write_marker(folder: Path, key: dict[str, Any], exit_code: int | None) -> None:
    draft = folder / f"{_MARKER}.tmp"
    draft.write_text(json.dumps({"key": key, "exit_code": exit_code}, indent=1), encoding="utf-8")
    draft.replace(folder / _MARKER)


def _require_ours(folder: Path) -> None:
    foreign = folder.is_dir() and _read_marker(folder) is None and any(folder.iterdir())
    if foreign or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"out must be a folder for this trial alone, but {str(folder)!r} holds something else")


def _run_script(children: _Children, plan: Plan, arm: Arm, folder: Path) -> int:
    options = ["--quiet", "--json", "--seed", str(arm.seed), "--out", str(folder / "run")]
    for spec in arm.remedies:
        options += ["--remedy", spec]
    target = ["-m", plan.script] if plan.module else [plan.script]
    return children.run([sys.executable, "-m", "poise", "run", *options, *target, *plan.args], folder)


class _Children:
    """The processes of a trial; leaving the context with an error or an interrupt ends them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __reduce__(self) -> tuple[type[_Children], tuple[()]]:
        return _Children, ()  # a worker in another process has children of its own

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stop()

    def run(self, command: list[str], folder: Path) -> int:
        """Run a command to its end and return its exit code; its output goes to files in ``folder``."""
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (folder / "stdout.txt").open("wb") as stdout, (folder / "stderr.txt").open("wb") as stderr:
            with self._lock:
                if self._stopped:
                    raise InterruptedError("the trial was stopped")
                # In a session of its own a child does not get the terminal's Ctrl-C, and can be ended with its workers.
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env={**os.environ, **threads},
                    start_new_session=True,
                )
                self._running.add(child)
            exit_code = child.wait()
        with self._lock:
            self._running.discard(child)
            if self._stopped:
                raise InterruptedError("the trial was stopped")
        return exit_code

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _end(child, signal.SIGTERM)
        for child in running:
            try:
                child.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                _end(child, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if child.poll() is not None:
        return
    try:
        os.killpg(child.pid, how)
    except ProcessLookupError:
        return  # it ended by itself meanwhile


def _module_file(name: str) -> Path:
    # Only the top package is asked for: to find what is inside it, importlib would run its code, the script's business.
    top, *inner = name.split(".")
    spec = PathFinder.find_spec(top, [os.getcwd()]) or importlib.util.find_spec(top)
    if spec is not None and not inner and spec.submodule_search_locations is None and spec.origin is not None:
        return Path(spec.origin)
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        base = Path(place, *inner)
        for file in (base / "__main__.py", base.with_name(f"{base.name}.py")):
            if file.is_file():
                return file
    raise ModuleNotFoundError(f"script must be the name of a module or of a package with a __main__, got {name!r}")


def _tail(path: Path, lines: int = 12) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-lines:])


def _read_findings(path: Path) -> tuple[Finding, ...]:
    if not path.is_file():
        return ()
    return tuple(Finding.from_dict(item) for item in json.loads(path.read_text(encoding="utf-8")))


# ---- comparing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    steps: int
    losses: tuple[float, float]
    diverged: tuple[bool, bool]


def _compare_remedy(
    remedies: tuple[str, ...], untreated: list[ArmResult], treated: list[ArmResult], steps: int | None
) -> Comparison:
    from poise.evidence import compare_event_rates, compare_paired

    dropped = next((result.dropped for result in treated if result.dropped), "")
    if dropped:
        return Comparison(remedies, None, 0, None, None, f"the remedy could not be applied ({dropped})")
    pairs = [p for a, b in zip(untreated, treated, strict=True) if (p := _pair(a, b, steps)) is not None]
    if not pairs:
        return Comparison(remedies, None, 0, None, None, _why_no_pair(untreated, treated))
    losses = compare_paired(
        [p.losses[0] for p in pairs], [p.losses[1] for p in pairs], lower_is_better=True, min_effect=SMALLEST_EFFECT
    )
    n = len(pairs)
    rates = compare_event_rates(sum(p.diverged[0] for p in pairs), n, sum(p.diverged[1] for p in pairs), n)
    return Comparison(
        remedies, stronger(losses.verdict, rates.verdict), min(p.steps for p in pairs), losses, rates, reason=""
    )


def _strength(verdict: Verdict) -> int:
    # Imported here: the comparisons need scipy.stats, which takes a second that `poise run` would spend for nothing.
    from poise.evidence import VERDICTS

    return VERDICTS.index(verdict)


def stronger(loss: Verdict, divergences: Verdict) -> Verdict:
    """Return the stronger of two words, unless one of them is *hurts*: harm in one respect is harm."""
    both = (loss, divergences)
    return "hurts" if "hurts" in both else min(both, key=_strength)


def _pair(a: ArmResult, b: ArmResult, steps: int | None) -> _Pair | None:
    equal = _equal_steps(a, b)
    equal = equal if steps is None else min(equal, steps)
    first = [x for x in (_first_finite(a), _first_finite(b)) if x is not None]
    if not equal or not first or not (a.steps and b.steps):
        return None
    return _Pair(
        equal,
        (final_loss(a, equal, max(first)), final_loss(b, equal, max(first))),
        (_diverged(a, equal), _diverged(b, equal)),
    )


def _equal_steps(a: ArmResult, b: ArmResult) -> int:
    # A run that failed early says nothing of how long the comparison should be, unless both did.
    whole = [result.steps for result in (a, b) if not result.exit_code]
    return min(whole or [a.steps, b.steps])


def _broke_off(result: ArmResult, steps: int) -> bool:
    return result.exit_code != 0 and result.steps < steps


def final_loss(result: ArmResult, steps: int, start: float) -> float:
    """Return the mean loss over the last tenth of ``steps`` (at least 5 steps), at most ``start``.

    ``start`` is what a run counts as that broke off before, is not finite there, or is worse than where it began.
    """
    assert result.record is not None
    loss = result.record["loss"].until(steps - 1)
    last = loss.values[loss.steps >= steps - max(5, math.ceil(0.1 * steps))]
    if _broke_off(result, steps) or not len(last) or not np.isfinite(last).all():
        return start
    return min(float(last.mean()), start)


def _diverged(result: ArmResult, steps: int) -> bool:
    assert result.record is not None
    events = find_events(result.record.until(steps - 1))
    return _broke_off(result, steps) or any(event.kind == "divergence" for event in events)


def _first_finite(result: ArmResult) -> float | None:
    values = result.record["loss"].values if result.record is not None else np.empty(0)
    finite = values[np.isfinite(values)]
    return float(finite[0]) if len(finite) else None


def _why_no_pair(untreated: list[ArmResult], treated: list[ArmResult]) -> str:
    for name, results in (("untreated", untreated), ("treated", treated)):
        if not any(result.steps for result in results):
            failed = next((result.failed for result in results if result.failed), "")
            return f"no {name} run recorded a loss" + (f" ({failed})" if failed else "")
    return "no seed has a finite loss both untreated and treated"


def _all_equal(untreated: list[ArmResult]) -> bool:
    losses = [result.record["loss"].values for result in untreated if result.record is not None and result.steps]
    return len(losses) == len(untreated) > 1 and all(
        np.array_equal(losses[0], other, equal_nan=True) for other in losses[1:]
    )


def _notices(arms: list[ArmResult], same: bool) -> list[str]:
    notices = [result.failed for result in arms if result.failed]
    if same:
        notices.insert(
            0,
            "The seeds change nothing: the untreated losses are identical, step by step. Only the first seed counts "
            "(n = 1), and a single pair proves nothing. Does the script shuffle, initialise or drop out at random?",
        )
    for result in arms:
        said = [] if result.record is None else result.record.meta.get("notes", [])
        notices += [f"{result.arm.name}, seed {result.arm.seed}: {note}." for note in said]
    if any(result.record is not None and len(result.record.timelines) > 1 for result in arms):
        notices.append("The script has several optimizers; the losses compared are those of the first.")
    return notices


def _rank(comparison: Comparison) -> tuple[int, float]:
    if comparison.verdict is None or comparison.losses is None:
        return sys.maxsize, 0.0
    return _strength(comparison.verdict), -comparison.losses.improvement


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
