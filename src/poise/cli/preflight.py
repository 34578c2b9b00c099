"""`poise preflight`: run a script over learning rates and sizes, and find which learning rate will still work."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from poise.preflight.script_sweep.script_sweep import ScriptPlan
    from poise.preflight.sweeps.sweep import SweepResult

_INTERRUPTED = 130
_EVEN = re.compile(r"(?P<low>[^:]+):(?P<high>[^:]+):(?P<count>\d+)log")


def preflight(
    script: Annotated[str, typer.Argument(help="The training script.")],
    args: Annotated[
        list[str] | None,
        typer.Argument(help="After `--`: its arguments, with {lr}, {seed} and the names of --set where values go."),
    ] = None,
    lr: Annotated[str, typer.Option(help="LOW:HIGH:Nlog, N rates even in the logarithm; or a list: 1e-3,1e-2.")] = "",
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=V1,V2,... of growing size; several change together.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 2,
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/preflight-NAME by default.")] = None,
    remedy: Annotated[
        list[str] | None, typer.Option(help="Sweep again under NAME[=VALUE], several joined by +; repeatable.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Size to predict for, in multiples of the largest.", min=1.0)] = 4.0,
    overhead: Annotated[float, typer.Option(help="Fraction of a run's time that watching may take.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Find the largest learning rate at which a script trains, at its size and at the next.

    For example: `poise preflight train.py --lr 1e-4:1:9log --set width=64,128,256 -- --lr {lr} --width {width}`

    Finished runs are kept when the same command is started again. Diverged runs are stopped early.
    """
    from rich.console import Console

    from poise.preflight.script_sweep.script_report import script_report
    from poise.preflight.script_sweep.script_sweep import ScriptPlan, with_remedy

    plan = ScriptPlan(script, tuple(args or ()), parse_sets(sets or ()), (), overhead)
    lrs = parse_lrs(lr)
    plans = {"": plan, **{"+".join(made.remedies): made for made in (with_remedy(plan, spec) for spec in remedy or ())}}
    folder = out or Path("runs") / f"preflight-{Path(script).stem}"
    results = {name: _swept(made, lrs, seeds, jobs, folder / (name or "untreated")) for name, made in plans.items()}
    measure = shlex.join(["poise", "preflight", "--remedy", "qk_norm", *sys.argv[2:]])
    made = script_report(plan, results, scale, measure)
    made.save(folder / "report.html")
    text = json.dumps(made.to_dict(), indent=1)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
    console = Console(stderr=as_json)
    console.print(made.summary, highlight=False, markup=False)
    console.print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _swept(plan: ScriptPlan, lrs: list[float], seeds: int, jobs: int, folder: Path) -> SweepResult:
    from poise.preflight.script_sweep.script_sweep import script_sweep
    from poise.preflight.sweeps.sweep_folder import POINTS, OtherSweepError

    try:
        return script_sweep(plan, lrs, seeds, jobs, folder)
    except OtherSweepError:
        raise ValueError(
            f"{folder} holds runs of another script, other arguments, or this script before it was changed; "
            "choose another --out, or remove that folder"
        ) from None
    except KeyboardInterrupt:
        file = folder / POINTS
        kept = file.read_bytes().count(b"\n") if file.exists() else 0
        total = len(lrs) * len(plan.sizes or (None,)) * seeds
        print(
            f"\npoise: interrupted; {kept} of {total} runs are kept in {folder}. The same command continues there.",
            file=sys.stderr,
        )
        sys.exit(_INTERRUPTED)


def parse_lrs(text: str) -> list[float]:
    """Return the learning rates that ``LOW:HIGH:Nlog`` or a list with commas means, rounded to three digits.

    Raises:
        ValueError: if it is neither.
    """
    import numpy as np

    form = "--lr must be LOW:HIGH:Nlog, such as 1e-4:1:9log, or a list, such as 1e-3,1e-2"
    even = _EVEN.fullmatch(text)
    try:
        if even is None:
            lrs = [float(part) for part in text.split(",")]
        else:
            low, high, count = float(even["low"]), float(even["high"]), int(even["count"])
            if not 0 < low < high or count < 2:
                raise ValueError
            lrs = [float(f"{value:.3g}") for value in np.geomspace(low, high, count)]
    except ValueError:
        raise ValueError(f"{form}; got {text!r}") from None
    if not all(0 < value < float("inf") for value in lrs) or len(set(lrs)) < len(lrs):
        raise ValueError(f"{form}, positive and distinct; got {text!r}")
    return lrs


def parse_sets(specs: list[str] | tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return name -> values of ``NAME=V1,V2,...``.

    Raises:
        ValueError: if one is not of that form, or a name comes twice or is reserved.
    """
    out: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        name, equals, values = spec.partition("=")
        parts = tuple(part.strip() for part in values.split(","))
        if not equals or not name.isidentifier() or not all(parts):
            raise ValueError(f"--set must be NAME=V1,V2,..., such as width=64,128,256; got {spec!r}")
        if name in out or name in ("lr", "seed"):
            raise ValueError(f"--set {name} is given twice, or has an option of its own")
        out[name] = parts
    return out
