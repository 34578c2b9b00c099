"""Hooks of MkDocs: the navigation of generated pages, and outputs below the code that made them."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

import poise
from poise.doctor.causes import RULES as CAUSES
from poise.rules import catalogue
from poise.rules.contents import rule_groups

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from rule_pages import rule_path  # noqa: E402
from runnable import Block, find_blocks  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation: a new cause, rule, remedy or room needs no line in mkdocs.yml."""
    known = catalogue()
    sections: dict[str, dict[str, Any]] = {
        "Causes": {id.replace("_", " "): f"causes/{id}.md" for id, _ in _causes()},
        "Audits": {
            rules.name.capitalize(): [{rule.id.replace("_", " "): rule_path(rules, rule)} for rule in rules]
            for rules in known.rule_sets
            if rules is not CAUSES
        },
        "Remedies": {name.replace("_", " "): f"remedies/{name}.md" for name in sorted(known.remedies)},
        "API": {f"poise.{room}": f"api/{room}.md" for room in poise._ROOMS},
    }
    for entry in config.nav or []:
        ((title, pages),) = entry.items()
        if title in sections:
            pages += [{name: path} for name, path in sections[title].items()]
    return config


def _causes() -> list[tuple[str, str]]:
    return [entry for group in rule_groups(CAUSES) for entry in group.entries]


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the recorded output of each named block below it."""
    blocks = [block for block in find_blocks(markdown) if block.name is not None]
    if not blocks:
        return markdown
    recorded = _recorded(page)
    for block in reversed(blocks):
        markdown = markdown[: block.end] + "\n" + _shown(block, recorded, page) + "\n" + markdown[block.end :]
    return f"{markdown}\n{_provenance(recorded['made'])}\n"


def _recorded(page: Page) -> dict[str, Any]:
    path = _HERE / "outputs" / f"{Path(page.file.src_uri).stem}.json"
    if not path.is_file():
        raise PluginError(f"{page.file.src_uri}: no recorded outputs; run python docs/make_figures.py")
    return json.loads(path.read_text(encoding="utf-8"))


def _shown(block: Block, recorded: dict[str, Any], page: Page) -> str:
    output = recorded["blocks"].get(block.name)
    if output is None or output["digest"] != block.digest:
        raise PluginError(
            f"{page.file.src_uri}: block {block.name!r} has changed since its output was recorded; "
            "run python docs/make_figures.py"
        )
    parts = []
    if output["text"]:
        block_of_text = f"``` {{ .text .no-copy }}\n{output['text'].rstrip()}\n```"
        parts.append(f'<div class="poise-output" markdown>\n\n{block_of_text}\n\n</div>\n')
    parts += [figure_html(**figure) for figure in output["figures"]]
    return "\n".join(parts)


def figure_html(title: str, figure: dict[str, Any], alt: str, caption: str | None) -> str:
    """Return a Plotly figure for the page; docs/javascripts/figures.js draws it when it comes into view."""
    data = json.dumps(figure).replace("</", "<\\/")
    words = " ".join(filter(None, [f"<strong>{html.escape(title)}.</strong>", html.escape(caption or "")]))
    return (
        f'<figure class="poise-figure"><div class="poise-plot" role="img" aria-label="{html.escape(alt)}">'
        f'<script type="application/json">{data}</script></div><figcaption>{words}</figcaption></figure>\n'
    )


def _provenance(made: dict[str, str]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f'<p class="poise-made">Outputs and figures made by the code on this page: {made["date"]}, {versions}.</p>'
