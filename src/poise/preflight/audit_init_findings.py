"""Findings of an audit at initialisation: what is wrong, in which layer, and at which depth it ends."""

from __future__ import annotations

import math
from collections.abc import Callable

from poise.doctor.causes.reading import listing
from poise.preflight.audit_init_facts import InitFacts
from poise.report import Evidence, Finding
from poise.report.finding import Severity
from poise.report.words import number

SMALL_STREAM = 5.0
"""Gradient amplification of the first normalisation from which the residual stream counts as small."""
_SURE, _LIKELY = 0.95, 0.8
_GROWN, _EXPLODED = 1e2, 1e6  # of a mean square over the whole depth
_GRADIENT, _BAD_GRADIENT = 10.0, 1e3  # ratio of the gradient's norm at the first block and at the last
_LOGIT, _BAD_LOGIT, _COLLAPSED = 50.0, 1e3, 0.1
_DEAD, _MANY_DEAD, _ENOUGH_ROWS = 0.5, 0.9, 16
_ALIKE = 0.99
_GAIN = 0.9, 1.1
_CATAPULT = 4.0  # SGD often survives a few times its limit by a jump to a flatter place
_FRESH = 100.0  # and a fresh adaptive optimizer some hundred times


def init_findings(facts: InitFacts) -> list[Finding]:
    """Return what stands out, the worst first.

    Args:
        facts: what was measured.
    """
    rules = (
        _nonfinite,
        _signal,
        _gradients,
        _stream,
        _degenerate,
        _attention,
        _dead,
        _alike,
        _recurrent,
        _lr,
        _epsilon,
        _orphans,
    )
    found = [finding for rule in rules for finding in rule(facts)]
    order = ("error", "warning", "info")
    return sorted(found, key=lambda finding: (order.index(finding.severity), -finding.probability))


def block_word(facts: InitFacts) -> str:
    """Say what the units of depth are."""
    return "block" if facts.passed.are_blocks else "layer"


def _nonfinite(facts: InitFacts) -> list[Finding]:
    units, depth = facts.passed.units, len(facts.passed.units)
    for i, unit in enumerate(units):
        if not math.isfinite(unit.absmax):
            text = f"At depth {i + 1} of {depth} ({unit.name}) the signal is no longer finite in {_dtype(unit.dtype)}."
            evidence = (Evidence(f"act_absmax[{unit.name}]", unit.absmax),)
            return [
                _finding("forward_nonfinite", "error", _SURE, text, (unit.name,), evidence, _growth_remedies(facts))
            ]
    if not math.isfinite(facts.passed.loss):
        return [_finding("forward_nonfinite", "error", _SURE, f"The loss is {number(facts.passed.loss)}.")]
    for i, unit in reversed(list(enumerate(units))):
        if unit.grad_norm is not None and not math.isfinite(unit.grad_norm):
            text = f"On its way back, the gradient is no longer finite at depth {i + 1} of {depth} ({unit.name})."
            evidence = (Evidence(f"grad_norm[{unit.name}]", unit.grad_norm),)
            return [
                _finding("backward_nonfinite", "error", _SURE, text, (unit.name,), evidence, _growth_remedies(facts))
            ]
    return []


def _signal(facts: InitFacts) -> list[Finding]:
    units, slope = facts.passed.units, facts.growth.forward_slope
    sizes = [unit.q for unit in units if math.isfinite(unit.q) and unit.q > 0]
    if slope is None or len(sizes) < 3:
        return []
    ratio = sizes[-1] / sizes[0]
    in_half = next((f for f in facts.failing if f.format == "float16" and f.what == "overflows"), None)
    inside = in_half is not None and in_half.name is not None
    if 1 / _GROWN < ratio < _GROWN and not inside:
        return []
    word, depth = block_word(facts), len(units)
    per = math.exp(slope)
    text = (
        f"The mean square of the signal {'grows' if per > 1 else 'shrinks'} by a factor of {number(per)} per {word}, "
        f"by {number(ratio)} over {depth} {word}s. "
    )
    if in_half is not None and inside:
        text += f"At depth {in_half.depth} of {depth} ({in_half.name}) the signal overflows float16."
    elif in_half is not None:
        text += f"It would overflow float16 at depth {in_half.depth}."
    severity: Severity = "error" if not 1 / _EXPLODED < ratio < _EXPLODED else "warning"
    cause = "signal_growth" if ratio > 1 or inside else "signal_decay"
    where = (in_half.name,) if in_half is not None and in_half.name is not None else (units[-1].name,)
    evidence = (Evidence("mean_square_ratio", ratio, _GROWN if ratio > 1 else 1 / _GROWN),)
    return [_finding(cause, severity, _SURE, text.strip(), where, evidence, _growth_remedies(facts))]


