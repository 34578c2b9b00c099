"""Logs of interactions that several tests need."""

import numpy as np
import pandas as pd
import pytest

from poise.recsys import EventLog


@pytest.fixture(scope="session")
def cycle_log():
    """Makes a log in which every user walks round the items, so that the next one is certain."""

    def make(users=12, items=7, length=15):
        steps = np.arange(length)
        rows = [(user, (user + step) % items, step) for user in range(users) for step in steps]
        return EventLog.from_frame(pd.DataFrame(rows, columns=["user", "item", "time"]))

    return make
