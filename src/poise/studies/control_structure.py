"""Study of "Learning Control-Oriented Dynamical Structure from Data": 100 samples of a birotor, and two loops to fly.

A model that is fitted plainly, and one fitted together with a factorisation of its tracking error. On the first, a
linear quadratic regulator; on the second, the same regulator and a Riccati equation at the current error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from poise.control import Birotor, SDCModel, SDREController, simulate_tracking
from poise.control.sdre.sdre_controller import Factorize
from poise.report import Text, line_chart
from poise.studies.kit import Budget, ClaimResult, Measured, Paper, Presentation, Progress, Study, claim
from poise.studies.kit.grid import run_grid
from poise.studies.kit.one_thread import one_thread
from poise.studies.kit.rules import at_least, at_most
from poise.studies.kit.tables import seed_table
from poise.studies.kit.words import listed

PLANT = Birotor()
SAMPLES, RATE = 100, 150.0
STATES = (10.0, 10.0, math.pi / 3, 2.0, 1.0, math.pi / 3)
LOST = 1000.0  # m: a run that is further away on average, or that diverged, counts as this far
EXACT, NAIVE, JOINT, SDRE = "LQR, exact model", "LQR, plain fit", "LQR, joint fit", "SD-LQR, joint fit"
ARMS = (EXACT, NAIVE, JOINT, SDRE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a budget buys."""

    fit_steps: int = 1500
    seconds: float = 10.0
    hidden: tuple[int, ...] = (128, 128)
    n_jobs: int = -1


PLANS: dict[Budget, Plan] = {
    "tiny": Plan(20, 0.2, (16, 16), n_jobs=1),
    "default": Plan(),
    "full": Plan(10_000),
}

# --- the data and the flight -------------------------------------------------------------------------------------


def samples(seed: int) -> tuple[Float[Tensor, "samples 6"], Float[Tensor, "samples 2"], Float[Tensor, "samples 6"]]:
    """Return random states and inputs near hover, and the exact velocities of the state."""
    generator = torch.Generator().manual_seed(seed)
    draws = 2 * torch.rand(SAMPLES, 8, generator=generator, dtype=torch.float64) - 1
    x, u = torch.tensor(STATES, dtype=torch.float64) * draws[:, :6], PLANT.hover + draws[:, 6:]
    return x, u, PLANT(x, u)


def fitted(joint: bool, plan: Plan, seed: int) -> SDCModel:
    """Return a model of the samples of a seed."""
    x, u, dx = samples(seed)
    bounds = tuple(-side for side in STATES), STATES
    model = SDCModel(plan.hidden, 0.5, bounds, max_steps=plan.fit_steps, joint=joint, random_state=seed)
    return model.fit(x.numpy(), u.numpy(), dx.numpy())


