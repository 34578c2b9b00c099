"""Quadratic regression model: outputs of second degree in the parameters, the simplest system that sharpens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.dynamics.models.quadratic_surrogate import QuadraticSurrogate
from poise.dynamics.models.trajectory import State, Trajectory, follow


class QuadraticModel:
    """Least squares with residuals ``z(theta) = z_0 + J_0 theta + Q(theta, theta) / 2`` and loss ``|z|^2 / 2``.

    Gradient descent needs no parameters, for it is closed in the residuals and their Jacobian: ``z' = z - lr J J^T z +
    lr^2 Q(J^T z, J^T z) / 2`` and ``J' = J - lr Q(J^T z, .)``. The largest eigenvalue of ``J J^T`` rises (progressive
    sharpening) and, where it starts and the residuals are right, comes to rest at ``2 / lr``, the edge of stability.
    Shapes with leading dimensions (...) are independent runs with one ``Q``.

    Args:
        Q: second derivatives of the outputs, shape (outputs, parameters, parameters), symmetric in the last two.
        J0: Jacobian at the start, shape (..., outputs, parameters).
        z0: residuals at the start, shape (..., outputs).
        symmetrise: take ``(Q + Q^T) / 2``, which is the same model, instead of refusing a ``Q`` that is not symmetric.

    Raises:
        ValueError: if shapes or types do not fit together, or ``Q`` is not symmetric.

    References:
        Agarwala, Pedregosa and Pennington (2023). Second-order regression models exhibit progressive sharpening to the
        edge of stability. arXiv:2210.04860
    """

    def __init__(
        self,
        Q: Float[Tensor, "outputs parameters parameters"],
        J0: Float[Tensor, "... outputs parameters"],
        z0: Float[Tensor, "... outputs"],
        *,
        symmetrise: bool = False,
    ) -> None:
        _check_tensors(Q, J0, z0)
        self.Q = 0.5 * (Q + Q.mT) if symmetrise else Q
        if not torch.allclose(self.Q, self.Q.mT, rtol=1e-6, atol=1e-6 * float(self.Q.abs().max())):
            raise ValueError(
                "Q must be symmetric in its last two dimensions; pass symmetrise=True for (Q + Q^T) / 2, which is the "
                "same model"
            )
        self.J, self.z = torch.broadcast_tensors(J0, z0[..., None])[0], z0
        self.z = z0.expand(self.J.shape[:-1])

    @classmethod
    def two_parameter(
        cls,
        eps: float,
        a: float | Float[Tensor, "..."],
        b: float | Float[Tensor, "..."],
        z: float | Float[Tensor, "..."],
    ) -> QuadraticModel:
        """Return the model of one output and two parameters with ``Q = diag(1, -eps)``, in float64.

        Args:
            eps: size of the negative eigenvalue.
            a: derivative of the output in the first parameter.
            b: derivative in the second.
            z: residual. ``a``, ``b`` and ``z`` may be tensors: independent runs.

        Raises:
            ValueError: if ``eps`` is not positive.
        """
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        first, second, residual = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (a, b, z)))
        Q = torch.diag(torch.tensor([1.0, -eps], dtype=torch.float64))[None]
        return cls(Q, torch.stack([first, second], dim=-1)[..., None, :], residual[..., None])

    @classmethod
    def random(
        cls,
        D: int,
        P: int,
        lam0: float,
        rz: float | Float[Tensor, "..."],
        generator: torch.Generator,
        *,
        max_bytes: int = 2**30,
    ) -> QuadraticModel:
        """Return a Gaussian model in float64.

        ``Q`` is symmetric with variance 1 off the diagonal and 2 on it, independent over outputs; ``J`` has independent
        entries, scaled so that the largest eigenvalue of ``J J^T`` is ``lam0``; residuals are normal.

        Args:
            D: number of outputs.
            P: number of parameters.
            lam0: largest eigenvalue of ``J J^T`` at the start.
            rz: standard deviation of the residuals; a tensor makes independent runs with the same residuals, scaled.
            generator: source of randomness.
            max_bytes: most memory that ``Q`` may take.

        Raises:
            ValueError: if a size or ``lam0`` is not positive, or ``Q`` would take more than ``max_bytes``.
        """
        if D < 1 or P < 1 or not lam0 > 0:
            raise ValueError(f"D and P must be at least 1 and lam0 positive, got {D}, {P}, {lam0}")
        _check_memory(D, P, max_bytes)
        A = torch.randn(D, P, P, generator=generator, dtype=torch.float64)
        J = torch.randn(D, P, generator=generator, dtype=torch.float64)
        J *= lam0**0.5 / torch.linalg.matrix_norm(J, 2)
        z = torch.randn(D, generator=generator, dtype=torch.float64)
        return cls((A + A.mT) / 2**0.5, J, torch.as_tensor(rz, dtype=torch.float64)[..., None] * z)

    @staticmethod
    def from_model(model: nn.Module, data: Any, params: Sequence[str] | None = None) -> QuadraticSurrogate:
        """Return the second-order Taylor model of a network around its weights, without forming ``Q``.

        See :class:`QuadraticSurrogate`.
        """
        return QuadraticSurrogate(model, data, params)

    def step(self, lr: float = 1.0) -> QuadraticModel:
        """Return the model after one step of gradient descent."""
        z, J = self._descend((self.z, self.J), lr)
        return QuadraticModel(self.Q, J, z)

    def run(self, n_steps: int, *, lr: float = 1.0, tol: float = 1e-12, every: int = 5) -> Trajectory:
        """Run gradient descent until the residual is at most ``tol``, the run diverges, or ``n_steps`` are over.

        Args:
            n_steps: most steps.
            lr: learning rate. The default is the paper's rescaled system, whose edge is at an eigenvalue of 2.
            tol: norm of the residual at which a run has converged.
            every: how many steps lie between two records.

        Warns:
            UserWarning: if ``tol`` is below 1e-6 and the model is in float32, which does not resolve it.

        Raises:
            ValueError: if ``n_steps`` is negative, ``every`` below 1, or ``lr`` or ``tol`` not positive.
        """
        if tol < 1e-6 and self.z.dtype != torch.float64:
            warnings.warn(f"tol = {tol} is finer than {self.z.dtype} resolves; use float64", stacklevel=2)
        start = (self.z, self.J)
        return follow(start, lambda s: self._descend(s, lr), _ntk_max, n_steps=n_steps, lr=lr, tol=tol, every=every)

    def ntk_max(self) -> Float[Tensor, "..."]:
        """Return the largest eigenvalue of ``J J^T``."""
        return _ntk_max((self.z, self.J))

    def moment(self, k: int) -> Float[Tensor, "..."]:
        """Return ``T(k) = J Q^k J^T`` of a model with one output; ``T(0)`` is its kernel.

        Raises:
            ValueError: if the model has several outputs.
        """
        self._require_one_output("moment")
        J = self.J[..., 0, :]
        return (J * (J @ torch.linalg.matrix_power(self.Q[0], k))).sum(-1)

    def invariant(self) -> Float[Tensor, "..."]:
        """Return ``E = J Q^-1 J^T / 2 - z`` of a model with one output: no step, of any size, changes it.

        Raises:
            ValueError: if the model has several outputs, or ``Q`` has an eigenvalue of zero.
        """
        self._require_one_output("invariant")
        values, vectors = torch.linalg.eigh(self.Q[0])
        if values.abs().min() <= 1e-12 * values.abs().max():
            raise ValueError(f"Q must have no eigenvalue of zero for the invariant, got eigenvalues {values.tolist()}")
        return 0.5 * ((self.J[..., 0, :] @ vectors).square() / values).sum(-1) - self.z[..., 0]

    def _descend(self, state: State, lr: float) -> State:
        z, J = state
        move = lr * (z[..., None, :] @ J)[..., 0, :]
        turn = (move @ self.Q.flatten(0, 1).T).unflatten(-1, self.Q.shape[:2])
        return z - ((J - 0.5 * turn) @ move[..., None])[..., 0], J - turn

    def _require_one_output(self, name: str) -> None:
        if len(self.Q) != 1:
            raise ValueError(f"{name} needs a model with one output, got {len(self.Q)} outputs")


def expected_ntk_acceleration(
    J: Float[Tensor, "outputs parameters"], z: Float[Tensor, " outputs"]
) -> Float[Tensor, "outputs outputs"]:
    """Return the mean over random ``Q`` of ``d^2 (J J^T) / dt^2`` under gradient flow.

    The mean of the first derivative is zero; this one is ``(P + 1) (2 |J^T z|^2 I + z z^T M + M z z^T)`` with
    ``M = J J^T``, for ``Q`` as :meth:`QuadraticModel.random` draws it: positive on the whole and growing with the
    residual, hence progressive sharpening.

    Args:
        J: Jacobian of the residuals.
        z: residuals.

    References:
        Agarwala, Pedregosa and Pennington (2023). arXiv:2210.04860
    """
    M, zz = J @ J.T, torch.outer(z, z)
    eye = torch.eye(len(z), dtype=J.dtype, device=J.device)
    return (J.shape[1] + 1) * (2.0 * (J.T @ z).square().sum() * eye + zz @ M + M @ zz)


def _ntk_max(state: State) -> Float[Tensor, "..."]:
    J = state[1]
    gram = J @ J.mT if J.shape[-2] <= J.shape[-1] else J.mT @ J
    return torch.linalg.eigvalsh(gram)[..., -1]


def _check_tensors(Q: Tensor, J0: Tensor, z0: Tensor) -> None:
    fits = Q.ndim == 3 and J0.ndim >= 2 and z0.ndim >= 1 and min(Q.shape) > 0
    fits = fits and Q.shape[1] == Q.shape[2] and J0.shape[-2:] == Q.shape[:2] and z0.shape[-1] == Q.shape[0]
    if not fits:
        raise ValueError(
            "Q, J0 and z0 must have shapes (outputs, parameters, parameters), (..., outputs, parameters) and "
            f"(..., outputs), got {tuple(Q.shape)}, {tuple(J0.shape)} and {tuple(z0.shape)}"
        )
    if not (Q.is_floating_point() and Q.dtype == J0.dtype == z0.dtype):
        raise ValueError(f"Q, J0 and z0 must be of one floating type, got {Q.dtype}, {J0.dtype} and {z0.dtype}")


def _check_memory(D: int, P: int, max_bytes: int) -> None:
    needed = 8 * D * P * P
    if needed > max_bytes:
        raise ValueError(
            f"Q of {D} x {P} x {P} needs {needed:,} bytes, more than max_bytes = {max_bytes:,}; the second-order model "
            "of a network, QuadraticModel.from_model, works without forming Q"
        )
