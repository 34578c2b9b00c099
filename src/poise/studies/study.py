"""What a study is: a paper's claims, the test of each, and the experiment that decides them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from poise.tools.json_numbers import json_number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

    from poise.report import Code, Figure, Report, Table, Text

Budget = Literal["tiny", "default", "full"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)

ClaimVerdict = Literal["reproduced", "partly", "refuted", "not tested"]
CLAIM_VERDICTS: tuple[ClaimVerdict, ...] = get_args(ClaimVerdict)

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and a few words on what runs now."""


@dataclass(frozen=True, slots=True)
class Paper:
    """The paper that a study tests.

    Args:
        title: title of the paper.
        authors: authors as they are cited, for example ``"Bartoš et al."``.
        year: year of publication.
        arxiv: arXiv identifier, for example ``"2310.04153"``.
    """

    title: str
    authors: str
    year: int
    arxiv: str

    @property
    def url(self) -> str:
        """Address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def citation(self) -> str:
        """One line that cites the paper."""
        return f"{self.authors} ({self.year}). {self.title}. arXiv:{self.arxiv}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a paper and the rule that decides it.

    Args:
        id: short name, unique in its study, for example ``"same-side"``.
        text: the claim in one plain sentence.
        paper: the paper's figure for it, for example ``"BF = 2359"``.
        test: in words, when ``judge`` says *reproduced* and when *refuted*.
        judge: turns the measured numbers into a verdict. The only place where a verdict is made.
    """

    id: str
    text: str
    paper: str
    test: str
    judge: Callable[[Mapping[str, float]], ClaimVerdict]


@dataclass(frozen=True, slots=True)
class Measured:
    """What an experiment measured for one claim.

    Args:
        ours: the measured figure in words, to stand beside the paper's; or why it was not measured.
        numbers: what the claim's ``judge`` reads. Empty if the experiment did not measure the claim.
    """

    ours: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one execution of a study's experiment returns.

    Args:
        claims: what was measured, by claim id; every claim of the study has an entry.
        summary: two or three sentences for the head of the report.
        blocks: texts, tables and figures of the report, in order.
        picture: small Plotly figure that shows the main result in the gallery.
    """

    claims: Mapping[str, Measured]
    summary: str
    blocks: Sequence[Text | Table | Figure | Code]
    picture: PlotlyFigure


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim after the experiment: what came out and what that means."""

    claim: Claim
    ours: str
    verdict: ClaimVerdict
    numbers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; infinities become strings that ``float`` reads back."""
        numbers = {k: json_number(v) for k, v in self.numbers.items()}
        words = {"id": self.claim.id, "text": self.claim.text, "paper": self.claim.paper, "test": self.claim.test}
        return {**words, "ours": self.ours, "verdict": self.verdict, "numbers": numbers}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A study after it ran.

    Args:
        study: the study.
        budget: the budget it ran with.
        seeds: the seeds it used.
        results: one result per claim, in the study's order.
        measurement: what the experiment returned.
    """

    study: Study
    budget: Budget
    seeds: tuple[int, ...]
    results: tuple[ClaimResult, ...]
    measurement: Measurement

    @property
    def presentation(self) -> Measurement:
        """The same by the name that the kit gives it."""
        return self.measurement

    @property
    def verdict(self) -> ClaimVerdict:
        """*reproduced* or *refuted* if every tested claim is, *partly* otherwise."""
        words = {result.verdict for result in self.results} - {"not tested"}
        if not words:
            return "not tested"
        return words.pop() if len(words) == 1 else "partly"

    def report(self) -> Report:
        """Return the report: the claims with their verdicts, then what the experiment shows."""
        from poise.report import Report, Table, Text

        columns = ["Claim", "Paper", "Here", "Verdict", "Test"]
        rows = [[r.claim.text, r.claim.paper, r.ours, r.verdict, r.claim.test] for r in self.results]
        paper = self.study.paper
        blocks = [
            Table(
                "Claims", columns, rows, caption="Each verdict is computed from this run's numbers by the test named."
            ),
            *self.measurement.blocks,
            Text(f"[{paper.citation}]({paper.url})", title="Paper"),
        ]
        meta = {"study": self.study.slug, "budget": self.budget, "seeds": list(self.seeds)}
        return Report(self.study.title, self.measurement.summary, blocks=blocks, meta=meta, verdict=self.verdict)


@dataclass(frozen=True, slots=True)
class Study:
    """The executable test of one paper's claims.

    A study's file holds its claims, one function per test, the experiment, and ``STUDY``, which ties them together.

    Args:
        slug: name on the command line, for example ``"fair-coins"``; the file is named after it.
        title: one line that says what is tested.
        room: room of the package that the study exercises.
        paper: the paper.
        claims: its claims.
        seeds: how many seeds each budget uses when the caller does not say.
        measure: ``measure(budget, seeds, progress)`` runs the experiment. It never sees a verdict.

    Raises:
        ValueError: if two claims share an id, or a budget has no number of seeds.
    """

    slug: str
    title: str
    room: str
    paper: Paper
    claims: tuple[Claim, ...]
    seeds: Mapping[Budget, int]
    measure: Callable[[Budget, Sequence[int], Progress], Measurement]

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
            progress: called with the share done and a few words.

        Raises:
            ValueError: if ``budget`` is unknown, ``seeds`` is below 1, or the experiment left a claim out or measured
                NaN.
        """
        if budget not in BUDGETS:
            raise ValueError(f"budget must be one of {BUDGETS}, got {budget!r}")
        count = self.seeds[budget] if seeds is None else seeds
        if count < 1:
            raise ValueError(f"seeds must be at least 1, got {count}")
        used = tuple(range(seed, seed + count))
        measurement = self.measure(budget, used, progress or _silent)
        results = tuple(_judge(claim, measurement.claims) for claim in self.claims)
        return Outcome(self, budget, used, results, measurement)


def _silent(share: float, words: str) -> None:
    """Progress that nobody watches."""


def _judge(claim: Claim, measured: Mapping[str, Measured]) -> ClaimResult:
    if claim.id not in measured:
        raise ValueError(f"the experiment returned nothing for claim {claim.id!r}; it has {sorted(measured)}")
    ours, numbers = measured[claim.id].ours, {k: float(v) for k, v in measured[claim.id].numbers.items()}
    undefined = [name for name, value in numbers.items() if math.isnan(value)]
    if undefined:  # every comparison with NaN is false, so a judge would quietly say "refuted" or worse
        raise ValueError(f"claim {claim.id!r} cannot be judged: {undefined} are NaN")
    return ClaimResult(claim, ours, claim.judge(numbers) if numbers else "not tested", numbers)
