"""The trial of a remedy: the same script, untreated and treated, over seeds, and what the difference proves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from poise.doctor.trial.compare import TrialResult, compare
from poise.doctor.trial.plan import Plan, make_plan
from poise.doctor.trial.runs import ChildProcesses, Progress, Runner, run_arms, run_script


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
    keep_args: bool = False,
) -> TrialResult:
    """Run a script untreated and under each remedy, over seeds, and compare.

    Every run is ``poise run`` in a process of its own with one thread, in the current directory; what the script
    prints goes to files in the folder of the run. A script that writes files under fixed names writes the same files
    in every run.

    Outcome of a run is its loss at the end: the mean of the last tenth of the steps, at least 5, after as many steps as
    both runs of a pair have. Hence a remedy that only slows training down has a higher loss. A run that ends above its
    first loss, with a loss that is not finite, or stops with an error while its partner continues, counts as a run that
    has learned nothing: it counts as the first loss. How many runs diverged (see :mod:`poise.doctor.events`) or stopped
    early is compared too. The verdict is the stronger one of the two comparisons, unless one of them says *hurts*.

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
        keep_args: write arguments that look like secrets into reports and run files, too.

    Raises:
        FileNotFoundError: if there is no such script.
        ModuleNotFoundError: if there is no such module.
        FileExistsError: if a folder that is needed holds something else.
        ValueError: if a remedy is unknown or given twice, or a number is out of range.
    """
    plan = make_plan(script, args, remedies, seeds, module, steps, keep_args)
    with ChildProcesses() as children:
        return carry_out(plan, Path(out), partial(run_script, children, plan), n_jobs, progress)


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
    out = Path(out).absolute()  # whatever folder this process is in later
    return compare(plan, out, run_arms(plan, out, runner, n_jobs, progress))
