"""Small real data sets that need no network, and how to divide them."""

from typing import TYPE_CHECKING

from poise._lazy import attach

if TYPE_CHECKING:
    from poise.data.coin_flips import CoinFlips, load_coin_flips
    from poise.data.dataset import Dataset, load_breast_cancer, load_diabetes, load_digits
    from poise.data.split import standardize, train_validation_split
    from poise.data.text import TextCorpus, load_text

__all__ = [
    "CoinFlips",
    "Dataset",
    "TextCorpus",
    "load_breast_cancer",
    "load_coin_flips",
    "load_diabetes",
    "load_digits",
    "load_text",
    "standardize",
    "train_validation_split",
]

attach(__name__)
