"""The report of an audit."""

from __future__ import annotations

from importlib.metadata import version

import torch

from poise.dynamics.sgd_noise.batch_noise import batch_noise_section
from poise.dynamics.sgd_noise.sgd_stability import SGDStability
from poise.dynamics.training_audit.facts import TrainingFacts
from poise.dynamics.training_audit.limits import limits_of_the_analysis
from poise.dynamics.training_audit.rules import RULES, unstable_with_batch_noise
from poise.dynamics.training_audit.sharpness import AuditedSharpness
from poise.report import Figure, Finding, Report, Table, Text
from poise.rules import findings_of
from poise.tools.number import number

_MOST_PARAMETERS = 8
_VERDICTS = {"below": "below the edge", "at": "at the edge", "above": "above the edge"}


def noise_limit(noise: SGDStability) -> tuple[float, bool]:
    """Return the limit of the learning rate with noise, and whether it is exact (or else a bound from above)."""
    if noise.lr_exact is not None:
        return noise.lr_exact, True
    return min(noise.lr_gd, noise.lr_moment), False


def training_report(facts: TrainingFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings, adaptive = findings_of(RULES, facts), facts.preconditioned is not None
    limits = limits_of_the_analysis(facts.point, facts.plain.value, facts.batch_size, facts.n, adaptive)
    title = "Density of eigenvalues" + (", preconditioned by the optimizer" if adaptive else "")
    report = Report(
        "Distance to the edge of stability",
        audit_summary(facts),
        findings,
        [_sharpness_table(facts), _lr_table(facts), _direction_table(facts), facts.density.figure(title)],
        meta={
            "optimizer": facts.optimizer,
            "lr": facts.lr,
            "batch_size": int(facts.batch_size),
            "examples": facts.n,
            "examples_used": facts.used,
            "parameters": facts.parameters,
            "seed": facts.seed,
            "torch": torch.__version__,
            "poise": version("poise"),
        },
        verdict=_verdict(facts, findings),
    )
    for block in _noise_blocks(facts):
        report.add(block)
    report.add(Text(_measured(facts), "What was measured"))
    return report.add(Text(limits, "Where this analysis does not apply"))


def _verdict(facts: TrainingFacts, findings: list[Finding]) -> str:
    noisy = any(finding.cause == unstable_with_batch_noise.RULE.id for finding in findings)
    return _VERDICTS[facts.distance.where] + (", unstable with batch noise" if noisy else "")


def audit_summary(facts: TrainingFacts) -> str:
    """Return the verdict in plain sentences."""
    if facts.decisive.value <= 0:
        return (
            f"No direction is curved upwards here (largest eigenvalue {number(facts.decisive.value)}), so no learning "
            "rate of gradient descent is too large for this point; it is not a minimum either."
        )
    distance = facts.distance
    where = {"below": "below it", "at": "so at it within the error", "above": "above it"}[distance.where]
    unit = "of" if distance.ratio < 1 else "times"
    return (
        f"You are at {_between(distance.low, distance.ratio, distance.high)} {unit} the edge of stability, {where}. "
        f"The largest stable learning rate of this {facts.optimizer} is {_between(*facts.largest_lr)}; "
        f"it runs at {number(facts.lr)}. {_noise_sentence(facts)}"
    ).strip()


def _noise_sentence(facts: TrainingFacts) -> str:
    if facts.batch_size == facts.n:
        return "A batch holds all examples, so there is no noise."
    if facts.noise is None:
        return "What the noise of mini-batches costs is not known here."
    limit, exact = noise_limit(facts.noise)
    words = f"{number(limit)} (exact, in mean square)" if exact else f"at most {number(limit)} (a bound)"
    if not facts.plain_sgd:
        return f"For SGD without momentum and batches of {facts.batch_size}, the largest stable one is {words}."
    if limit >= 0.999 * facts.noise.lr_gd:
        effect = "does not lower it" if exact else "does not lower it within the bounds"
        return f"The noise of batches of {facts.batch_size} {effect}."
    beyond = ", which the present one exceeds" if facts.lr > limit else ""
    return f"With batches of {facts.batch_size}, noise lowers it to {words}{beyond}."


def _between(low: float, value: float, high: float) -> str:
    """Write a value and, where they differ in what is written, its ends."""
    if f"{low:.3g}" == f"{high:.3g}":
        return f"{value:.3g}"
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _sharpness_table(facts: TrainingFacts) -> Table:
    rows = [_sharpness_row("Sharpness of the loss", facts.plain)]
    if facts.preconditioned is not None:
        rows.append(_sharpness_row(f"Sharpness preconditioned by {facts.optimizer}", facts.preconditioned))
    edge = facts.distance
    rows.append([f"Threshold of {facts.optimizer} at lr {facts.lr:g}", edge.edge, None, None, "closed form"])
    rows.append(["Fraction of the edge", edge.ratio, edge.low, edge.high, "sharpness over threshold"])
    rows.append(["Mean loss", facts.point.loss, None, None, ""])
    rows.append(["Norm of the gradient", facts.point.grad_norm, None, None, ""])
    return Table("Sharpness and edge", ["Quantity", "Value", "Low", "High", "How"], rows)


def _sharpness_row(name: str, sharpness: AuditedSharpness) -> list[object]:
    how = "Lanczos, converged" if sharpness.converged else "Lanczos, stopped early: the true value may be higher"
    if sharpness.elsewhere is not None:
        how += "; low end from other examples"
    return [name, sharpness.value, sharpness.low, sharpness.high, how]


def _lr_table(facts: TrainingFacts) -> Table:
    low, best, high = facts.largest_lr
    rows: list[list[object]] = [
        [f"This {facts.optimizer}, full batches", best, low, high, "from sharpness and threshold"]
    ]
    if facts.plain.value > 0:
        ends = [2 / facts.plain.high, 2 / facts.plain.low if facts.plain.low > 0 else float("inf")]
        rows.append(["Gradient descent, full batches", 2 / facts.plain.value, *ends, "2 / sharpness"])
    if facts.noise is not None:
        rows += _noise_rows(facts.noise)
    caption = (
        f"The present one is {number(facts.lr)}. Rows with batches are of SGD without momentum, and take the "
        "Gauss-Newton matrix of each example for its Hessian."
    )
    return Table("Largest stable learning rates", ["For", "Value", "Low", "High", "How"], rows, caption)


def _noise_rows(noise: SGDStability) -> list[list[object]]:
    batches = f"SGD, batches of {noise.batch_size}"
    if noise.lr_exact is not None:
        rows: list[list[object]] = [[batches, noise.lr_exact, None, None, "exact, in mean square"]]
    else:
        error, limit = 2 * noise.lr_moment_se, noise.lr_moment
        above = "bound: certainly unstable in mean square above it"
        capped = min(limit, noise.lr_gd)
        rows = [[batches, capped, min(capped, limit - error), min(noise.lr_gd, limit + error), above]]
    if noise.coherence is not None:
        rows.append([batches, noise.coherence.lr_coherence(noise.batch_size), None, None, "estimate by coherence"])
    return rows


def _direction_table(facts: TrainingFacts) -> Table:
    ranked = sorted(facts.directions.items(), key=lambda item: -item[1])
    rows = [[name, 100 * fraction] for name, fraction in ranked[:_MOST_PARAMETERS]]
    left = len(ranked) - len(rows)
    rest = 100 * sum(fraction for _, fraction in ranked[_MOST_PARAMETERS:])
    more = f"; {left} more parameters have {rest:.2g}" if left else ""
    caption = f"Parts of the squared length of the sharpest direction, in per cent{more}."
    return Table("What goes first", ["Parameter", "Per cent"], rows, caption)


def _noise_blocks(facts: TrainingFacts) -> list[Text | Table | Figure]:
    if facts.noise is None:
        return [Text(f"Not available: {facts.no_noise}", "Batch-noise stability")]
    lr = facts.lr if facts.plain_sgd else None
    generator = torch.Generator().manual_seed(facts.seed)
    return list(batch_noise_section(facts.noise, lr, steps=200, generator=generator))


def _measured(facts: TrainingFacts) -> str:
    if facts.used == facts.n:
        sample = f"All {facts.n} examples were used"
    else:
        sample = (
            f"{facts.used} of {facts.n} examples were used, drawn at random. Sharpness of a sample is on average "
            "higher than that of all data; the low end of the range is the curvature of the same direction on as "
            "many other examples, which is on average lower. Each has the chance of its own sample"
        )
    products = "not reached: products were bounded by the time there was" if not facts.decisive.converged else "reached"
    noise = ""
    if facts.noise is not None:
        kind = "are exact" if facts.noise.lr_exact is not None else "are bounds, since exact ones were too large"
        noise = f" Limits with mini-batches {kind}; {facts.noise.used} examples are behind them."
    return f"{sample}. {facts.parameters:,} parameters. The tolerance of the sharpness was {products}.{noise}"
