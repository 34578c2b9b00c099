"""Small real data sets, some of them inside other packages, and how to divide them."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.data.acic import Acic, load_acic
    from poise.data.adult import load_adult
    from poise.data.coin_flips import CoinFlips, load_coin_flips
    from poise.data.dataset import Dataset, load_breast_cancer, load_diabetes, load_digits
    from poise.data.employment import EMPLOYMENT_FEATURES, Employment, load_employment
    from poise.data.fashion_mnist import has_fashion_mnist, load_fashion_mnist
    from poise.data.german_credit import load_german_credit
    from poise.data.ihdp import Ihdp, load_ihdp
    from poise.data.mnist_digits import load_mnist_digits
    from poise.data.movielens import MovieLens, load_movielens_100k
    from poise.data.nhefs import load_nhefs
    from poise.data.package_file import DataNotFound, package_file
    from poise.data.split import standardize, train_validation_split
    from poise.data.text import TextCorpus, load_text
    from poise.data.wooldridge import load_wooldridge

__all__ = [
    "EMPLOYMENT_FEATURES",
    "Acic",
    "CoinFlips",
    "DataNotFound",
    "Dataset",
    "Employment",
    "Ihdp",
    "MovieLens",
    "TextCorpus",
    "has_fashion_mnist",
    "load_acic",
    "load_adult",
    "load_breast_cancer",
    "load_coin_flips",
    "load_diabetes",
    "load_digits",
    "load_employment",
    "load_fashion_mnist",
    "load_german_credit",
    "load_ihdp",
    "load_mnist_digits",
    "load_movielens_100k",
    "load_nhefs",
    "load_text",
    "load_wooldridge",
    "package_file",
    "standardize",
    "train_validation_split",
]

lazy_front(__name__)
