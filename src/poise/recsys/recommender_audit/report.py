"""The report of the audit of a recommender."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from poise.recsys.recommender_audit.facts import Arm, RecommenderFacts
from poise.recsys.recommender_audit.rules import RULES
from poise.report import Figure, Finding, Report, Table, Text, bar_chart
from poise.rules import findings_of
from poise.tools.listing import listing


def recommender_report(facts: RecommenderFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    report = Report(
        "Audit of a recommender",
        _summary(facts),
        findings,
        [_table(facts), *_figure(facts)],
        meta={
            "k": facts.k,
            "p": facts.p,
            "users": facts.users,
            "items": facts.items,
            "events": facts.events,
            "seed": facts.seed,
            "seconds_per_training": facts.seconds,
            "poise": version("poise"),
        },
        verdict=_verdict(findings),
    )
    for block in (_users(facts), _culprits(facts)):
        if block is not None:
            report.add(block)
    return report.add(Text(_not_checked(facts), "What was measured, and what was not"))


def _verdict(findings: Sequence[Finding]) -> str:
    grave = [finding.cause for finding in findings if finding.severity != "info"]
    changes = {
        "nondeterministic_training": "without any change",
        "seed_sensitivity": "with the seed",
        "row_order_sensitivity": "with the order of the rows",
        "interaction_sensitivity": "with one interaction",
    }
    words = [changes[cause] for cause in changes if cause in grave]
    return f"lists change {' and '.join(words)}" if words else "lists are stable"


def _summary(facts: RecommenderFacts) -> str:
    parts = []
    if facts.random is not None:
        parts.append(f"one random interaction changed {1 - facts.random:.1%}")
    chosen = facts.of_kind("chosen")
    if chosen:
        worst = min(chosen, key=lambda arm: arm.jaccard)
        parts.append(f"the worst of {len(chosen)} chosen ones (row {worst.row}) {1 - worst.jaccard:.1%}")
    if (other := facts.arm("other seed")) is not None:
        parts.append(f"another seed {1 - other.jaccard:.1%}")
    parts.append(f"nothing at all {1 - facts.floor:.1%}" if facts.arm("same seed") else "the same seed was not tried")
    return f"Of the first {facts.k} places of all users (1 − Jaccard), {', '.join(parts)}."


def _table(facts: RecommenderFacts) -> Table:
    columns = [
        "change",
        "row",
        "reaches",
        f"Jaccard@{facts.k}",
        f"RBO (p = {facts.p:g})",
        "average overlap",
        f"recall@{facts.k}",
    ]
    rows: list[list[object]] = [["none (base)", None, None, 1.0, 1.0, 1.0, _shown(facts.recall)]]
    rows += [_row(arm) for arm in facts.arms]
    depth = facts.arms[0].similarity.depth if facts.arms else facts.items
    return Table(
        "Similarity to the base, mean over users",
        columns,
        rows,
        f"RBO is extrapolated beyond {depth} places. Average overlap weighs all {depth} places alike and is near 1 "
        "even where the first ones differ. 'reaches': later interactions connected through users and items.",
    )


def _row(arm: Arm) -> list[object]:
    found, place = arm.similarity, (None, None) if arm.kind == "control" else (arm.row, arm.reached)
    means = [float(values.mean()) for values in (found.jaccard, found.rbo, found.average_overlap)]
    return [arm.name, *place, *means, _shown(arm.recall)]


def _shown(value: float) -> float | None:
    return None if np.isnan(value) else value


def _figure(facts: RecommenderFacts) -> list[Figure]:
    if not facts.arms:
        return []
    heights = {arm.name: arm.jaccard for arm in facts.arms}
    return [bar_chart("How much of the lists stays", heights, f"Jaccard similarity of the first {facts.k} places")]


def _users(facts: RecommenderFacts) -> Table | None:
    if not (facts.low.any() and facts.arms):
        return None
    rows = [
        [arm.name, float(arm.similarity.jaccard[facts.low].mean()), float(arm.similarity.jaccard[facts.high].mean())]
        for arm in facts.arms
    ]
    caption = f"Fifths of the users by the reciprocal rank of their held-out interactions, {int(facts.low.sum())} each."
    return Table(f"Jaccard@{facts.k} by accuracy", ["change", "lowest accuracy", "highest accuracy"], rows, caption)


def _culprits(facts: RecommenderFacts) -> Table | None:
    arms = sorted((arm for arm in facts.arms if arm.kind != "control"), key=lambda arm: arm.jaccard)
    if not arms:
        return None
    rows = [[arm.row, arm.name, float((arm.similarity.jaccard < 1).mean()), 1 - arm.jaccard] for arm in arms]
    columns = ["row", "change", "users whose list changed", "part of their places"]
    return Table("Interactions by what they change", columns, rows, "Rows are positions in the table, from 0.")


def _not_checked(facts: RecommenderFacts) -> str:
    text = (
        f"{len(facts.arms) + 1} trainings of {facts.seconds:.1f} s each, on {facts.events:,} interactions of "
        f"{facts.users:,} users and {facts.items:,} items. No interaction was changed whose user or item has no "
        "other. Not checked: changes of several interactions at once, the effect on items that are new, and what users "
        "do with other lists."
    )
    return f"{text} Not finished: {listing(facts.missing, 20)}." if facts.missing else text
