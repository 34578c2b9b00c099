"""What a study is: a paper's claims and the experiment that decides them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, get_args

from poise.studies.kit.claims import Claim, ClaimResult, Results
from poise.studies.kit.rules import ClaimVerdict
from poise.studies.kit.seed_sets import SettledVerdict, seeds_in_words, settled_verdict, total_verdict

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

    from poise.report import Code, Figure, Report, Table, Text

Budget = Literal["tiny", "default", "full"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)

Progress = Callable[[float, str], None]
"""Called with the fraction of the work that is done, in [0, 1], and a few words on what runs now."""


@dataclass(frozen=True, slots=True)
class Paper:
    """The paper that a study tests.

    Args:
        title: title of the paper.
        authors: authors as they are cited, for example ``"Bartoš et al."``.
        year: year of publication.
        arxiv: arXiv identifier, for example ``"2310.04153"``; empty for targets that are in no paper.
    """

    title: str
    authors: str
    year: int
    arxiv: str = ""

    @property
    def url(self) -> str:
        """Address of the paper; empty if it has none."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def citation(self) -> str:
        """One line that cites the paper."""
        source = f" arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors} ({self.year}). {self.title}.{source}"

    @property
    def link(self) -> str:
        """The citation in Markdown, with its address if it has one."""
        return f"[{self.citation}]({self.url})" if self.url else self.citation


@dataclass(frozen=True, slots=True)
class Presentation:
    """What a study shows beside its claims.

    Args:
        summary: two or three sentences for the head of the report.
        blocks: texts, tables and figures of the report, in order.
        picture: small Plotly figure that shows the main result in the gallery.
    """

    summary: str
    blocks: Sequence[Text | Table | Figure | Code]
    picture: PlotlyFigure


@dataclass(frozen=True, slots=True)
class Outcome:
    """A study after it ran.

    Args:
        study: the study.
        budget: the budget it ran with.
        seeds: the seeds it used.
        results: one result per claim, in the study's order.
        presentation: what is shown beside them.
    """

    study: Study[Any]
    budget: Budget
    seeds: tuple[int, ...]
    results: tuple[ClaimResult, ...]
    presentation: Presentation

    @property
    def verdict(self) -> ClaimVerdict:
        """*reproduced* or *refuted* if every tested claim is, *partly* otherwise."""
        return total_verdict(result.verdict for result in self.results)

    def settled(self, other: Outcome) -> tuple[SettledVerdict, ...]:
        """Return the claims' verdicts, *not settled* where a run of the same study with other seeds has another.

        Args:
            other: that run.

        Raises:
            ValueError: if it is a run of another study, or shares seeds with this one.
        """
        if other.study.slug != self.study.slug:
            raise ValueError(f"other must be a run of {self.study.slug!r}, got one of {other.study.slug!r}")
        if common := sorted(set(self.seeds) & set(other.seeds)):
            raise ValueError(f"other must be a run with other seeds, got {common} in both")
        pairs = zip(self.results, other.results, strict=True)
        return tuple(settled_verdict([own.verdict, again.verdict]) for own, again in pairs)

    def report(self, other: Outcome | None = None) -> Report:
        """Return the report: the claims with their verdicts, then what the experiment shows.

        Args:
            other: a run with other seeds, whose figures are shown beside; claims with another verdict there are marked
                as *not settled*.
        """
        from poise.report import Report, Table, Text

        runs = [self] if other is None else [self, other]
        verdicts = [r.verdict for r in self.results] if other is None else self.settled(other)
        here = ["Here"] if other is None else [f"Here, {seeds_in_words(run.seeds)}" for run in runs]
        rows = []
        for verdict, *found in zip(verdicts, *(run.results for run in runs), strict=True):
            words = [r.measured if verdict != "not settled" else f"{r.verdict}: {r.measured}" for r in found]
            rows.append([found[0].claim.text, found[0].claim.paper, *words, verdict, found[0].claim.test])
        caption = "Each verdict is computed from this run's numbers by the test named."
        if other is not None:
            caption += " Where the two sets of seeds have different verdicts, the claim is not settled."
        paper = self.study.paper
        blocks = [
            Table("Claims", ["Claim", "Paper", *here, "Verdict", "Test"], rows, caption=caption),
            *self.presentation.blocks,
            Text(paper.link, title="Paper"),
        ]
        meta = {"study": self.study.slug, "budget": self.budget, "seeds": [seed for run in runs for seed in run.seeds]}
        verdict = total_verdict(verdicts)
        return Report(self.study.title, self.presentation.summary, blocks=blocks, meta=meta, verdict=verdict)


@dataclass(frozen=True, slots=True)
class Study(Generic[Results]):
    """The executable test of one paper's claims.

    Args:
        slug: name on the command line, for example ``"fair-coins"``; the file is named after it.
        title: the question that the study answers.
        room: room of the package that the study exercises.
        paper: the paper.
        seeds: how many seeds each budget uses when the caller does not say.
        experiment: ``experiment(budget, seeds, progress)`` runs everything and returns the results.
        claims: the paper's claims, each of which measures and judges itself from the results.
        present: ``present(results, claims)`` makes the report, from the results and from what was measured for each
            claim, by id.

    Raises:
        ValueError: if two claims share an id, or a budget has no number of seeds.
    """

    slug: str
    title: str
    room: str
    paper: Paper
    seeds: Mapping[Budget, int]
    experiment: Callable[[Budget, Sequence[int], Progress], Results]
    claims: tuple[Claim[Results], ...]
    present: Callable[[Results, Mapping[str, ClaimResult]], Presentation]

    def __post_init__(self) -> None:
        ids = [claim.id for claim in self.claims]
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(f"claims must have distinct ids and be at least one, got ids {ids}")
        if set(self.seeds) != set(BUDGETS):
            raise ValueError(f"seeds must name every budget of {BUDGETS}, got {sorted(self.seeds)}")

    def run(
        self,
        budget: Budget = "default",
        seeds: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Outcome:
        """Run the experiment and judge every claim.

        Args:
            budget: ``"tiny"`` (seconds), ``"default"`` (minutes) or ``"full"``.
            seeds: how many seeds; the study's own number for this budget by default.
            seed: the first seed; the others follow it.
            progress: called with the fraction done and a few words.

        Raises:
            ValueError: if ``budget`` is unknown, ``seeds`` is below 1, ``seed`` is negative, or NaN was measured for a
                claim.
        """
        if budget not in BUDGETS:
            raise ValueError(f"budget must be one of {BUDGETS}, got {budget!r}")
        count = self.seeds[budget] if seeds is None else seeds
        if count < 1:
            raise ValueError(f"seeds must be at least 1, got {count}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        used = tuple(range(seed, seed + count))
        progress = progress or _no_progress
        results = self.experiment(budget, used, progress)
        judged = tuple(claim.judge(results) for claim in self.claims)
        presentation = self.present(results, {result.claim.id: result for result in judged})
        progress(1.0, "done")
        return Outcome(self, budget, used, judged, presentation)


def _no_progress(fraction: float, words: str) -> None:
    """Progress that nobody watches."""