def exact_linearisation(xr: Tensor, ur: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Jacobian of the exact dynamics at the reference: their factorisation at no error."""
    return PLANT.factorize(xr, ur, torch.zeros_like(e))


@dataclass(frozen=True, slots=True)
class Flight:
    """Where a controller flew.

    Attributes:
        error: root mean square distance from the reference's position, in m, at most ``LOST``.
        distance: from the reference's position, at every sample.
    """

    error: float
    distance: NDArray[np.float64]


def fly(factorize: Factorize, seconds: float) -> Flight:
    """Track the double loop from rest, with inputs held between samples and rotors that have limits."""
    reference = PLANT.double_loop(torch.arange(round(seconds * RATE) + 1, dtype=torch.float64) / RATE)
    start = reference[0][0].clone()
    start[2:] = 0.0
    weight = PLANT.mass * PLANT.gravity
    controller = SDREController(factorize, torch.eye(6), torch.eye(2), 0.1 * weight, 2 * weight)
    run = simulate_tracking(PLANT, controller, start, reference, 1 / RATE)
    error = float(run.rms(slice(0, 2)))
    distance = (run.states - run.reference)[:, :2].norm(dim=-1)
    return Flight(min(error, LOST), np.minimum(np.nan_to_num(distance.numpy(), nan=LOST), LOST))


# --- the experiment ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Flights by arm, one a seed; the exact model has no seed."""

    plan: Plan
    flights: Mapping[str, Sequence[Flight]]

    def errors(self, arm: str) -> NDArray[np.float64]:
        """Return the tracking error of each seed."""
        return np.array([flight.error for flight in self.flights[arm]])

    def log2_ratio(self, arm: str, other: str) -> NDArray[np.float64]:
        """Return for each seed how often the error of the first has to be halved to be that of the second."""
        return np.asarray(np.log2(self.errors(arm) / self.errors(other)))


def experiment(budget: Budget, seeds: Sequence[int], progress: Progress) -> Results:
    """Fit both models for each seed and fly with all controllers."""
    plan = PLANS[budget]

    def run(kind: str, seed: int) -> dict[str, Flight]:
        with one_thread():
            if kind == "exact":
                return {EXACT: fly(exact_linearisation, plan.seconds)} if seed == seeds[0] else {}
            model = fitted(kind == "joint", plan, seed)
            flights = {JOINT if kind == "joint" else NAIVE: fly(model.linearize, plan.seconds)}
            return flights | ({SDRE: fly(model.factorize, plan.seconds)} if kind == "joint" else {})

    found = run_grid(run, ["joint", "plain", "exact"], seeds, progress, plan.n_jobs, "{} model".format)
    every = [flights for runs in found.values() for flights in runs]
    return Results(plan, {arm: [flights[arm] for flights in every if arm in flights] for arm in ARMS})


# --- the claims --------------------------------------------------------------------------------------------------


@claim(
    "tracking",
    "With 100 samples, a Riccati equation on the learned factorisation tracks two loops; linear regulators do not.",
    paper="SD-LQR follows a double loop, LQR on the learned model and a learned contraction metric fail; figures",
    protocol="Root mean square distance from the reference in 10 s at 150 Hz, lost runs counted as 1000 m. Halvings: "
    "base-2 logarithm of the error of LQR on the joint, and on the plain fit, over that of SD-LQR, mean of seeds.",
    reproduced=at_most("median_error", 1.0)
    & at_least("halvings_joint", 1.0)
    & at_least("halvings_plain", math.log2(20)),
    refuted=at_most("halvings_plain", 1.0),
    over_seeds=["halvings_joint", "halvings_plain"],
)
def tracking(results: Results) -> Measured:
    joint, plain = results.log2_ratio(JOINT, SDRE), results.log2_ratio(NAIVE, SDRE)
    words = (
        f"errors by seed: SD-LQR {listed(results.errors(SDRE), '.2f')} m, LQR on the joint fit "
        f"{listed(results.errors(JOINT), '.2f')} m, on the plain fit {listed(results.errors(NAIVE), '.3g')} m; LQR "
        f"with the exact model {results.errors(EXACT)[0]:.2f} m"
    )
    numbers = {
        "median_error": float(np.median(results.errors(SDRE))),
        "halvings_joint": joint.mean(),
        "halvings_plain": plain.mean(),
    }
    return Measured(words, numbers, {"halvings_joint": joint, "halvings_plain": plain})


@claim(
    "regularisation",
    "Learning the factorisation along with the model already helps the linear regulator.",
    paper="LQR with the jointly learned dynamics is better than with the plain fit; figure",
    protocol="Halvings: base-2 logarithm of the error of LQR on the plain fit over that of LQR on the joint fit, mean "
    "of seeds.",
    reproduced=at_least("halvings", math.log2(5)),
    refuted=at_most("halvings", 0.0),
    over_seeds=["halvings"],
)
def regularisation(results: Results) -> Measured:
    halvings = results.log2_ratio(NAIVE, JOINT)
    factors = listed(2**halvings, ".3g")
    return Measured(
        f"the error is divided by {factors} (by seed)", {"halvings": halvings.mean()}, {"halvings": halvings}
    )


# --- the report --------------------------------------------------------------------------------------------------


def present(results: Results, claims: Mapping[str, ClaimResult]) -> Presentation:
    """Put figure, table and summary together."""
    lines = {}
    for arm in ARMS:
        distance = np.median([flight.distance for flight in results.flights[arm]], axis=0)
        lines[arm] = (np.arange(len(distance)) / RATE, np.maximum(distance, 1e-3))
    picture = line_chart(
        "Distance from the double loop", lines, "time in s", "distance in m, median of seeds", log_y=True
    )
    errors = {arm: results.errors(arm) for arm in ARMS}
    return Presentation(
        f"With {SAMPLES} samples: {claims['tracking'].text}. From the plain to the joint fit alone, "
        f"{claims['regularisation'].text}.",
        [
            picture,
            seed_table("Tracking errors", ["controller"], errors, "mean error in m", "The exact model has no seed."),
            Text(
                f"Both fits: Adam, {results.plan.fit_steps} steps (the paper: 50,000), learning rate 0.001 that falls "
                "linearly over the second half, two hidden layers; the joint fit adds 512 unlabelled states a step. "
                "Q and R are identities for all controllers, rotor forces are limited to 0.1 and 2 times the weight, "
                "and a flight starts on the reference's position at rest. The contraction-metric controller of the "
                "paper was not run, nor were other numbers of samples.",
                title="How to read it",
            ),
        ],
        picture.figure,
    )


STUDY = Study(
    slug="control-structure",
    title="Does a learned factorisation keep a tracking controller stable with 100 samples?",
    room="control",
    paper=Paper("Learning Control-Oriented Dynamical Structure from Data", "Richards et al.", 2023, "2302.02529"),
    seeds={"tiny": 2, "default": 3, "full": 5},
    experiment=experiment,
    claims=(tracking, regularisation),
    present=present,
)
