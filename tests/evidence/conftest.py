import numpy as np
import pytest

from poise.data import load_coin_flips
from poise.evidence import BinomialEvidence


def coin_rows():
    """Landed heads, trials, person, starting side: the arguments of BinomialEvidence.fit."""
    flips = load_coin_flips()
    heads = np.concatenate([flips.hsame, flips.hdiff])
    trials = np.concatenate([flips.started_heads, flips.flips - flips.started_heads])
    return heads, trials, list(flips.people) * 2, ["heads"] * len(flips) + ["tails"] * len(flips)


@pytest.fixture(scope="session")
def coins():
    return coin_rows()


@pytest.fixture(scope="session")
def fitted(coins):
    return BinomialEvidence().fit(*coins)
