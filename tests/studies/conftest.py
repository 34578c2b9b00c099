"""Fixtures for studies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poise.studies.registry import load_study
from poise.studies.study import Outcome


@pytest.fixture
def run_tiny() -> Callable[[str], Outcome]:
    """Run a study at its smallest budget; its progress must go forward, and to the end."""

    def run(slug: str) -> Outcome:
        shares: list[float] = []
        outcome = load_study(slug).run("tiny", progress=lambda share, words: shares.append(share))
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0, rel=0, abs=1e-9)
        return outcome

    return run