def _gradients(facts: InitFacts) -> list[Finding]:
    ratio, units = facts.growth.gradient_ratio, facts.passed.units
    found = []
    if ratio is not None and len(units) >= 3 and math.isfinite(ratio) and ratio > 0:
        word, first = block_word(facts), units[0].name
        ends = f"at the first {word} ({first}) is {number(ratio)} times that at the last"
        evidence = (Evidence("gradient_ratio", ratio, _GRADIENT if ratio > 1 else 1 / _GRADIENT**2),)
        if ratio > _GRADIENT:
            severity: Severity = "error" if ratio > _BAD_GRADIENT else "warning"
            text = f"The gradient explodes on its way back: its norm {ends}.{_gain_words(facts, max)}"
            found.append(
                _finding("exploding_gradients", severity, _SURE, text, (first,), evidence, _growth_remedies(facts))
            )
        elif ratio < 1 / _GRADIENT**2:
            severity = "error" if ratio < 1 / (10 * _BAD_GRADIENT) else "warning"
            text = f"The gradient vanishes on its way back: its norm {ends}.{_gain_words(facts, min)}"
            found.append(
                _finding("vanishing_gradients", severity, _SURE, text, (first,), evidence, _growth_remedies(facts))
            )
    gone = next((f for f in facts.failing if f.what == "vanishes" and f.name is not None), None)
    if gone is not None:
        text = (
            f"At depth {gone.depth} of {len(units)} ({gone.name}) the gradient's entries are below "
            f"{number(gone.limit)}, the smallest number of {gone.format}: without loss scaling they vanish there."
        )
        severity = "warning" if gone.format == "float16" else "error"
        known = facts.dtype == gone.format or severity == "error"
        found.append(
            _finding(
                "loss_scaling", severity if known else "info", _LIKELY, text, (gone.name or "",), (), ("loss_scaling",)
            )
        )
    return found


def _gain_words(facts: InitFacts, extreme: Callable[..., tuple[float, int]]) -> str:
    """Name the block whose Jacobian has the largest (or least) gain."""
    gains = [(unit.gain, depth) for depth, unit in enumerate(facts.passed.units, 1) if unit.gain is not None]
    if not gains or facts.growth.gain is None:
        return ""
    (gain, depth), word = extreme(gains), block_word(facts)
    return (
        f" A {word} multiplies a gradient of random direction by {number(facts.growth.gain)} on average, the one at "
        f"depth {depth} ({facts.passed.units[depth - 1].name}) by {number(gain)}."
    )


def _stream(facts: InitFacts) -> list[Finding]:
    if not facts.passed.norms:
        return []
    worst = max(facts.passed.norms, key=lambda norm: norm.amplification)
    first = facts.passed.norms[0]
    if worst.amplification < SMALL_STREAM:
        return []
    begins = ""
    if facts.passed.embeddings:
        name, std = max(facts.passed.embeddings.items(), key=lambda item: item[1])
        begins = f"Embeddings begin with a standard deviation of {number(std)} ({name}). "
    severity: Severity = "warning" if first.amplification >= SMALL_STREAM else "info"
    shown = first if first.amplification >= SMALL_STREAM else worst
    text = (
        f"{begins}The input of {shown.name} has a standard deviation of {number(shown.std)}, so its derivative "
        f"amplifies gradients about {number(shown.amplification)} times. With embeddings of standard deviation 1 it "
        "would be 1."
    )
    evidence = (Evidence(f"norm_amplification[{shown.name}]", shown.amplification, SMALL_STREAM),)
    if facts.passed.embeddings:
        return [
            _finding("small_residual_stream", severity, _LIKELY, text, (shown.name,), evidence, ("scale_embedding",))
        ]
    text = text.rpartition(" With embeddings")[0]
    return [_finding("small_residual_stream", "info", _LIKELY, text, (shown.name,), evidence)]


