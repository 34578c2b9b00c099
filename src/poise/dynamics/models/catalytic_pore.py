"""A catalytic pore: species flow through a cylinder, settle on its wall, react there and leave again."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.systems.fixed_point import Method, find_fixed_point, integrate
from poise.dynamics.systems.flow import Flow

Reaction = Callable[[Tensor], Tensor]


def reversible_reaction(forward: float = 1.0, backward: float = 0.5) -> Reaction:
    """Return the chemistry of A1 + A2 <-> A3 by mass action.

    Args:
        forward: rate constant of A1 + A2 -> A3, not negative.
        backward: rate constant of A3 -> A1 + A2, not negative.

    Raises:
        ValueError: if a rate constant is negative.
    """
    if not (forward >= 0 and backward >= 0):
        raise ValueError(f"rate constants must not be negative, got {forward} and {backward}")

    def rate(s: Tensor) -> Tensor:
        rho = forward * s[0] * s[1] - backward * s[2]
        return torch.stack([-rho, -rho, rho])

    return rate


@dataclass(frozen=True, eq=False)
class CatalyticPore:
    r"""Diffusion, advection, sorption and surface chemistry in a cylinder, by axisymmetric finite volumes.

    .. math::
        \partial_t c_i + u \cdot \nabla c_i &= d_i \Delta c_i && \text{in the bulk} \\
        -d_i \partial_\nu c_i &= r_i && \text{on the wall} \\
        \partial_t s_i &= d^s_i \Delta_\Sigma s_i + r_i + r^{ch}_i(s) && \text{on the wall}

    with sorption :math:`r = k^{ad} c\,(1 - s/s_{max}) - k^{de} s` (Langmuir; Henry without :math:`s_{max}`), the total
    flux of the feed at the inflow, free outflow, and no flux of the wall over its rims. Advection is upwind, which adds
    diffusion of half the mean velocity times the cell length: refine the grid to reduce it.

    A state is a flat float64 vector: for each species the bulk (radius, then length), then the wall.

    Args:
        nr: cells over the radius.
        nz: cells over the length.
        radius: of the cylinder.
        length: of the cylinder.
        diffusion: bulk diffusivities :math:`d_i` of the N species, positive.
        surface_diffusion: wall diffusivities :math:`d^s_i`, positive.
        adsorption: :math:`k^{ad}_i`, not negative; 0 takes the species' wall off its bulk if desorption is 0 too.
        desorption: :math:`k^{de}_i`, not negative.
        saturation: :math:`s_{max}` of each species for Langmuir sorption; ``None`` for Henry.
        reaction: takes the wall concentrations (N, cells), returns their rates of change, cell by cell.
        velocity: mean axial velocity of a Poiseuille profile, or the velocities of the ``nr`` annuli, not negative; an
            array of shape (nr, nz + 1) gives them at every cell face. 0 closes the pore.
        feed: concentrations of the inflow, not negative.

    Raises:
        ValueError: if a parameter is out of range, numbers of species differ, or the velocity has a divergence.

    References:
        Gesse, Koehne and Saal (2023). Stability Analysis for a Class of Heterogeneous Catalysis Models.
        arXiv:2308.01049.
    """

    nr: int = 8
    nz: int = 16
    radius: float = 1.0
    length: float = 2.0
    diffusion: Sequence[float] = (1.0, 0.8, 0.5)
    surface_diffusion: Sequence[float] = (0.1, 0.08, 0.05)
    adsorption: Sequence[float] = (2.0, 1.5, 1.0)
    desorption: Sequence[float] = (1.0, 1.0, 0.7)
    saturation: Sequence[float] | None = None
    reaction: Reaction = field(default_factory=reversible_reaction)
    velocity: float | Sequence[float] | np.ndarray = 0.5
    feed: Sequence[float] = (1.0, 0.8, 0.0)

    def __post_init__(self) -> None:
        if self.nr < 1 or self.nz < 1:
            raise ValueError(f"nr and nz must be at least 1, got {self.nr} and {self.nz}")
        for name in ("radius", "length"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("diffusion", "surface_diffusion", "saturation"):
            self._check_species(name, positive=True)
        for name in ("adsorption", "desorption", "feed"):
            self._check_species(name, positive=False)
        shape = tuple(self.reaction(torch.zeros(self.n_species, self.nz, dtype=torch.float64)).shape)
        if shape != (self.n_species, self.nz):
            raise ValueError(
                f"reaction must return one rate per species and wall cell, {(self.n_species, self.nz)}; got {shape}"
            )
        _ = self._flows  # raises for a wrong velocity now, not in the first step

    @property
    def n_species(self) -> int:
        """Number of species."""
        return len(self.diffusion)

    @property
    def n_unknowns(self) -> int:
        """Length of a state."""
        return self.n_species * (self.nr + 1) * self.nz

    @property
    def cell_sizes(self) -> Float[Tensor, " n"]:
        """Volume or wall area of the cell of each unknown."""
        return torch.from_numpy(np.tile(self._sizes(), self.n_species))

    def state(
        self,
        bulk: Sequence[float] | Float[Tensor, "species nr nz"],
        surface: Sequence[float] | Float[Tensor, "species nz"],
    ) -> Float[Tensor, " n"]:
        """Return the state of given concentrations.

        Args:
            bulk: one number per species, or one per cell.
            surface: one number per species, or one per wall cell.

        Raises:
            ValueError: if a concentration is negative or not finite, or the shape is wrong.
        """
        blocks = []
        for name, values, cells in (("bulk", bulk, (self.nr, self.nz)), ("surface", surface, (self.nz,))):
            given = torch.as_tensor(values, dtype=torch.float64)
            if given.shape == (self.n_species,):
                given = given.reshape(-1, *[1] * len(cells)).expand(-1, *cells)
            if given.shape != (self.n_species, *cells):
                raise ValueError(f"{name} must have shape {(self.n_species, *cells)}, got {tuple(given.shape)}")
            bad = ~((given >= 0) & torch.isfinite(given)).reshape(self.n_species, -1).all(dim=1)
            if bad.any():
                raise ValueError(f"{name} must be finite and not negative; species {int(bad.nonzero()[0])} is")
            blocks.append(given.reshape(self.n_species, -1))
        return torch.cat(blocks, dim=1).reshape(-1)

    def split(self, x: Float[Tensor, " n"]) -> tuple[Float[Tensor, "species nr nz"], Float[Tensor, "species nz"]]:
        """Return the bulk and wall concentrations of a state."""
        blocks = x.reshape(self.n_species, -1)
        cells = self.nr * self.nz
        return blocks[:, :cells].reshape(self.n_species, self.nr, self.nz), blocks[:, cells:]

    def totals(self, x: Float[Tensor, " n"]) -> Float[Tensor, " species"]:
        """Return how much there is of each species, in the bulk and on the wall."""
        return (self.cell_sizes * x).reshape(self.n_species, -1).sum(dim=1)

    def net_inflow(self, x: Float[Tensor, " n"]) -> Float[Tensor, " species"]:
        """Return inflow minus outflow of each species, amounts per unit of time."""
        flows = torch.from_numpy(self._flows)
        feed = torch.tensor(self.feed, dtype=torch.float64)
        return feed * flows.sum() - self.split(x)[0][:, :, -1] @ flows

    def rate(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the time derivative of a state."""
        bulk, surface = self.split(x)
        flux = self._sorption(bulk[:, -1], surface)[0]
        change = torch.from_numpy(self._transport @ x.numpy() + self._source()).reshape(self.n_species, -1)
        cells = self.nr * self.nz
        change[:, cells - self.nz : cells] -= flux * self._wall_area() / self._volumes()[-1]
        change[:, cells:] += flux + self.reaction(surface)
        return change.reshape(-1)

    def jacobian(self, x: Float[Tensor, " n"]) -> scipy.sparse.csc_matrix:
        """Return the derivative of :meth:`rate`, as a sparse matrix."""
        bulk, surface = self.split(x)
        _, by_bulk, by_surface = self._sorption(bulk[:, -1], surface)
        block, cells = (self.nr + 1) * self.nz, self.nr * self.nz
        wall = (np.arange(self.n_species)[:, None] * block + cells) + np.arange(self.nz)
        beside = wall - self.nz
        loss = self._wall_area() / self._volumes()[-1]
        rows = [wall, wall, beside, beside]
        columns = [beside, wall, beside, wall]
        values = [by_bulk.numpy(), by_surface.numpy(), -loss * by_bulk.numpy(), -loss * by_surface.numpy()]
        for i, slopes in enumerate(self._reaction_slopes(surface).numpy()):
            values.append(slopes)
            rows.append(np.broadcast_to(wall[i], wall.shape))
            columns.append(wall)
        entries = np.concatenate([v.ravel() for v in values])
        at = np.concatenate([r.ravel() for r in rows]), np.concatenate([c.ravel() for c in columns])
        return scipy.sparse.csc_matrix(self._transport + scipy.sparse.coo_matrix((entries, at), (self.n_unknowns,) * 2))

    def flow(self) -> Flow:
        """Return the pore as a flow with a sparse Jacobian."""
        return Flow(self.rate, jac=self.jacobian)

    def equilibrium(self, start: Float[Tensor, " n"], duration: float = 50.0) -> Float[Tensor, " n"]:
        """Return the equilibrium that a start leads to.

        The pore is followed for ``duration`` and the end is polished by Newton's method; in a closed pore, whose
        equilibria form a manifold, by Newton-Krylov steps, which keep the conserved totals.

        Args:
            start: where to start, from :meth:`state`.
            duration: how long to follow it.

        Raises:
            NotConverged: if the end is near no equilibrium.
        """
        flow = self.flow()
        late = integrate(flow, start, duration, rtol=1e-6)
        method: Method = "newton" if self._flows.any() else "newton-krylov"
        return find_fixed_point(flow, late, method, tol=1e-12, max_steps=20).x

    def reaction_energy(self, x: Float[Tensor, " n"]) -> float:
        r"""Return the largest eigenvalue of the reaction's part of an energy balance; at most 0 proves stability.

        The energy weighs bulk by :math:`a_i k^{ad}_i` and wall by :math:`a_i k^{de}_i` with
        :math:`a_i = 1/(k^{de}_i s_i)`. Transport and sorption only lower it, so an equilibrium is stable where the
        symmetric part of :math:`\mathrm{diag}(1/s_i) R`, with :math:`R` the derivative of the reaction, is negative
        semidefinite along the wall. At detailed balance it is. The condition is sufficient, not necessary.

        Args:
            x: an equilibrium with positive wall concentrations.

        Raises:
            ValueError: if a wall concentration is not positive.
        """
        surface = self.split(x)[1]
        if not bool((surface > 0).all()):
            raise ValueError("x must have positive wall concentrations: the energy is weighed by their inverse")
        form = (self._reaction_slopes(surface) / surface[:, None]).permute(2, 0, 1)
        return float(torch.linalg.eigvalsh((form + form.mT) / 2).max())

    def _reaction_slopes(self, surface: Float[Tensor, "species nz"]) -> Float[Tensor, "species by nz"]:
        """Return how each species' rate in a cell changes with each concentration there."""
        with torch.enable_grad():
            at = surface.detach().requires_grad_()
            sums = self.reaction(at).sum(dim=1)  # a cell's rate depends on that cell alone
            if not sums.requires_grad:  # a constant reaction
                return surface.new_zeros(self.n_species, *surface.shape)
            slopes = [torch.autograd.grad(rate, at, retain_graph=True, materialize_grads=True)[0] for rate in sums]
        return torch.stack(slopes)

    def _check_species(self, name: str, positive: bool) -> None:
        values = getattr(self, name)
        if values is None:
            return
        if len(values) != self.n_species:
            raise ValueError(f"{name} must have one entry per species, {self.n_species}; got {len(values)}")
        for i, value in enumerate(values):
            if not ((value > 0 if positive else value >= 0) and value < math.inf):
                raise ValueError(f"{name} must be {'positive' if positive else 'at least 0'}; species {i} has {value}")

    def _radii(self) -> np.ndarray:
        return np.linspace(0.0, self.radius, self.nr + 1)

    def _volumes(self) -> np.ndarray:
        return np.pi * np.diff(self._radii() ** 2) * self.length / self.nz

    def _wall_area(self) -> float:
        return 2.0 * np.pi * self.radius * self.length / self.nz

    def _sizes(self) -> np.ndarray:
        return np.append(np.repeat(self._volumes(), self.nz), np.full(self.nz, self._wall_area()))

    @functools.cached_property
    def _flows(self) -> np.ndarray:
        """Return the volume that passes each annulus per unit of time."""
        r = self._radii()
        given = np.asarray(self.velocity, dtype=float)
        if given.ndim == 0:
            through = 2.0 * given * np.pi * (r**2 - r**4 / (2.0 * self.radius**2))
            flows = np.diff(through)
        else:
            shapes = (self.nr,), (self.nr, self.nz + 1)
            if given.shape not in shapes:
                raise ValueError(f"velocity must have shape {shapes[0]} or {shapes[1]}, got {given.shape}")
            faces = given.reshape(self.nr, -1)
            divergence = float(np.abs(faces - faces[:, :1]).max())
            if divergence > 1e-12 * max(1.0, float(np.abs(faces).max())):
                raise ValueError(
                    f"velocity must be free of divergence: along the pore it changes by up to {divergence:.3g}"
                )
            flows = faces[:, 0] * np.pi * np.diff(r**2)
        if not (np.isfinite(flows).all() and (flows >= 0).all()):
            raise ValueError("velocity must be finite and point from inflow to outflow (not be negative)")
        return flows

    @functools.cached_property
    def _transport(self) -> scipy.sparse.csr_matrix:
        """Return diffusion and advection of all species."""
        axial, dz, face = _chain(np.ones(self.nz - 1)), self.length / self.nz, np.pi * np.diff(self._radii() ** 2)
        per_volume, eye = scipy.sparse.diags_array(1.0 / self._volumes()), scipy.sparse.eye_array(self.nz)
        radial = _chain(2.0 * np.pi * self._radii()[1:-1] * dz / (self.radius / self.nr))
        diffuse = scipy.sparse.kron(per_volume @ radial, eye)
        diffuse = diffuse + scipy.sparse.kron(per_volume @ scipy.sparse.diags_array(face / dz), axial)
        upwind = scipy.sparse.eye_array(self.nz, k=-1) - eye
        advect = scipy.sparse.kron(per_volume @ scipy.sparse.diags_array(self._flows), upwind)
        blocks = []
        for bulk, surface in zip(self.diffusion, self.surface_diffusion, strict=True):
            blocks += [bulk * diffuse + advect, surface * axial / dz**2]
        return scipy.sparse.csr_matrix(scipy.sparse.block_diag(blocks))

    def _source(self) -> np.ndarray:
        """Return what the feed adds to the first row of cells."""
        rows = np.zeros((self.n_species, (self.nr + 1) * self.nz))
        rows[:, : self.nr * self.nz : self.nz] = np.outer(np.asarray(self.feed), self._flows / self._volumes())
        return rows.ravel()

    def _sorption(self, beside: Tensor, surface: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the flux onto the wall per area and its derivatives by the cell beside the wall and by the wall."""
        ad, de, d = (
            torch.tensor(v, dtype=torch.float64)[:, None] for v in (self.adsorption, self.desorption, self.diffusion)
        )
        free = torch.ones_like(surface)
        slope = torch.zeros_like(surface)
        if self.saturation is not None:
            limit = torch.tensor(self.saturation, dtype=torch.float64)[:, None]
            free, slope = 1.0 - surface / limit, -1.0 / limit
        # The concentration at the wall is eliminated: what diffuses over the last half cell is what adsorbs.
        half = self.radius / self.nr / (2.0 * d)
        resistance = 1.0 + ad * free * half
        flux = (ad * free * beside - de * surface) / resistance
        by_surface = (ad * slope * beside - de - flux * ad * slope * half) / resistance
        return flux, (ad * free / resistance).expand_as(flux), by_surface.expand_as(flux)


def _chain(conductances: np.ndarray) -> scipy.sparse.dia_array:
    """Return the exchange between neighbours in a row, with closed ends."""
    diagonal = -np.append(conductances, 0.0) - np.append(0.0, conductances)
    return scipy.sparse.dia_array(scipy.sparse.diags_array([diagonal, conductances, conductances], offsets=[0, 1, -1]))
