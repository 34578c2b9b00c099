import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import plotly.graph_objects as go

from poise.report import Code, Evidence, Figure, Finding, Report, Table, Text

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


class Page(HTMLParser):
    """Tags with their attributes, ids and headings of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def evil_report() -> Report:
    item = Evidence(EVIL, 1.0)
    finding = Finding(EVIL, "warning", 0.5, EVIL, (EVIL,), 1, 2, 3, (item,), (EVIL,))
    plot = go.Figure(go.Scatter(x=[EVIL], y=[1], name=EVIL), layout={"title": EVIL, "xaxis": {"title": EVIL}})
    blocks = [
        Text(f"{EVIL}\n\n[link](javascript:alert(3)) ![image](http://example.org/a.png)", EVIL),
        Table(EVIL, [EVIL], [[EVIL]], EVIL),
        Code(EVIL, EVIL, "python"),
        Figure(EVIL, plot, EVIL, EVIL),
    ]
    return Report(EVIL, EVIL, [finding], blocks, {EVIL: EVIL, "nested": {EVIL: [EVIL]}}, EVIL)


def test_no_text_becomes_markup():
    html = evil_report().to_html()
    plain = Page(Report("t", "s", blocks=[Figure("f", go.Figure(), "a")]).to_html())
    page = Page(html)
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert len(page.all("script")) == len(plain.all("script"))
    assert not any("javascript:" in a.get("href", "") for a in page.all("a"))


def test_a_notebook_cell_is_one_frame_around_the_page():
    cell = evil_report()._repr_html_()
    (frame,) = Page(cell).tags
    assert frame[0] == "iframe"
    assert unescape(cell.split('srcdoc="')[1].split('"')[0]) == evil_report().to_html()


def test_nothing_is_loaded_from_anywhere(sample):
    page = Page(sample().to_html())
    assert page.all("link") == []
    loads = [a[name] for _, a in page.tags for name in ("src", "srcset", "data", "poster", "action") if name in a]
    assert loads == []
    styles = "".join(re.findall(r"<style>(.*?)</style>", sample().to_html(), re.DOTALL))
    assert styles
    assert not re.search(r"url\(|@import", styles)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_no_address_but_links_of_the_text(sample):
    html = sample().to_html()
    assert not re.search(r"https?://", html)
    assert "https://arxiv.org" in sample().add(Text("[paper](https://arxiv.org)")).to_html()


def test_plotly_comes_once_and_only_with_figures(sample):
    assert sample().to_html().count('id="plotly"') == 1
    assert len(sample().to_html()) < 2.5e6
    assert len(Report("t", "s").to_html()) < 50_000


def test_the_same_report_gives_the_same_page(sample):
    assert sample().to_html() == sample().to_html()


def test_every_figure_has_its_alternatives(sample):
    report = sample()
    html = report.to_html()
    page = Page(html)
    labels = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    assert labels == [block.alt for block in report.blocks if isinstance(block, Figure)]
    assert len(page.all("details")) == len(labels)
    assert "<td>untreated</td>" in html


def test_headings_descend_without_gaps_and_ids_are_unique(sample):
    report = sample().add(Text("# Big\n\n## Smaller", "Why")).add(Text("again", "Why"))
    page = Page(report.to_html())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert targets
    assert set(targets) <= set(ids)
    named = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(named) <= set(ids)


def test_severity_is_a_word_and_not_only_a_colour(sample):
    html = sample().to_html()
    assert re.search(r'class="badge error">error</span>', html)
    assert "Attention logit growth" in html
    assert "confidence 97 %" in html


def test_a_long_table_says_how_much_it_shows():
    html = Report("t", "s", blocks=[Table("n", ["n"], [[i] for i in range(2500)])]).to_html()
    assert "The first 2000 of 2500 rows" in html
    assert html.count("<tr>") == 2001
