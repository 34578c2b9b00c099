"""The documentation tells the truth: its code runs, its links lead somewhere, nothing is missing from it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
import torch

import poise
from poise.doctor import CAUSES, REMEDIES
from poise.rules import catalogue
from poise.rules.documented_remedy import SECTIONS as REMEDY_SECTIONS
from poise.rules.rule import SECTIONS as RULE_SECTIONS
from poise.studies import read_results
from poise.studies.kit.results import entry_of_both

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from runnable import find_blocks  # noqa: E402

SOURCES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", DOCS / "index.md", *sorted((DOCS / "tutorials").glob("*.md"))]
TUTORIALS = [page.stem for page in sorted((DOCS / "tutorials").glob("*.md")) if page.stem != "index"]


def run_python(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the Python blocks of a page that are marked, in one namespace."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in find_blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            exec(compile(block.code, f"{page.name}:{block.name or 'block'}", "exec"), scope)
    return scope


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_blocks_are_found_by_their_mark() -> None:
    page = "text\n\n<!-- run: one -->\n```python\n1 + 1\n```\n\n```python\nignored\n```\n<!-- run -->\n```console\n"
    page += "$ a \\\n  b\nsaid\n$ c\n```\n"
    first, second = find_blocks(page)
    assert (first.name, first.language, first.code) == ("one", "python", "1 + 1\n")
    assert page[: first.end].endswith("1 + 1\n```\n")
    assert second.name is None
    assert [" ".join(command.split()) for command in second.commands] == ["a b", "c"]
    assert first.digest != second.digest


@pytest.mark.slow
def test_readme_tour_runs_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    scope = run_python(ROOT / "README.md", tmp_path, monkeypatch)
    assert "double_softmax" in [finding.cause for finding in scope["run"].findings]


def test_skeletons_of_contributing_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    scope = run_python(ROOT / "CONTRIBUTING.md", tmp_path, monkeypatch)
    # The probe goes where a new probe would go, into the list of its room.
    monkeypatch.setattr("poise.doctor.session.PROBES", (scope["LargestBiasProbe"],))
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    largest = []
    with poise.watch(model, optimizer, out=tmp_path / "run", overhead=1.0) as run:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
            largest.append(model.bias.abs().max().item())
    series = run.record["bias_absmax"]
    # The first step is always sampled; whether later ones are depends on the budget, on a busy machine.
    assert series.steps[0] == 0
    assert list(series.values) == pytest.approx([largest[step] for step in series.steps])


def test_every_named_output_is_recorded_from_the_code_on_the_page() -> None:
    pytest.importorskip("mkdocs", reason="belongs to the docs extra")
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    for name in TUTORIALS:
        source = (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
        page = SimpleNamespace(file=SimpleNamespace(src_uri=f"tutorials/{name}.md"))
        shown = hooks["on_page_markdown"](source, page=page)  # raises if code has changed since
        assert "poise-output" in shown or "poise-figure" in shown


def test_changed_code_is_refused() -> None:
    mkdocs = pytest.importorskip("mkdocs.exceptions", reason="belongs to the docs extra")
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    source = (DOCS / "tutorials" / "evidence.md").read_text(encoding="utf-8")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/evidence.md"))
    with pytest.raises(mkdocs.PluginError, match="has changed since"):
        hooks["on_page_markdown"](source.replace("seeds = range(8)", "seeds = range(9)"), page=page)


def test_gallery_marks_claims_on_which_two_sets_of_seeds_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: dict[str, io.StringIO] = {}

    def open_page(name: str, mode: str) -> Any:
        return contextlib.nullcontext(pages.setdefault(name, io.StringIO()))

    monkeypatch.setitem(sys.modules, "mkdocs_gen_files", SimpleNamespace(open=open_page))
    gallery = runpy.run_path(str(DOCS / "gen_gallery.py"))
    assert "Gallery of studies" in pages["gallery.md"].getvalue()
    entry = json.loads(json.dumps(next(iter(read_results().values()))))
    entry.pop("other_seeds", None)
    entry["provenance"]["seeds"] = [0, 1, 2]
    for claim in entry["claims"]:
        claim["verdict"] = "reproduced"
    once = gallery["card"](entry)
    assert "one set of seeds: 3 from 0" in once
    assert "not settled" not in once

    other = json.loads(json.dumps(entry))
    other["provenance"]["seeds"] = [100, 101, 102]
    other["claims"][0].update(verdict="refuted", ours="<another figure>")
    both = entry_of_both(entry, other)
    assert both["verdict"] == "partly"
    twice = gallery["card"](both)
    assert twice.count('data-verdict="not settled"') == 1
    assert 'poise-verdict--not-settled">not settled' in twice
    assert "with other seeds refuted: &lt;another figure&gt;" in twice
    assert "seeds: 3 from 0 and 3 from 100" in twice
    assert "<option>not settled</option>" in gallery["controls"]([both])


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_links_between_sources_lead_to_files(page: Path) -> None:
    generated = {"gallery.md", "cli.md", "contributing.md", "causes/index.md", "remedies/index.md", "api/index.md"}
    generated |= {"audits/index.md"} | {f"causes/{name}.md" for name in CAUSES}
    generated |= {f"remedies/{name}.md" for name in catalogue().remedies}
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path = urldefrag(target).url
        if not path or "://" in path:
            continue
        found = (page.parent / path).resolve()
        inside = found.relative_to(DOCS).as_posix() if found.is_relative_to(DOCS) else ""
        assert found.exists() or inside in generated, f"{page.name} links to {target}"


def test_picture_of_readme_is_small() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 300_000


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml", reason="belongs to the docs extra")
    render = runpy.run_path(str(DOCS / "formulas.py"))["render"]
    text = "At :math:`\\beta_2` it is :func:`~poise.watch`.\n\n.. math:: a = b,\n    \\qquad c\n\nAfter.\n"
    out = render(text)
    assert "β" in out or "&#x003B2;" in out
    assert "`poise.watch`" in out
    assert 'display="block"' in out
    assert ":math:" not in out
    assert ".. math::" not in out
    assert out.endswith("After.\n")


# ---- the built site ------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page refers to, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = {""}
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.targets.append(values["href"])
        if tag in ("script", "img", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="belongs to the docs extra")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_cause_remedy_and_room_has_its_page(site: Path) -> None:
    for name, cause in CAUSES.items():
        assert cause.title.replace("'", "&#39;").split("&#39;")[0] in (site / f"causes/{name}.html").read_text("utf-8")
    for name, remedy in catalogue().remedies.items():
        page = (site / f"remedies/{name}.html").read_text("utf-8")
        assert (f"--remedy {name}=VALUE" in page) is (name in REMEDIES)
        assert all(f">{section}<" in page for section in REMEDY_SECTIONS), remedy.name
    for rules in catalogue().rule_sets:
        folder = "causes" if rules.room == "doctor" else f"audits/{rules.name.replace(' ', '_')}"
        for rule in rules:
            page = (site / f"{folder}/{rule.id}.html").read_text("utf-8")
            assert all(f">{section}<" in page for section in RULE_SECTIONS), rule.id
    for room in poise._ROOMS:
        page = (site / f"api/{room}.html").read_text("utf-8")
        names = set(getattr(poise, room).__all__)
        missing = {name for name in names if f".{name}</" not in page and f">{name}</" not in page}
        assert not missing, f"{room}: {missing}"


@pytest.mark.slow
def test_links_of_the_site_resolve_and_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = {path.resolve(): Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > len(CAUSES) + len(REMEDIES) + len(poise._ROOMS)
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, since it is served everywhere
            continue
        foreign = [target for target in page.loaded if re.match(r"(https?:)?//", target)]
        assert not foreign, f"{path.name} loads {foreign}"
        for target in page.targets:
            if re.match(r"\w+:", target):
                continue
            url, anchor = urldefrag(target)
            other = (path.parent / unquote(url)).resolve() if url else path
            other = other / "index.html" if other.is_dir() else other
            assert other.is_file(), f"{path.name} links to {target}"
            if other in pages:
                assert unquote(anchor) in pages[other].anchors, f"{path.name} links to {target}"


@pytest.mark.slow
@pytest.mark.browser
def test_gallery_filters_by_keyboard_and_draws_pictures(site: Path, browser_page: Any, page_log: Any) -> None:
    from poise.studies import read_results

    results = read_results()
    browser_page.goto((site / "gallery.html").as_uri())
    browser_page.wait_for_selector(".poise-plot[data-drawn] svg")
    cards = browser_page.locator(".poise-card:visible")
    assert cards.count() == len(results)
    browser_page.locator(".poise-filters input").focus()
    browser_page.keyboard.type("fair coins")
    assert cards.count() == 1
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.name") == "verdict"
    browser_page.keyboard.type("refuted")
    rows = browser_page.locator(".poise-card:visible tbody tr:visible")
    shown = rows.evaluate_all("rows => rows.map(row => row.dataset.verdict)")
    assert set(shown) <= {"refuted"}
    assert len(shown) == sum(claim["verdict"] == "refuted" for claim in results["fair-coins"]["claims"])
    browser_page.locator(".poise-filters button").press("Enter")
    browser_page.wait_for_function(f"document.querySelectorAll('.poise-card:not([hidden])').length === {len(results)}")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page_log.requests)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_are_no_wider_than_the_screen(site: Path, browser_page: Any, width: int) -> None:
    browser_page.set_viewport_size({"width": width, "height": 800})
    for name in ("index", "gallery", "cli", "tutorials/doctor", "causes/index", "remedies/beta2", "api/evidence"):
        browser_page.goto((site / f"{name}.html").as_uri())
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.slow
def test_readme_tour_runs_in_a_terminal(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (block,) = (b for b in find_blocks((ROOT / "README.md").read_text("utf-8")) if b.language == "console")
    said = [
        subprocess.run(
            # Few steps: what is tested is that the commands exist and do what the comments say.
            command.replace("tiny_gpt.py", "tiny_gpt.py --steps 120", 1) if "tiny_gpt.py" in command else command,
            shell=True, cwd=tmp_path, env={**os.environ, "PATH": path, "NO_COLOR": "1"}, capture_output=True, text=True,
        )
        for command in (line.partition("  #")[0] for line in block.commands)
    ]  # fmt: skip
    assert [done.returncode for done in said] == [0] * len(said), [done.stderr[-500:] for done in said]
    assert "attention logit growth" in said[0].stderr
    assert "Attention logits" in said[1].stdout
    assert "lr_scale=0.1" in said[2].stdout
    assert (tmp_path / "runs/gpt/report.html").is_file()


@pytest.mark.slow
def test_tutorial_on_evidence_runs_and_its_variants_differ_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scope = run_python(DOCS / "tutorials" / "evidence.md", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "C, 8 seeds" in said
    assert scope["found"].p_better > 0.8  # a falling learning rate helps; dropout is left open
    assert scope["without"] > scope["with_clipping"]


@pytest.mark.slow
def test_tutorial_on_deployment_runs_and_labels_confirm_its_estimates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    scope = run_python(DOCS / "tutorials" / "deployment.md", tmp_path, monkeypatch)
    assert scope["report"].verdict == "holds"
    found = scope["found"]  # of the corrected estimator, on older people
    assert found["realised"].between(found["low"], found["high"]).all()
    assert found["alert"].all()
