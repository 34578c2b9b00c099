"""Write one page per cause and per remedy: the texts that the command line shows too."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import mkdocs_gen_files

from poise.doctor import CAUSES, REMEDIES, explain

sys.path.insert(0, str(Path(__file__).parent))

from formulas import render


def write_cause(name: str) -> None:
    """Write what `poise explain` prints, with links to the pages of other causes and of remedies."""
    cause = CAUSES[name]
    text = render(explain(name))
    for spec in cause.remedies:
        line = f"- `--remedy {spec}`"
        text = text.replace(f"{line}\n", f"- [`--remedy {spec}`](../remedies/{spec.partition('=')[0]}.md)\n")
    for other in cause.leads_to:
        head, mark, tail = text.rpartition("## What it explains away")
        text = head + mark + tail.replace(f"`{other}`", f"[`{other}`]({other}.md)")
    with mkdocs_gen_files.open(f"causes/{name}.md", "w") as page:
        page.write(text)


def write_remedy(name: str) -> None:
    """Write the documentation of a remedy, the causes it is named by, and the lines that make it permanent."""
    remedy = REMEDIES[name]
    title, _, text = inspect.cleandoc(sys.modules[remedy.__module__].__doc__ or "").partition("\n")
    # "name". Paper. -> one entry of a list a line; the docstrings write one reference a line.
    head, mark, references = text.partition("## References\n")
    text = head + mark + "".join(f"- {entry}\n" for entry in _entries(references))
    with mkdocs_gen_files.open(f"remedies/{name}.md", "w") as page:
        page.write(f"# {render(title).rstrip('.')}\n\n")
        page.write(f"`--remedy {name}=VALUE` · {remedy.values} · default {remedy.default:g}\n\n{render(text)}\n\n")
        page.write(f"## The lines that poise prints\n\n```python\n{remedy().code().rstrip()}\n```\n\n")
        treated = [cause for cause in CAUSES.values() if name in (s.partition("=")[0] for s in cause.remedies)]
        if treated:
            page.write("## Causes that name it\n\n")
            page.writelines(f"- [{cause.title}](../causes/{cause.id}.md)\n" for cause in treated)


def _entries(references: str) -> list[str]:
    out: list[str] = []
    for line in references.strip().splitlines():
        # An entry ends with a full stop at the end of a line.
        if out and not out[-1].endswith("."):
            out[-1] += " " + line.strip()
        else:
            out.append(line.strip().removeprefix("- "))
    return out


def write_cause_index() -> None:
    """Write the list of all causes."""
    with mkdocs_gen_files.open("causes/index.md", "w") as page:
        page.write(
            f"# Causes\n\nThe {len(CAUSES)} mechanisms of instability that poise can name. An *exact* rule recognises "
            "a fact, a *statistical* one a pattern and says how sure it is. `poise explain` prints these pages in a "
            "terminal.\n\n| cause | what it is | rule | remedies |\n|---|---|---|---|\n"
        )
        for cause in CAUSES.values():
            names = dict.fromkeys(spec.partition("=")[0] for spec in cause.remedies)
            links = ", ".join(f"[{name}](../remedies/{name}.md)" for name in names) or "-"
            kind = "exact" if cause.exact else "statistical"
            page.write(f"| [{cause.id}]({cause.id}.md) | {cause.title} | {kind} | {links} |\n")


def write_remedy_index() -> None:
    """Write the list of all remedies."""
    with mkdocs_gen_files.open("remedies/index.md", "w") as page:
        page.write(
            f"# Remedies\n\nThe {len(REMEDIES)} changes that poise applies to an unmodified script, from outside: "
            "`poise run --remedy NAME=VALUE train.py`. `poise trial` compares them with the untreated run, over seeds, "
            "and prints the lines that make the best one permanent.\n\n| remedy | what it does | default | values |\n"
            "|---|---|---|---|\n"
        )
        for name, remedy in sorted(REMEDIES.items()):
            what = render(inspect.cleandoc(sys.modules[remedy.__module__].__doc__ or "").partition("\n")[0])
            page.write(f"| [{name}]({name}.md) | {what} | {remedy.default:g} | {remedy.values} |\n")


for cause_name in CAUSES:
    write_cause(cause_name)
for remedy_name in REMEDIES:
    write_remedy(remedy_name)
write_cause_index()
write_remedy_index()
