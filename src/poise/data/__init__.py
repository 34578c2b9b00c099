"""Small real data sets that need no network, and how to divide them."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.data.coin_flips import CoinFlips, load_coin_flips
    from poise.data.dataset import Dataset, load_breast_cancer, load_diabetes, load_digits
    from poise.data.fashion_mnist import has_fashion_mnist, load_fashion_mnist
    from poise.data.split import standardize, train_validation_split
    from poise.data.text import TextCorpus, load_text

__all__ = [
    "CoinFlips",
    "Dataset",
    "TextCorpus",
    "has_fashion_mnist",
    "load_breast_cancer",
    "load_coin_flips",
    "load_diabetes",
    "load_digits",
    "load_fashion_mnist",
    "load_text",
    "standardize",
    "train_validation_split",
]

lazy_front(__name__)
