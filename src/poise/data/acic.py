"""The simulated outcomes of the 2016 causal inference challenge on real covariates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = "causallib/datasets/data/acic_challenge_2016"


@dataclass(frozen=True, slots=True, eq=False)
class Acic:
    """One simulation of the challenge.

    Args:
        covariates: 4,802 rows and 58 columns, three of them (``x_2``, ``x_21``, ``x_24``) categories as text.
        outcomes: for the same rows ``z``, the treatment; ``y0`` and ``y1``, both potential outcomes; ``mu0`` and
            ``mu1``, their means.
    """

    covariates: pd.DataFrame
    outcomes: pd.DataFrame

    @property
    def y(self) -> pd.Series:
        """The observed outcome."""
        return self.outcomes["y1"].where(self.outcomes["z"] == 1, self.outcomes["y0"]).rename("y")


def load_acic(simulation: int = 1) -> Acic:
    """Load the covariates and one of ten simulated treatments and outcomes.

    Args:
        simulation: which one, 1 to 10.

    Raises:
        ValueError: if there is no such simulation.
        DataNotFound: if the package ``causallib`` 0.10.0, which holds the files, is not in the data folder.
        ImportError: if pandas is missing; it is in the extra ``tables``.

    References:
        V. Dorie, J. Hill, U. Shalit, M. Scott, D. Cervone (2019), Automated versus do-it-yourself methods for causal
        inference, Statistical Science 34.
    """
    import pandas as pd

    if simulation not in range(1, 11):
        raise ValueError(f"simulation must be a whole number from 1 to 10, got {simulation!r}")
    tables = [f"{_FOLDER}/{name}.csv" for name in ("x", f"zymu_{simulation}")]
    return Acic(*(pd.read_csv(package_file("causallib", "0.10.0", table)) for table in tables))
