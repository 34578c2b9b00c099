"""Write one page per cause, per rule of an audit and per remedy, from the catalogue that `poise explain` reads too."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import mkdocs_gen_files

from poise.doctor import REMEDIES
from poise.doctor.causes import RULES as CAUSES
from poise.rules import DocumentedRemedy, Rule, RuleSet, catalogue
from poise.rules.contents import contents, rule_groups
from poise.rules.explain import explain_remedy, explain_rule

sys.path.insert(0, str(Path(__file__).parent))

from formulas import render
from rule_pages import rule_path

KNOWN = catalogue()
AUDITS = [rules for rules in KNOWN.rule_sets if rules is not CAUSES]


def link(text: str, path: str, page: str) -> str:
    """Return a link from one page to another."""
    return f"[{text}]({posixpath.relpath(path, posixpath.dirname(page))})"


def write_rule(rules: RuleSet, rule: Rule[Any]) -> None:
    """Write what `poise explain` prints, with links to the pages of remedies and of other causes."""
    page = rule_path(rules, rule)
    text = render(explain_rule(KNOWN, rules, rule))
    for spec in rule.remedies:
        name = spec.partition("=")[0]
        call = f"`--remedy {spec}`" if name in REMEDIES else f"`{name}`"
        text = text.replace(f"- {call}:", f"- {link(call, f'remedies/{name}.md', page)}:")
    head, mark, tail = text.rpartition("## What it explains away")
    for cause in CAUSES:
        tail = tail.replace(f"`{cause.id}`", link(f"`{cause.id}`", rule_path(CAUSES, cause), page))
    write(page, head + mark + tail if mark else text)


def write_remedy(remedy: DocumentedRemedy) -> None:
    """Write what `poise explain` prints, how the command line takes the remedy, and links to what names it."""
    page = f"remedies/{remedy.name}.md"
    title, _, text = render(explain_remedy(KNOWN, remedy)).partition("\n")
    live = REMEDIES.get(remedy.name)
    usage = "" if live is None else f"\n`--remedy {live.name}=VALUE` · {live.values} · default {live.default:g}\n"
    head, mark, _ = text.rpartition("## Named by")
    if mark:
        naming = [(rules, rule) for rules in KNOWN.rule_sets for rule in rules if remedy.name in rule.remedy_names]
        lines = [f"- {link(rule.title, rule_path(rules, rule), page)} ({rules.found_by})" for rules, rule in naming]
        text = f"{head}{mark}\n\n" + "\n".join(lines) + "\n"
    write(page, f"{title}\n{usage}{text}")


def write(page: str, text: str) -> None:
    """Write a page."""
    with mkdocs_gen_files.open(page, "w") as file:
        # Markdown wants a blank line before a list; a terminal does not.
        file.write(re.sub(r"^(## .+)\n(?=\S)", r"\1\n\n", text, flags=re.MULTILINE))


def write_cause_index() -> None:
    """Write the list of all causes, by family."""
    text = (
        f"# Causes\n\nThe {len(CAUSES)} mechanisms of instability that poise can find in a run. An *exact* rule "
        "recognises a fact, a *statistical* one a pattern, with a confidence. `poise explain` prints these pages "
        "in a terminal.\n\n"
    )
    by_id = {cause.id: cause for cause in CAUSES}
    for group in rule_groups(CAUSES):
        text += f"## {group.heading.capitalize()}\n\n| cause | what it is | rule | remedies |\n|---|---|---|---|\n"
        for id, title in group.entries:
            names = by_id[id].remedy_names
            links = ", ".join(f"[{name}](../remedies/{name}.md)" for name in names) or "-"
            kind = "exact" if by_id[id].exact else "statistical"
            text += f"| [{id}]({id}.md) | {title} | {kind} | {links} |\n"
        text += "\n"
    write("causes/index.md", text)


def write_audit_index() -> None:
    """Write the list of the rules of audits, by audit."""
    text = (
        "# Audits\n\nAn audit measures the stability of one thing and applies its rules to the measurements. These are "
        "the rules of each; `poise explain` prints their pages in a terminal.\n\n"
    )
    for rules in AUDITS:
        text += f"## {rules.found_by}\n\n| finding | what it is |\n|---|---|\n"
        for rule in rules:
            text += f"| {link(rule.id, rule_path(rules, rule), 'audits/index.md')} | {rule.title} |\n"
        text += "\n"
    write("audits/index.md", text)


def write_remedy_index() -> None:
    """Write the list of all remedies, by how they are applied."""
    text = (
        f"# Remedies\n\n{len(REMEDIES)} changes poise applies to an unmodified script, from outside: "
        "`poise run --remedy NAME=VALUE train.py`. `poise trial` compares them with the untreated run, over seeds, "
        "and prints the lines that make the best one permanent. The others change the model by one call, or are lines "
        "for the script.\n\n"
    )
    for group in contents(KNOWN):
        if group.chapter != "Remedies":
            continue
        text += f"## {group.heading.capitalize()}\n\n| remedy | what it does |\n|---|---|\n"
        text += "".join(f"| [{name}]({name}.md) | {render(title)} |\n" for name, title in sorted(group.entries)) + "\n"
    write("remedies/index.md", text)


for rule_set in KNOWN.rule_sets:
    for one_rule in rule_set:
        write_rule(rule_set, one_rule)
for one_remedy in KNOWN.remedies.values():
    write_remedy(one_remedy)
write_cause_index()
write_audit_index()
write_remedy_index()
