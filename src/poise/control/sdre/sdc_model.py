"""A learned control-affine model together with a learned factorisation of its tracking error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from torch import Tensor, nn

from poise.tools.random_states import seeded_random_states


class SDCModel(BaseEstimator):
    r"""A model :math:`\dot x = f(x) + B(x) u` and a factorisation of its errors, learned from few samples.

    One network gives f and B. A second one gives matrices with
    :math:`f(x_r + e) - f(x_r) = A_0(x_r, e) e` and, for each column of B,
    :math:`b_j(x_r + e) - b_j(x_r) = A_j(x_r, e) e`. Both are tied by a loss at states for which no label is needed,
    which regularises the model as well. The optimizer is Adam; its learning rate falls linearly over the second half.

    Args:
        hidden: widths of the hidden layers (tanh) of both networks.
        e_max: largest error in each coordinate, a number or of shape (n,).
        x_bounds: (lowest, highest) states at which the factorisation is learned, each of shape (n,); by default the
            range of the data.
        n_aux: number of unlabelled states.
        aux_batch: how many of them are used a step.
        lr: learning rate.
        max_steps: optimizer steps; each sees all labelled samples.
        weight_l2: factor on the sum of squared parameters.
        joint: whether the factorisation is learned. Without it the model is a plain regression.
        random_state: seed of weights and samples.

    Attributes:
        n_features_in_: dimension of the state.
        n_inputs_: dimension of the input.
        loss_: total loss at the last step.

    References:
        Richards et al. (2023), arXiv:2302.02529.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (128, 128),
        e_max: Any = 0.5,
        x_bounds: tuple[Any, Any] | None = None,
        n_aux: int = 10_000,
        aux_batch: int = 512,
        lr: float = 1e-3,
        max_steps: int = 2000,
        weight_l2: float = 1e-6,
        joint: bool = True,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.e_max = e_max
        self.x_bounds = x_bounds
        self.n_aux = n_aux
        self.aux_batch = aux_batch
        self.lr = lr
        self.max_steps = max_steps
        self.weight_l2 = weight_l2
        self.joint = joint
        self.random_state = random_state

    def fit(self, X: Any, U: Any, dX: Any) -> SDCModel:
        """Learn from states, inputs and velocities of the state.

        Args:
            X: of shape (samples, n).
            U: of shape (samples, m).
            dX: of shape (samples, n).

        Raises:
            ValueError: if lengths differ, there are fewer than two samples, an entry is not finite, or a setting is
                out of range.
        """
        x, u, y = _samples(X, U, dX)
        self.n_features_in_, self.n_inputs_ = x.shape[1], u.shape[1]
        low, high = self._bounds(x)
        e_max = torch.as_tensor(np.broadcast_to(np.asarray(self.e_max, np.float32), (x.shape[1],)).copy())
        if not bool((e_max > 0).all()) or not self.lr > 0 or self.max_steps < 1 or self.aux_batch < 1 or self.n_aux < 0:
            raise ValueError(
                "e_max, lr, max_steps and aux_batch must be positive and n_aux not negative, got "
                f"{self.e_max}, {self.lr}, {self.max_steps}, {self.aux_batch}, {self.n_aux}"
            )
        n, m = self.n_features_in_, self.n_inputs_
        with seeded_random_states(torch.device("cpu"), self.random_state):
            self._affine = _mlp(n, self.hidden, n * (1 + m))
            self._factors = _mlp(2 * n, self.hidden, (1 + m) * n * n)
            pool = torch.cat([x, low + (high - low) * torch.rand(self.n_aux, n)])
            self._train(x, u, y, pool, e_max)
        return self

    def _train(self, x: Tensor, u: Tensor, y: Tensor, pool: Tensor, e_max: Tensor) -> None:
        parameters = [*self._affine.parameters(), *(self._factors.parameters() if self.joint else ())]
        optimizer = torch.optim.Adam(parameters, self.lr, foreach=True)
        for step in range(self.max_steps):
            optimizer.param_groups[0]["lr"] = self.lr * min(1.0, 2 * (1 - step / self.max_steps))
            optimizer.zero_grad()
            loss = self._labelled_loss(x, u, y)
            if self.joint:
                at = pool[torch.randint(len(pool), (self.aux_batch,))]
                loss = loss + self._factor_loss(at, e_max * (2 * torch.rand_like(at) - 1))
            loss = loss + self.weight_l2 * sum(p.square().sum() for p in parameters)
            loss.backward()
            optimizer.step()
        self.loss_ = float(loss.detach())
        if not np.isfinite(self.loss_):
            raise ValueError(f"the loss left the finite numbers; lower lr, which is {self.lr:g}")

    def _labelled_loss(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        f, B = self._fields(x)
        loss = (f + (B @ u[..., None])[..., 0] - y).square().sum(-1).mean()
        if not self.joint:
            return loss
        order = torch.randperm(len(x))
        first, second = order[:-1], order[1:]
        e, v = x[second] - x[first], u[second] - u[first]
        A = self._combined(self._matrices(x[first], e), u[first])
        change = (A @ e[..., None] + B[second] @ v[..., None])[..., 0]
        return loss + (change - (y[second] - y[first])).square().sum(-1).mean()

    def _factor_loss(self, x: Tensor, e: Tensor) -> Tensor:
        (f, B), (fr, Br) = self._fields(x), self._fields(x - e)
        products = (self._matrices(x - e, e) @ e[:, None, :, None])[..., 0]  # (batch, 1 + m, n)
        changes = torch.cat([(f - fr)[:, None], (B - Br).mT], 1)
        return (products - changes).square().sum((-1, -2)).mean()

    def _fields(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, m = self.n_features_in_, self.n_inputs_
        f, B = self._affine(x).split([n, n * m], -1)
        return f, B.unflatten(-1, (n, m))

    def _matrices(self, xr: Tensor, e: Tensor) -> Tensor:
        n = self.n_features_in_
        return self._factors(torch.cat([xr, e], -1)).unflatten(-1, (1 + self.n_inputs_, n, n))

    @staticmethod
    def _combined(matrices: Tensor, ur: Tensor) -> Tensor:
        return matrices[..., 0, :, :] + (ur[..., None, None] * matrices[..., 1:, :, :]).sum(-3)

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.x_bounds is None:
            return x.amin(0), x.amax(0)
        low, high = (torch.as_tensor(np.asarray(bound, np.float32)) for bound in self.x_bounds)
        if low.shape != (x.shape[1],) or high.shape != low.shape or not bool((low < high).all()):
            raise ValueError(
                f"x_bounds must be two vectors of {x.shape[1]} numbers, each lowest below its highest, "
                f"got shapes {tuple(low.shape)} and {tuple(high.shape)}"
            )
        return low, high

    def predict(self, X: Any, U: Any) -> Float64[np.ndarray, "samples n"]:
        """Return the velocities of states under inputs.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        with torch.no_grad():
            return self(torch.as_tensor(np.asarray(X)), torch.as_tensor(np.asarray(U))).numpy()

    def __call__(self, x: Float[Tensor, "*batch n"], u: Float[Tensor, "*batch m"]) -> Float64[Tensor, "*batch n"]:
        """Return the velocities as a tensor with a gradient.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        self._check_fitted()
        f, B = self._fields(x.to(torch.float32))
        return (f + (B @ u.to(torch.float32)[..., None])[..., 0]).double()

    def score(self, X: Any, U: Any, dX: Any) -> float:
        """Return the coefficient of determination of the velocities, averaged over the coordinates."""
        return float(r2_score(np.asarray(dX), self.predict(X, U)))

    def factorize(
        self, xr: Float[Tensor, "*batch n"], ur: Float[Tensor, "*batch m"], e: Float[Tensor, "*batch n"]
    ) -> tuple[Float64[Tensor, "*batch n n"], Float64[Tensor, "*batch n m"]]:
        """Return A and B of the error's dynamics at a distance ``e`` from the reference.

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: if the model was fitted without a factorisation.
        """
        self._check_fitted()
        if not self.joint:
            raise ValueError(
                "joint must be True for a factorisation, got a model fitted with joint=False; linearize it"
            )
        xr, ur, e = (tensor.to(torch.float32) for tensor in (xr, ur, e))
        A = self._combined(self._matrices(xr, e), ur)
        return A.double(), self._fields(xr + e)[1].double()

    def linearize(
        self, xr: Float[Tensor, "*batch n"], ur: Float[Tensor, "*batch m"], e: Float[Tensor, "*batch n"] | None = None
    ) -> tuple[Float64[Tensor, "*batch n n"], Float64[Tensor, "*batch n m"]]:
        """Return the derivatives of the model in state and input at a reference; ``e`` is not used.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        self._check_fitted()
        xr, ur = xr.to(torch.float32), ur.to(torch.float32)

        def velocity(x: Tensor, u: Tensor) -> Tensor:
            f, B = self._fields(x)
            return f + (B @ u[..., None])[..., 0]

        derivative = torch.func.vmap(torch.func.jacrev(velocity))
        A = derivative(xr.reshape(-1, xr.shape[-1]), ur.reshape(-1, ur.shape[-1]))
        return A.reshape(*xr.shape, xr.shape[-1]).detach().double(), self._fields(xr)[1].detach().double()

    def _check_fitted(self) -> None:
        if not hasattr(self, "_affine"):
            raise NotFittedError("this SDCModel is not fitted yet; call fit(X, U, dX) first")


def _mlp(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def _samples(X: Any, U: Any, dX: Any) -> tuple[Tensor, Tensor, Tensor]:
    arrays = {name: np.asarray(value, np.float32) for name, value in (("X", X), ("U", U), ("dX", dX))}
    for name, array in arrays.items():
        if array.ndim != 2:
            raise ValueError(f"{name} must be a table of samples and coordinates, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or arrays["X"].shape != arrays["dX"].shape:
        raise ValueError(
            f"X, U and dX must have one row a sample, X and dX of one width; got shapes "
            f"{', '.join(str(array.shape) for array in arrays.values())}"
        )
    if lengths["X"] < 2:
        raise ValueError(f"X must hold at least 2 samples, got {lengths['X']}")
    x, u, y = (torch.as_tensor(array) for array in arrays.values())
    return x, u, y
