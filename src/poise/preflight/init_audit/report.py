"""The report of an audit at initialisation: text, tables and figures."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np
import torch

from poise.doctor.remedies.documented import DOCUMENTED
from poise.preflight.curvature_limit.usable_lr import LARGE, WARMED
from poise.preflight.init_audit.facts import InitFacts
from poise.preflight.init_audit.remedies import REMEDIES
from poise.preflight.init_audit.rules import RULES
from poise.preflight.signal_propagation.jacobian_gain import PROBES
from poise.report import Code, Figure, Finding, Report, Table, Text, line_chart
from poise.rules import findings_of
from poise.tools.number import number

_VERDICTS = {"error": "will fail as it is", "warning": "at risk"}
_FINE = "nothing found that would break"


def init_report(facts: InitFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    severities = [finding.severity for finding in findings]
    verdict = next((words for severity, words in _VERDICTS.items() if severity in severities), _FINE)
    report = Report(
        f"Before the first step: {facts.model}",
        _summary(facts, findings),
        findings,
        list(_remedy_blocks(facts, findings)),
        meta={
            "model": facts.model,
            "parameters": facts.parameters,
            "dtype": facts.dtype,
            "batch": facts.batch,
            "loss": facts.passed.loss,
            "seed": facts.seed,
            "torch": torch.__version__,
            "poise": version("poise"),
        },
        verdict=verdict,
    )
    for figure in _figures(facts):
        report.add(figure)
    for table in _tables(facts):
        report.add(table)
    return report.add(Text(_measured(facts), "What was measured"))


def _summary(facts: InitFacts, findings: list[Finding]) -> str:
    worst = [finding for finding in findings if finding.severity != "info"]
    words = [worst[0].summary] if worst else ["Signals, gradients and logits keep their sizes over depth."]
    lr = facts.lr
    if lr is not None and lr.cold is not None:
        limit = f"at most {number(lr.cold)}{_of_examples(facts)}" if not lr.exact else number(lr.cold)
        words.append(f"The largest stable learning rate of {lr.name} at the first step is {limit}")
        words[-1] += f", after a warm-up {number(lr.warm)}." if lr.warm is not None else "."
    elif lr is not None:
        words.append(f"The sharpness{_of_examples(facts)} is at least {number(lr.sharpness)}.")
    if len(worst) > 1:
        words.append(f"{len(worst) - 1} more finding{'s' if len(worst) > 2 else ''} below.")
    return " ".join(words)


def _of_examples(facts: InitFacts) -> str:
    """Return on which examples a bound was measured, if not on all."""
    if facts.lr is None or facts.lr.examples == facts.batch:
        return ""
    return f" on {facts.lr.examples} of {facts.batch} examples"


# --- remedies ----------------------------------------------------------------------------------------------------


def _remedy_blocks(facts: InitFacts, findings: list[Finding]) -> list[Code]:
    """Return the code of every remedy that a finding names, each once."""
    blocks = []
    for name in dict.fromkeys(name for finding in findings for name in finding.remedies):
        remedy = REMEDIES.get(name) or DOCUMENTED[name]
        code = remedy.code
        if name == "scale_embedding" and not facts.tied:
            code = code.replace("  # a tied head still uses the unscaled weights", "")
        blocks.append(Code(remedy.title.rstrip("."), code, remedy.language))
    return blocks


# --- figures -----------------------------------------------------------------------------------------------------


def _figures(facts: InitFacts) -> list[Figure]:
    figures = []
    units, word = facts.passed.units, facts.unit
    depth = np.arange(1, len(units) + 1)
    if len(units) >= 2:
        lines = {"measured": (depth, _root([unit.q for unit in units]))}
        if facts.growth.expected is not None:
            lines["expected"] = (depth, _root(facts.growth.expected.q.tolist()))
        title = f"{word} (in order of the forward pass)"
        figures.append(_chart("Signal over depth", lines, title, "root mean square"))
        grads = [math.nan if unit.grad_norm is None else unit.grad_norm for unit in units]
        if np.isfinite(grads).sum() >= 2:
            lines = {"gradient": (depth, np.asarray(grads))}
            figures.append(_chart("Gradient over depth", lines, title, "norm of the gradient"))
        gains = [math.nan if unit.gain is None else unit.gain for unit in units]
        if np.isfinite(gains).sum() >= 2:
            lines = {"gain": (depth, np.asarray(gains))}
            figures.append(_chart("Jacobian gain over depth", lines, title, "gain of a random gradient"))
    if len(facts.passed.residuals) >= 2:
        at = np.arange(1, len(facts.passed.residuals) + 1)
        lines = {
            "shortcut": (at, np.array([r.shortcut for r in facts.passed.residuals])),
            "branch": (at, np.array([r.branch for r in facts.passed.residuals])),
        }
        figures.append(_chart("Shortcut and branch over depth", lines, "residual sum", "root mean square"))
    if len(facts.passed.norms) >= 2:
        at = np.arange(1, len(facts.passed.norms) + 1)
        lines = {"amplification": (at, np.array([norm.amplification for norm in facts.passed.norms]))}
        x = "normalisation (in order of the forward pass)"
        figures.append(_chart("Gradient amplification by normalisations", lines, x, "1 / standard deviation"))
    if facts.lr is not None and facts.lr.warmed is not None:
        steps = np.arange(len(facts.lr.warmed))
        lines = {"limit": (steps, np.asarray(facts.lr.warmed))}
        title = f"Largest stable learning rate of {facts.lr.name} during its warm-up"
        figures.append(_chart(title, lines, "step", "learning rate"))
    return figures


def _chart(title: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], x_title: str, y_title: str) -> Figure:
    """Draw curves, over a logarithmic axis where they span more than a factor of ten."""
    values = np.concatenate([y for _, y in lines.values()])
    positive = values[np.isfinite(values) & (values > 0)]
    wide = len(positive) > 0 and positive.max() > 10 * positive.min()
    return line_chart(title, lines, x_title, y_title, log_y=bool(wide))


def _root(squares: list[float]) -> np.ndarray:
    return np.sqrt(np.asarray(squares, dtype=float))


# --- tables ------------------------------------------------------------------------------------------------------


def _tables(facts: InitFacts) -> list[Table]:
    tables = [_growth_table(facts), _lr_table(facts), _format_table(facts), _stream_table(facts), _norm_table(facts)]
    tables += [_bound_table(facts)]
    tables += [_attention_table(facts), _dead_table(facts), _recurrent_table(facts), _depth_table(facts)]
    return [table for table in tables if table is not None and table.rows]


def _growth_table(facts: InitFacts) -> Table | None:
    growth, word = facts.growth, facts.unit
    if growth.forward_slope is None:
        return None
    rows: list[list[object]] = [
        ["Signal, log-slope of the mean square", growth.forward_slope, _factor(growth.forward_slope)]
    ]
    if growth.expected is not None:
        rows.append([f"Signal, by the {growth.expected.theory}", growth.expected.slope, _factor(growth.expected.slope)])
    if growth.backward_slope is not None:
        rows.append(
            [
                "Gradient, log-slope of the squared norm, going back",
                growth.backward_slope,
                _factor(growth.backward_slope),
            ]
        )
    if growth.gradient_ratio is not None:
        rows.append([f"Norm of the gradient, first {word} over last", growth.gradient_ratio, None])
    if growth.gain is not None:
        rows.append([f"Gain of the Jacobian of a {word}, geometric mean", growth.gain, growth.gain])
    return Table(
        "Growth over depth",
        ["Quantity", "Value", f"Factor per {word}"],
        rows,
        "A factor of 1 is neither growth nor decay.",
    )


def _factor(slope: float) -> float:
    return math.exp(slope)


def _lr_table(facts: InitFacts) -> Table | None:
    lr = facts.lr
    if lr is None:
        return None
    kind = "largest eigenvalue of the Hessian" if lr.exact else "lower bound of the Hessian's largest eigenvalue"
    rows: list[list[object]] = [["Sharpness", lr.sharpness, f"{kind}, an eigenvalue within {number(lr.error_bound)}"]]
    most = "" if lr.exact else "at most, since the sharpness is a lower bound: "
    rows.append(["SGD without momentum, no warm-up", lr.sgd, f"{most}2 / sharpness"])
    if lr.cold is not None and lr.name != "SGD":
        rows.append([f"{lr.name}, no warm-up", lr.cold, "with its state after the first gradient"])
    elif lr.cold is not None and lr.cold != lr.sgd:
        rows.append([f"{lr.name} as it is set, no warm-up", lr.cold, f"{most}threshold over sharpness"])
    if lr.warm is not None:
        steps = len(lr.warmed or ()) - 1
        rows.append([f"{lr.name}, after a warm-up of {steps} steps", lr.warm, "simulated on copies, on this batch"])
    if facts.set_lr is not None:
        rows.append([f"{lr.name} is set to", facts.set_lr, "first param group"])
    caption = (
        "Limits of stability at this point: SGD often survives a few times its own by a jump to a flatter region, a "
        "fresh Adam a hundred times. The warm-up repeats one batch, which may differ from other batches."
    )
    return Table("Largest usable learning rates", ["For", "Value", "How"], rows, caption)


def _format_table(facts: InitFacts) -> Table:
    word, depth = facts.unit, len(facts.passed.units)
    rows: list[list[object]] = []
    for end in facts.failing:
        where = end.name if end.name is not None else f"beyond this model's {depth}, if the growth continues"
        rows.append(
            [
                end.format,
                "signal overflows" if end.what == "overflows" else "gradient vanishes",
                end.depth,
                where,
                end.limit,
            ]
        )
    return Table("Range of number formats", ["Format", "What", f"Depth ({word})", "Where", "Limit"], rows)


def _stream_table(facts: InitFacts) -> Table:
    rows: list[list[object]] = [
        [f"{name} (embedding)", std, None, None, None] for name, std in facts.passed.embeddings.items()
    ]
    rows += [
        [r.name, r.shortcut, r.branch, r.branch / r.shortcut if r.shortcut else math.inf, r.gain]
        for r in facts.passed.residuals
    ]
    caption = "Root mean squares at every sum of a shortcut and a branch; of embeddings the standard deviation."
    columns = ["Where", "Shortcut", "Branch", "Branch / shortcut", "Factor on the shortcut"]
    return Table("Residual stream", columns, rows, caption)


def _bound_table(facts: InitFacts) -> Table:
    rows = [[bound.name, bound.branch, bound.amplification, bound.bound] for bound in facts.bounds]
    caption = (
        "Of a normalisation, two linear layers and a residual sum: bound = factor on the shortcut + branch / standard "
        "deviation of the stream, with random-matrix estimates of the weights' norms. Attention and gated branches "
        "have no such formula here; their measured gains are in the table by depth."
    )
    columns = ["Where", "Branch on a stream of standard deviation 1", "1 / standard deviation", "Bound"]
    return Table("Bounds on the Jacobians of sub-layers", columns, rows, caption)


def _norm_table(facts: InitFacts) -> Table:
    rows = [
        [norm.name, norm.std, norm.amplification, max(norm.by_position, default=None)] for norm in facts.passed.norms
    ]
    caption = (
        "Means over tokens, and the median over examples at the position where it is largest. The derivative of a "
        "normalisation is one over the standard deviation of its input."
    )
    columns = ["Where", "Standard deviation of input", "Gradient amplification", "At the worst position"]
    return Table("Normalisations", columns, rows, caption)


def _attention_table(facts: InitFacts) -> Table:
    rows = [[a.name, a.largest, a.entropy] for a in facts.passed.attention]
    caption = "Of the first sample. Entropy of the lowest head: 1 is uniform attention, 0 a single token."
    return Table("Attention", ["Where", "Largest logit", "Entropy"], rows, caption)


def _dead_table(facts: InitFacts) -> Table:
    rows = [[r.name, 100 * r.dead, r.rows] for r in facts.passed.rectified]
    caption = "Per cent of a ReLU's units that are zero for all values seen. Few values are weak evidence."
    return Table("Dead units", ["Where", "Dead", "Values per unit"], rows, caption)


def _recurrent_table(facts: InitFacts) -> Table:
    rows = [[g.name, g.steps, g.rho, g.log_gain / math.log(10), g.std] for g in facts.gains]
    columns = ["Where", "Steps", "Gain per step", "log10 of the gain", "Standard deviation of hidden states"]
    return Table(
        "Recurrent layers", columns, rows, "Gain: spectral norm of the last hidden state's derivative in the first."
    )


def _depth_table(facts: InitFacts) -> Table:
    rows: list[list[object]] = [
        [i, u.name, math.sqrt(u.q), u.absmax, u.grad_norm, u.gain, u.cosine]
        for i, u in enumerate(facts.passed.units, 1)
    ]
    columns = ["Depth", "Where", "Root mean square", "Largest", "Norm of gradient", "Jacobian gain", "Cosine of inputs"]
    span = "its input to its output" if facts.passed.are_blocks else "the output of the layer before to its own"
    caption = (
        f"Jacobian gain: of a {facts.unit}, from {span}, the root mean square of the Jacobian's singular values "
        f"(estimated by {PROBES} random vectors; with unequal sizes the Frobenius norm over the root of the number of "
        "outputs). A gradient of random direction grows by this factor in the backward pass. Cosine: mean over pairs "
        "of inputs (of positions, in a sequence) of the cosine of their vectors."
    )
    return Table("By depth", columns, rows, caption)


# --- text --------------------------------------------------------------------------------------------------------


def _measured(facts: InitFacts) -> str:
    passed, word = facts.passed, facts.unit
    lines = [
        f"**One batch** of {facts.batch} examples, forward and backward, {facts.parameters:,} trainable parameters "
        f"in {facts.dtype}. Depth is counted in {len(passed.units)} {word}s. Dropout was off; batch norms in "
        "training mode used the statistics of the batch.",
        _curvature_words(facts),
    ]
    if not passed.residuals:
        lines.append("**No residual stream.** No sum of a shortcut and a branch computed from it was found.")
    if facts.growth.expected is None:
        lines.append(
            "**No theory.** The mean field holds for ReLU networks of linear layers, plain or with one ReLU, one layer "
            "and one sum a block; this is another kind of network."
        )
    lines.append("**The first step only.** Use `poise run` and sweeps to see what grows later in training.")
    return "\n".join(f"- {line}" for line in lines)


def _curvature_words(facts: InitFacts) -> str:
    if facts.lr is None:
        return f"**Curvature is not known here.** {facts.no_lr}"
    lr = facts.lr
    if not lr.exact:
        why = f"beyond {LARGE:,} parameters " if facts.parameters > LARGE else ""
        adaptive = "" if lr.cold is not None else f" The curvature preconditioned by {lr.name} was not measured."
        return (
            f"**Curvature, bounded.** To bound time and memory {why}the sharpness comes from {lr.products} products on "
            f"{lr.examples} of {facts.batch} examples: on these the true one is at least that, and usable learning "
            f"rates are at most those given. The mean over more examples has another, often lower one. No warm-up was "
            f"simulated.{adaptive}"
        )
    tried = "" if lr.warmed is not None else f" A warm-up is simulated up to {WARMED:,} parameters."
    return f"**Curvature** of the whole batch, by {lr.products} Hessian products.{tried}"
