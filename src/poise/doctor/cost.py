"""What watching a run has cost its user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from poise.tools.clock import Seconds

_NONE = Seconds()
_APART = 0.01  # fractions of time and of CPU time that differ by less count as equal


@dataclass(frozen=True, slots=True)
class Cost:
    """The time that the run would not have taken without the watch.

    Args:
        start: until the script's first line, without what plain Python takes too; and finding the model.
        steps: what was done during the steps.
        report: the diagnosis, and writing the report; zero before it is written.
        total: the whole program, all of these included.
    """

    start: Seconds = _NONE
    steps: Seconds = _NONE
    report: Seconds = _NONE
    total: Seconds = _NONE

    @property
    def added(self) -> Seconds:
        """The sum of the three."""
        return self.start + self.steps + self.report

    @property
    def fraction(self) -> float:
        """What was added, as a fraction of the time that the program takes without it; 0 if that is not known."""
        return _ratio(self.added.wall, self.total.wall)

    @property
    def cpu_fraction(self) -> float:
        """The same of CPU time."""
        return _ratio(self.added.cpu, self.total.cpu)

    def sentence(self) -> str:
        """Return the cost in words, as ``"0.52 s to 8.5 s (6.1 %): start 0.12 s, steps 0.21 s, report 0.19 s"``."""
        cpu = f", {self.cpu_fraction:.1%} of CPU time" if self.cpu_fraction > self.fraction + _APART else ""
        own = self.total.wall - self.added.wall
        report = f"report {self.report.wall:.2f} s" if self.report.wall else "and then this report"
        return (
            f"{self.added.wall:.2f} s to {own:.1f} s ({self.fraction:.1%}{cpu}): "
            f"start {self.start.wall:.2f} s, steps {self.steps.wall:.2f} s, {report}"
        )

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """Rebuild the cost from :meth:`to_dict`."""
        return cls(**{name: Seconds(**seconds) for name, seconds in data.items()})


def _ratio(added: float, total: float) -> float:
    return added / (total - added) if total > added else 0.0
