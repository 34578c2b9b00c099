"""Children of the Infant Health and Development Program, with simulated outcomes whose effects are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from poise.data.package_file import package_file

_CONTINUOUS = ("bw", "b.head", "preterm", "birth.o", "nnhealth", "momage")
_BINARY = (
    "sex",
    "twin",
    "b.marr",
    "mom.lths",
    "mom.hs",
    "mom.scoll",
    "cig",
    "first",
    "booze",
    "drugs",
    "work.dur",
    "prenatal",
    "site1",
    "site2",
    "site3",
    "site4",
    "site5",
    "site6",
    "site7",
)


@dataclass(frozen=True, slots=True, eq=False)
class Ihdp:
    """Covariates and treatment of 747 children; treated children of mothers who are not white are left out.

    Args:
        covariates: six standardised measurements, then 19 binary columns.
        treatment: 1 for the 139 children who were visited, 0 for the others.
        names: names of the columns.
    """

    covariates: Float[np.ndarray, "747 25"]
    treatment: Int64[np.ndarray, "747"]
    names: tuple[str, ...]

    def surface_b(self, seed: int) -> tuple[Float[np.ndarray, "747"], Float[np.ndarray, "747"]]:
        """Draw outcomes with response surface B, whose effects differ between children.

        ``Y(0) ~ N(exp((X + 0.5) b), 1)`` and ``Y(1) ~ N(X b - w, 1)``; each entry of ``b`` is 0, 0.1, 0.2, 0.3 or 0.4
        with probabilities 0.6, 0.1, 0.1, 0.1, 0.1, and ``w`` makes the mean effect on the treated 4.

        Args:
            seed: of the coefficients and the noise.

        Returns:
            The observed outcomes, and the effect of each child.
        """
        random = np.random.default_rng(seed)
        b = random.choice([0.0, 0.1, 0.2, 0.3, 0.4], size=self.covariates.shape[1], p=[0.6, 0.1, 0.1, 0.1, 0.1])
        untreated, treated = np.exp((self.covariates + 0.5) @ b), self.covariates @ b
        treated = treated - (treated - untreated)[self.treatment == 1].mean() + 4
        means = np.where(self.treatment == 1, treated, untreated)
        return means + random.standard_normal(len(means)), treated - untreated


def load_ihdp() -> Ihdp:
    """Load covariates and treatment of the program.

    Raises:
        DataNotFound: if the package ``econml`` 0.17.0, which holds the file, is not in the data folder.

    References:
        J. Hill (2011), Bayesian nonparametric modeling for causal inference, Journal of Computational and Graphical
        Statistics 20.
    """
    path = package_file("econml", "0.17.0", "econml/data/ihdp/sim.csv")
    rows = np.genfromtxt(path, delimiter=",", names=True, deletechars="")
    rows = rows[~((rows["treat"] == 1) & (rows["momwhite"] == 0))]
    continuous = np.stack([rows[name] for name in _CONTINUOUS], 1)
    continuous = (continuous - continuous.mean(0)) / continuous.std(0)
    binary = np.stack([rows[name] for name in _BINARY], 1)
    names = (*_CONTINUOUS, *_BINARY)
    return Ihdp(np.concatenate([continuous, binary], 1), rows["treat"].astype(np.int64), names)
