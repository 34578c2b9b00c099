"""Write the gallery: the results of the studies, from their results file."""

from __future__ import annotations

import html
import json
from typing import Any

import mkdocs_gen_files
from plotly.offline import get_plotlyjs

from poise.studies import SETTLED_VERDICTS, STUDIES, read_results, seed_sets, settled_verdicts

_INTRO = """\
# Gallery of studies

Each study tests the claims of one paper on small real data. A verdict is computed from the measured numbers by the
test beside it; a claim that does not hold at this size is shown as *refuted*, with the numbers.
A claim is *not settled* where two sets of seeds that have none in common give it different verdicts; *one set of seeds*
is shown where a study has not been run with two yet. `poise study NAME` runs a study again, `--seed N` with the seeds
from N on.

"""


def text(value: object) -> str:
    """Escape for HTML."""
    return html.escape(str(value))


def badge(verdict: str) -> str:
    """Return a verdict as a coloured word."""
    return f'<span class="poise-verdict poise-verdict--{verdict.replace(" ", "-")}">{text(verdict)}</span>'


def controls(entries: list[dict[str, Any]]) -> str:
    """Return the search field and the filters."""
    rooms = sorted({entry["room"] for entry in entries})
    return (
        '<form class="poise-filters" role="search" aria-label="Filter the studies">'
        '<label>Search <input type="search" name="words" placeholder="paper, claim, number" autocomplete="off"></label>'
        f'<label>Verdict <select name="verdict">{_options(SETTLED_VERDICTS)}</select></label>'
        f'<label>Room <select name="room">{_options(rooms)}</select></label>'
        '<button type="reset">Clear</button>'
        '<p class="poise-count" role="status" aria-live="polite"></p></form>\n'
    )


def _options(values: Any) -> str:
    return '<option value="">all</option>' + "".join(f"<option>{text(value)}</option>" for value in values)


def card(entry: dict[str, Any]) -> str:
    """Return a study as a card."""
    paper = entry["paper"]
    title, arxiv = text(paper["title"]), text(paper["arxiv"])
    source = f'<a href="https://arxiv.org/abs/{arxiv}">{title}</a>. arXiv:{arxiv}' if arxiv else f"{title}."
    verdicts, again = settled_verdicts(entry), entry.get("other_seeds", {}).get("claims", [None] * len(entry["claims"]))
    claims = "".join(
        claim_row(claim, verdicts[claim["id"]], other) for claim, other in zip(entry["claims"], again, strict=True)
    )
    spoken = f"Picture of the main result. {entry['summary']}"
    picture = json.dumps(entry["picture"]).replace("</", "<\\/")
    return (
        f'<article class="poise-card" data-room="{text(entry["room"])}" aria-labelledby="{entry["slug"]}">'
        f'<header>{badge(entry["verdict"])}<h2 id="{entry["slug"]}">{text(entry["title"])}</h2>'
        f"<p>{text(paper['authors'])} ({paper['year']}). {source}</p></header>"
        f'<div class="poise-plot" role="img" aria-label="{text(spoken)}">'
        f'<script type="application/json">{picture}</script></div>'
        f"<p>{text(entry['summary'])}</p>"
        '<div class="poise-scroll" tabindex="0" role="region" aria-label="Claims"><table><thead><tr><th>Claim</th>'
        "<th>Paper</th><th>Here</th><th>Verdict</th></tr></thead>"
        f"<tbody>{claims}</tbody></table></div>"
        f"<footer><code>poise study {entry['slug']}</code> · {provenance(entry)}</footer></article>\n"
    )


def provenance(entry: dict[str, Any]) -> str:
    """Return where a result came from."""
    made = entry["provenance"]
    facts = [
        f"room {entry['room']}",
        f"{made['budget']} budget",
        seeds_of(seed_sets(entry)),
        f"{made['seconds']:.0f} s",
        made["date"],
        made["platform"],
        f"torch {made['versions']['torch']}",
        f"commit {(made['commit'] or 'unknown')[:10]}",
    ]
    return " · ".join(map(text, facts))


def seeds_of(sets: list[list[int]]) -> str:
    """Return in words with which seeds a result was recorded."""
    words = " and ".join(f"{len(seeds)} from {seeds[0]}" for seeds in sets)
    return f"seeds: {words}" if len(sets) > 1 else f"one set of seeds: {words}"


def claim_row(claim: dict[str, Any], verdict: str, again: dict[str, Any] | None) -> str:
    """Return a claim as a row of its study's table; on a phone the labels are before the cells."""
    test = f"<details><summary>Test</summary>{text(claim['test'])}</details>"
    here = text(claim["ours"])
    if again is not None and verdict == "not settled":
        here = f"{text(claim['verdict'])}: {here}<br>with other seeds {text(again['verdict'])}: {text(again['ours'])}"
    elif again is not None:
        here += f"<details><summary>Other seeds</summary>{text(again['ours'])}</details>"
    cells = {
        "Claim": text(claim["text"]) + test,
        "Paper": text(claim["paper"]),
        "Here": here,
        "Verdict": badge(verdict),
    }
    row = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells.items())
    return f'<tr data-verdict="{text(verdict)}">{row}</tr>'


def body(results: dict[str, dict[str, Any]]) -> str:
    """Return the page below its introduction."""
    entries = [results[slug] for slug in STUDIES if slug in results]
    waiting = [f"- {title} (`poise study {slug}`)\n" for slug, title in STUDIES.items() if slug not in results]
    missing = f"\n## Without a recorded result\n\n{''.join(waiting)}" if waiting else ""
    if not entries:
        return missing
    return controls(entries) + f'<div class="poise-cards">{"".join(map(card, entries))}</div>\n{missing}'


with mkdocs_gen_files.open("gallery.md", "w") as page:
    page.write(f"---\nhide:\n  - navigation\n  - toc\n---\n\n{_INTRO}{body(read_results())}")
# Loaded only by pages that hold a figure, once the figure comes into view.
with mkdocs_gen_files.open("javascripts/plotly.min.js", "w") as script:
    script.write(get_plotlyjs())
