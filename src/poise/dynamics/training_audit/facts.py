"""Everything that the audit of a training run measured."""

from __future__ import annotations

from dataclasses import dataclass

from poise.curvature import SpectralDensity
from poise.dynamics.edge_of_stability.edge import EdgeDistance
from poise.dynamics.edge_of_stability.local_point import LocalPoint
from poise.dynamics.sgd_noise.sgd_stability import SGDStability
from poise.dynamics.training_audit.sharpness import AuditedSharpness


@dataclass(frozen=True, slots=True, eq=False)
class TrainingFacts:
    """All that an audit measured.

    Attributes:
        optimizer: name of the class of what trains the model.
        lr: its learning rate, of the first param group.
        plain_sgd: whether it is SGD without momentum and weight decay, which the analysis of noise is about.
        batch_size: examples a step.
        n: number of examples.
        used: how many were used.
        parameters: number of parameters.
        point: loss, gradient, kinks.
        plain: sharpness of the loss.
        preconditioned: sharpness preconditioned by an adaptive optimizer, ``None`` for others.
        distance: of the sharpness that decides, to the edge.
        largest_lr: learning rate that puts the optimizer on its edge: lowest, best and highest value.
        density: of the eigenvalues of the operator that decides.
        directions: part of each parameter in the squared length of the sharpest direction.
        noise: stability of SGD; ``None`` where it is not known.
        no_noise: why not.
        seed: of samples and start vectors.
    """

    optimizer: str
    lr: float
    plain_sgd: bool
    batch_size: int
    n: int
    used: int
    parameters: int
    point: LocalPoint
    plain: AuditedSharpness
    preconditioned: AuditedSharpness | None
    distance: EdgeDistance
    largest_lr: tuple[float, float, float]
    density: SpectralDensity
    directions: dict[str, float]
    noise: SGDStability | None
    no_noise: str | None
    seed: int

    @property
    def decisive(self) -> AuditedSharpness:
        """The sharpness that the edge is compared with."""
        return self.preconditioned or self.plain
