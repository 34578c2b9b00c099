"""Whose income is above 50,000 dollars? A census extract of 1994."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd


def load_adult() -> pd.DataFrame:
    """Load 32,561 people: 12 columns, and the label ``loan`` (``<=50K`` or ``>50K``); unknown categories are ``?``.

    Raises:
        DataNotFound: if the package ``xai`` 0.3.0, which holds the file, is not in the data folder.
        ImportError: if pandas is missing; it is in the extra ``tables``.

    References:
        B. Becker and R. Kohavi (1996), Adult, UCI Machine Learning Repository.
    """
    import pandas as pd

    # Texts begin with a blank there, and the first column numbers the rows.
    return pd.read_csv(package_file("xai", "0.3.0", "xai/data/census.csv"), index_col=0, skipinitialspace=True)
