"""Did those who stopped smoking gain weight? A follow-up of a health survey."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd


def load_nhefs() -> pd.DataFrame:
    """Load 1,629 smokers of 1971 with ``qsmk`` (stopped by 1982) and ``wt82_71`` (change of weight in kg).

    Missing values are as in the survey: 63 people have no weight of 1982.

    Raises:
        DataNotFound: if the package ``causallib`` 0.10.0, which holds the file, is not in the data folder.
        ImportError: if pandas is missing; it is in the extra ``tables``.

    References:
        M. Hernán and J. Robins (2020), Causal Inference: What If, Chapman & Hall.
    """
    import pandas as pd

    return pd.read_csv(package_file("causallib", "0.10.0", "causallib/datasets/data/nhefs/NHEFS.csv"))
