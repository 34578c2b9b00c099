"""One hundred thousand ratings of films."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class MovieLens:
    """Ratings, films and users; ``user_id`` and ``item_id`` are whole numbers from 1.

    Args:
        ratings: 100,000 rows: ``user_id``, ``item_id``, ``rating`` (1 to 5), ``timestamp`` (seconds).
        items: 1,682 films: ``item_id``, ``movie_title``, ``release_year``, ``class``.
        users: 943 users: ``user_id``, ``age``, ``gender``, ``occupation``, ``zip_code``.
    """

    ratings: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame


def load_movielens_100k() -> MovieLens:
    """Load MovieLens 100k.

    Raises:
        DataNotFound: if the package ``recbole`` 1.2.1, which holds the files, is not in the data folder.
        ImportError: if pandas is missing; it is in the extra ``tables``.

    References:
        F. Harper and J. Konstan (2015), The MovieLens datasets: History and context, ACM Transactions on Interactive
        Intelligent Systems 5.
    """
    import pandas as pd

    members = [f"recbole/dataset_example/ml-100k/ml-100k.{part}" for part in ("inter", "item", "user")]
    paths = [package_file("recbole", "1.2.1", member) for member in members]
    tables = [pd.read_csv(path, sep="\t", dtype={"zip_code:token": str}, quoting=3) for path in paths]
    # A column's name carries its type after a colon.
    return MovieLens(*(table.rename(columns=lambda name: name.split(":")[0]) for table in tables))