def _degenerate(facts: InitFacts) -> list[Finding]:
    norms = [norm for norm in facts.passed.norms if norm.degenerate > 0]
    if not norms:
        return []
    worst = max(norms, key=lambda norm: norm.degenerate)
    text = (
        f"{100 * worst.degenerate:.0f} % of the vectors that {worst.name} is given have equal entries: it puts out "
        "zeros (or its bias) and amplifies gradients by one over the root of its epsilon."
    )
    severity: Severity = "warning" if worst.degenerate > 0.5 else "info"
    return [_finding("degenerate_norm", severity, _SURE, text, tuple(norm.name for norm in norms))]


def _attention(facts: InitFacts) -> list[Finding]:
    logits = facts.passed.attention
    large = sorted((a for a in logits if a.largest > _LOGIT), key=lambda a: -a.largest)
    sharp = sorted((a for a in logits if a.entropy < _COLLAPSED), key=lambda a: a.entropy)
    if not large and not sharp:
        return []
    names = tuple(dict.fromkeys(a.name for a in [*large, *sharp]))
    worst = (large or sharp)[0]
    text = (
        f"Attention logits of {listing(names)} reach {number(worst.largest)} before the first step "
        f"(entropy {number(worst.entropy)} of 1): little gradient passes the softmax."
    )
    severity: Severity = "error" if worst.largest > _BAD_LOGIT or worst.entropy < _COLLAPSED else "warning"
    evidence = (Evidence(f"attention_logit_max[{worst.name}]", worst.largest, _LOGIT),)
    return [_finding("attention_logit_growth", severity, _SURE, text, names, evidence, ("add_qk_norm",))]


def _dead(facts: InitFacts) -> list[Finding]:
    dead = [r for r in facts.passed.rectified if r.dead > _DEAD and r.rows >= _ENOUGH_ROWS]
    if not dead:
        return []
    worst = max(dead, key=lambda r: r.dead)
    text = (
        f"{100 * worst.dead:.0f} % of the units of {worst.name} are zero for all {worst.rows} values of this batch, "
        f"and {len(dead)} such ReLU{'s have' if len(dead) > 1 else ' has'} more than half: they get no gradient."
    )
    severity: Severity = "error" if worst.dead > _MANY_DEAD else "warning"
    evidence = (Evidence(f"dead_units[{worst.name}]", worst.dead, _DEAD),)
    names = tuple(r.name for r in sorted(dead, key=lambda r: -r.dead))
    return [_finding("dead_units", severity, _LIKELY, text, names, evidence, ("zero_bias",))]


def _alike(facts: InitFacts) -> list[Finding]:
    units = facts.passed.units
    if len(units) < 3 or units[0].cosine is None or units[0].cosine > 0.9:
        return []
    for i, unit in enumerate(units):
        if unit.cosine is not None and unit.cosine > _ALIKE:
            text = (
                f"From depth {i + 1} of {len(units)} ({unit.name}) on, different inputs can hardly be told apart: the "
                f"mean cosine of their vectors is {unit.cosine:.4f}, after {units[0].cosine:.2f} at {units[0].name}."
            )
            evidence = (Evidence(f"cosine[{unit.name}]", unit.cosine, _ALIKE),)
            remedies = _growth_remedies(facts)
            return [_finding("indistinguishable_inputs", "warning", _LIKELY, text, (unit.name,), evidence, remedies)]
    return []


