"""What `poise run` prints when the script has ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from poise.cli.launch_hint import children_hint

if TYPE_CHECKING:
    from poise.doctor import Session
    from poise.report import Finding

_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "blue"}
_OTHER_FRAMEWORKS = {"jax": "JAX", "tensorflow": "TensorFlow", "mxnet": "MXNet"}


def print_summary(session: Session, console: Console) -> None:
    """Print the findings of a run, each with its evidence in a line, and where the report is."""
    console.print()
    if not session.tap.timelines:
        console.print(_plain(no_step_message(session), "yellow"))
        return
    if session.record is None:  # it could not be read, which the session has reported
        return
    serious = [f for f in session.findings if f.severity != "info"]
    notes = len(session.findings) - len(serious)
    console.print(_headline(session, serious))
    for finding in serious[:4]:
        _print_finding(finding, console)
    if notes:
        console.print(_plain(f"and {notes} more at severity info in the report", "dim"))
    if session.has_report:
        console.print(_plain(f"report  {session.shown(session.out / 'report.html')}", ""))


def no_step_message(session: Session) -> str:
    """Return that no optimizer step was seen, and what was seen instead."""
    counts = session.tap.counts
    others = [name for module, name in _OTHER_FRAMEWORKS.items() if module in sys.modules]
    seen = [_count(counts["backward"], "backward pass"), _count(counts["forward"], "forward pass")]
    hint = f" The script has imported {' and '.join(others)}, which poise cannot watch." if others else ""
    children = children_hint(session.child_seconds)
    if children:
        hint += " " + children
    elif counts["backward"]:
        hint += (
            " Gradients were computed, but no torch.optim.Optimizer took a step, and its step() is where poise observes"
            " a training (so does poise.watch). Parameters that are updated by hand (`p -= lr * p.grad`), by an"
            " optimizer of another class, or in a compiled function are not seen: put the update into the step() of a"
            " subclass of torch.optim.Optimizer."
        )
    return f"poise: no optimizer step seen; seen were {', '.join(seen)}.{hint}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es'}"


def _headline(session: Session, serious: list[Finding]) -> Text:
    steps = session.tap.counts["step"]
    found = f"{len(serious)} finding{'s' if len(serious) != 1 else ''}" if serious else "nothing wrong found"
    style = _STYLES[serious[0].severity] if serious else "bold green"
    cost = f"watching added {session.cost.sentence()}"
    return Text.assemble(("poise  ", "bold"), (found, style), (f"  in {steps} steps; {cost}", "dim"))


def _print_finding(finding: Finding, console: Console) -> None:
    console.print()
    name = finding.cause.replace("_", " ")
    severity = (finding.severity, _STYLES[finding.severity])
    confidence = (f"  confidence {100 * finding.probability:.0f} %", "dim")
    console.print(Text.assemble(severity, ("  " + name, "bold"), confidence))
    console.print(Text("  " + finding.summary, overflow="fold"))
    if finding.where:
        console.print(_plain(f"  where     {', '.join(finding.where[:4])}", "dim"))
    if finding.onset_step is not None:
        event = "" if finding.event_step is None else f", event at step {finding.event_step}"
        console.print(_plain(f"  onset     step {finding.onset_step}{event}", "dim"))
    if finding.remedies:
        console.print(_plain(f"  try       --remedy {' or --remedy '.join(finding.remedies[:3])}", "dim"))
    console.print(_plain(f"  more      poise explain {finding.cause.replace('_', '-')}", "dim"))


def _plain(text: str, style: str) -> Text:
    return Text(text, style=style, overflow="fold")
