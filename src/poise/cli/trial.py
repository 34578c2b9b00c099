"""`poise trial`: run a script again under remedies, and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from poise.doctor import TrialResult
    from poise.doctor.trial import ArmResult


def trial(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="The script, followed by its own arguments.", metavar="SCRIPT [ARGS]")],
    remedy: Annotated[list[str], typer.Option(help="NAME[=VALUE]; several joined by + act together; repeatable.")],
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
    module: Annotated[bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for `python -m`.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs; runs/trial-NAME by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Compare after at most this many steps.")] = None,
    findings_from: Annotated[Path | None, typer.Option(help="Folder of a run; the report shows its findings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead.")] = False,
    keep_args: Annotated[bool, typer.Option("--keep-args", help="Record arguments that look like secrets.")] = False,
) -> None:
    """Run a script untreated and under each remedy, over seeds, and decide what the difference proves.

    Finished runs are kept when the same trial is started again.
    """
    from rich.console import Console

    from poise.doctor import Script, trial_report
    from poise.doctor import trial as run_trial
    from poise.tools.progress_bar import progress_bar

    program = Script(script, context.args, module)
    folder = out or Path("runs") / f"trial-{program.name}"
    console = Console(stderr=as_json)
    groups = [spec.split("+") for spec in remedy]
    with progress_bar(console=console) as bar:
        task = bar.add_task(f"{seeds} seeds of {program.name}, untreated and treated", total=None)

        def update(done: int, total: int, _: ArmResult) -> None:
            bar.update(task, completed=done, total=total)

        result = run_trial(script, context.args, groups, seeds, jobs, module, folder, steps, update, keep_args)
    made = trial_report(result, _findings(findings_from))
    made.save(folder / "report.html")
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    _print_result(result, console)
    console.print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _findings(folder: Path | None) -> list | None:
    from poise.report import Finding

    if folder is None:
        return None
    return [Finding.from_dict(f) for f in json.loads((folder / "findings.json").read_text(encoding="utf-8"))]


def _print_result(result: TrialResult, console: Console) -> None:
    styles = {"proved": "bold green", "helps, not proved": "green", "no effect": "yellow", "hurts": "bold red"}
    for comparison in result.comparisons:
        style = styles.get(comparison.verdict or "", "yellow")
        console.print(f"[bold]{comparison.name}[/]  [{style}]{comparison.verdict or 'not comparable'}[/]")
        console.print("  " + comparison.sentence, highlight=False, markup=False)
    for notice in result.notices:
        console.print("! " + notice, style="yellow", highlight=False, markup=False)
    if result.best is not None:
        from poise.doctor import parse_remedy

        console.print(f"\nTo make {result.best.name} permanent:", highlight=False)
        for spec in result.best.remedies:
            console.print(parse_remedy(spec).code(), style="cyan", highlight=False, markup=False)
