"""Who in Massachusetts has a job: a deployed classifier, its labelled reference year and three years of production."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd

EMPLOYMENT_FEATURES = tuple(
    "AGEP SCHL MAR RELP DIS ESP CIT MIG MIL ANC NATIVITY DEAR DEYE DREM SEX RAC1P".split()  # noqa: SIM905
)
"""The sixteen inputs of the classifier: age, and fifteen categories."""


@dataclass(frozen=True, slots=True, eq=False)
class Employment:
    """A deployed classifier of employment, with its scores in ``predicted_probability`` and ``prediction``.

    Args:
        reference: 68,785 rows of 2015, with the label ``employed``.
        production: 208,892 rows of 2016 to 2018, in this order, without labels.
        targets: their labels, with columns ``id`` and ``employed``.
    """

    reference: pd.DataFrame
    production: pd.DataFrame
    targets: pd.DataFrame

    @property
    def labelled_production(self) -> pd.DataFrame:
        """The production rows with their labels in ``employed``, joined on ``id``."""
        return self.production.merge(self.targets, on="id", how="left", validate="one_to_one")


def load_employment() -> Employment:
    """Load the employment task of the American Community Survey with a classifier's scores.

    Raises:
        DataNotFound: if the package ``nannyml`` 0.13.1, which holds the files, is not in the data folder.
        ImportError: if pandas or pyarrow is missing; both are in the extra ``tables``.

    References:
        F. Ding, M. Hardt, J. Miller, L. Schmidt (2021), Retiring Adult: New datasets for fair machine learning,
        arXiv:2108.04884.
    """
    import pandas as pd

    names = ("reference", "analysis", "analysis_target")
    members = [f"nannyml/datasets/data/employment_MA_{name}.pq" for name in names]
    return Employment(*(pd.read_parquet(package_file("nannyml", "0.13.1", member)) for member in members))