def _recurrent(facts: InitFacts) -> list[Finding]:
    found = []
    for gain in facts.gains:
        if _GAIN[0] <= gain.rho <= _GAIN[1]:
            continue
        grows = gain.rho > 1
        text = (
            f"Over {gain.steps} steps {gain.name} {'multiplies' if grows else 'keeps only'} its first hidden state's "
            f"influence {'by' if grows else 'to'} {number(math.exp(gain.log_gain))}, a factor of {number(gain.rho)} "
            f"per step: the gradient through time {'explodes' if grows else 'vanishes'}."
        )
        severity: Severity = "warning" if grows and gain.log_gain > math.log(_BAD_GRADIENT) else "info"
        evidence = (Evidence(f"hidden_state_gain[{gain.name}]", gain.rho, _GAIN[1] if grows else _GAIN[0]),)
        found.append(
            _finding("hidden_state_gain", severity, _LIKELY, text, (gain.name,), evidence, ("swap_recurrent",))
        )
    return found


def _lr(facts: InitFacts) -> list[Finding]:
    if facts.optimizer is None or facts.lr is None or facts.lr.cold is None or not facts.lr.cold > 0:
        return []
    lr, limit = float(facts.optimizer.param_groups[0]["lr"]), facts.lr.cold
    sgd = facts.lr.name == "SGD"
    if lr <= limit * (1 if sgd else _FRESH):
        return []
    text = (
        f"The learning rate {number(lr)} is {number(lr / limit)} times what {facts.lr.name} bears at the first step "
        f"({number(limit)})."
    )
    warm = facts.lr.warm
    if warm is not None and lr <= warm:
        text += f" After a warm-up of {len(facts.lr.warmed or ()) - 1} steps it bears {number(warm)}."
    bad = lr > limit * (_CATAPULT if sgd else 10 * _FRESH) and not (warm is not None and lr <= warm)
    severity: Severity = "error" if sgd and bad else "warning"
    return [
        _finding(
            "lr_above_curvature", severity, _LIKELY, text, (), (Evidence("lr", lr, limit),), ("warmup", "lr_scale")
        )
    ]


def _epsilon(facts: InitFacts) -> list[Finding]:
    if facts.optimizer is None or "eps" not in facts.optimizer.param_groups[0]:
        return []
    eps = float(facts.optimizer.param_groups[0]["eps"])
    small = {name: rms for name, rms in facts.passed.parameter_grads.items() if rms and 0 < rms < 10 * eps}
    if not small:
        return []
    names = sorted(small, key=lambda key: small[key])
    text = (
        f"The gradient of {listing(names)} is near or below the optimizer's epsilon {number(eps)} "
        f"(root mean square {number(small[names[0]])}): updates shrink with it."
    )
    evidence = (Evidence(f"grad_rms[{names[0]}]", small[names[0]], eps),)
    return [_finding("eps_dominates", "warning", _SURE, text, tuple(names), evidence, ("eps",))]


def _orphans(facts: InitFacts) -> list[Finding]:
    names = tuple(name for name, rms in facts.passed.parameter_grads.items() if rms is None)
    if not names:
        return []
    text = f"The loss does not depend on {listing(names)} on this batch: no gradient arrives there."
    return [_finding("orphan_parameters", "info", _SURE, text, names)]


def _growth_remedies(facts: InitFacts) -> tuple[str, ...]:
    if facts.passed.residuals and not facts.passed.norms:
        return ("stabilize_residuals", "add_layer_norm")
    return ("add_layer_norm", "he_init") if not facts.passed.norms else ("spike_free_init",)


def _finding(
    cause: str,
    severity: Severity,
    probability: float,
    text: str,
    where: tuple[str, ...] = (),
    evidence: tuple[Evidence, ...] = (),
    remedies: tuple[str, ...] = (),
) -> Finding:
    return Finding(cause, severity, probability, text, where, evidence=evidence, remedies=remedies)


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
