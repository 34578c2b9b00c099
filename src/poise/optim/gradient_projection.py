"""Steps that do not raise the loss of old data: A-GEM and GEM, around any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls
from torch import Tensor
from torch.optim import Optimizer

from poise.optim.closure import evaluate
from poise.optim.wrapper import OptimizerWrapper

Project = Literal["grad", "update"]

MOST_REFERENCES = 64
"""Most reference gradients of a step of GEM."""


def project_agem(g: Float[Tensor, " n"], reference: Float[Tensor, " n"], eps: float = 1e-7) -> Float[Tensor, " n"]:
    r"""Return the gradient nearest to ``g`` that does not oppose the reference.

    .. math:: g - \frac{g \cdot r}{r \cdot r + \epsilon} r \quad \text{if } g \cdot r < 0, \text{ else } g

    Args:
        g: gradient of the step.
        reference: gradient of the loss on old data.
        eps: keeps the division finite.

    Raises:
        ValueError: if shapes differ or a gradient is not finite.

    References:
        Chaudhry et al., "Efficient lifelong learning with A-GEM", ICLR 2019, arXiv:1812.00420.
    """
    _check_shapes(g, reference[None])
    product = torch.dot(g, reference)
    _check_finite(product)
    return g if float(product) >= 0 else g - product / (torch.dot(reference, reference) + eps) * reference


def project_gem(
    g: Float[Tensor, " n"],
    references: Float[Tensor, "tasks n"],
    strength: float = 0.5,
    eps: float = 1e-3,
    always: bool = False,
) -> Float[Tensor, " n"]:
    r"""Return the gradient nearest to ``g`` that opposes none of the references.

    .. math:: g + G^\top v, \qquad v = \arg\min_{v \ge \gamma} \tfrac12 v^\top (G G^\top + \epsilon I) v + (G g)^\top v

    With the memory strength :math:`\gamma > 0`, gradients of old tasks are added even where nothing is opposed.

    Args:
        g: gradient of the step.
        references: :math:`G`, the gradient of the loss on each old task.
        strength: :math:`\gamma`.
        eps: :math:`\epsilon`; keeps the problem solvable where references depend on each other.
        always: solve also if no reference is opposed.

    Raises:
        ValueError: if shapes differ, a gradient is not finite, ``strength`` or ``eps`` is negative, there are more
            references than :data:`MOST_REFERENCES`, or references depend on each other and ``eps`` is 0.

    References:
        Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", NeurIPS 2017, arXiv:1706.08840.
    """
    if not strength >= 0 or not eps >= 0:
        raise ValueError(f"strength and eps must not be negative, got {strength} and {eps}")
    if len(references) > MOST_REFERENCES:
        raise ValueError(f"references must be at most {MOST_REFERENCES}, got {len(references)}; average some of them")
    _check_shapes(g, references)
    products = references @ g
    _check_finite(products)
    if not always and bool((products >= 0).all()):
        return g
    gram = (references @ references.T).double().cpu().numpy()
    v = _dual(gram + eps * np.eye(len(gram)), products.double().cpu().numpy(), strength)
    return g + references.T @ torch.from_numpy(v).to(references)


class AGEM(OptimizerWrapper):
    r"""Take the part out of each step that would raise the loss of a batch of old data (A-GEM).

    Give the loss of the old data before each step. With the gradient of the *combined* loss of new and replayed data,
    the projection seldom acts, because that gradient already contains the reference; with the gradient of the new
    data alone, it acts often.

    Args:
        optimizer: takes the step.
        eps: keeps the division finite.
        project: ``"grad"``, the gradients (the step may still oppose the reference, by momentum), or ``"update"``, the
            change of the parameters that the optimizer made.

    Attributes:
        steps: steps with a reference.
        fired: how many of them were projected.
        zero_references: how many had a reference of zero.
        cosine: between gradient and reference at the last step; NaN before.

    Raises:
        TypeError: if ``optimizer`` is no optimizer.
        ValueError: if ``project`` is unknown.
        RuntimeError: in ``step`` if no reference was given since the last one.

    References:
        Chaudhry et al., ICLR 2019, arXiv:1812.00420; Hess et al., "Two complementary perspectives to continual
        learning", 2024, arXiv:2311.04898.

    Example:
        >>> optimizer = AGEM(torch.optim.SGD(model.parameters(), 0.1))
        >>> optimizer.reference(F.cross_entropy(model(old_x), old_y))
        >>> optimizer.zero_grad()
        >>> F.cross_entropy(model(new_x), new_y).backward()
        >>> optimizer.step()
    """

    def __init__(self, optimizer: Optimizer, eps: float = 1e-7, project: Project = "grad") -> None:
        super().__init__(optimizer)
        if project not in ("grad", "update"):
            raise ValueError(f"project must be 'grad' or 'update', got {project!r}")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        self.eps, self.project = eps, project
        self.steps = self.fired = self.zero_references = 0
        self.cosine = math.nan
        self.references: Tensor | None = None

    def reference(self, losses: Tensor | Iterable[Tensor]) -> None:
        """Take the gradient of the loss on old data; ``.grad`` is not touched.

        Args:
            losses: a scalar loss, or several, one for each old task; an empty list if there is no old data yet: the
                next step is then taken as it is. Put batch norms into evaluation mode for the forward pass of old
                data, so that their running statistics do not move.

        Raises:
            ValueError: if a loss depends on no parameter of the optimizer.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        rows = []
        for loss in [losses] if isinstance(losses, Tensor) else list(losses):
            if not loss.requires_grad:
                raise ValueError("losses must depend on a parameter of the optimizer")
            grads = torch.autograd.grad(loss, params, allow_unused=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in _pairs(params, grads)])
            )
        self.references = torch.stack(rows) if rows else params[0].new_zeros(0, sum(p.numel() for p in params))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Project and step.

        Args:
            closure: computes gradients and returns the loss; called once.
        """
        loss = evaluate(closure)
        references, self.references = self.references, None
        if references is None:
            raise RuntimeError("reference() must be called before step(); with an empty list if there is no old data")
        if not len(references):
            self.optimizer.step()
            return loss
        self.steps += 1
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if self.project == "grad":
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            for p, part in zip(params, _unflatten(self._projected(_flat(grads), references), params), strict=True):
                if p.grad is not None:
                    p.grad.copy_(part)
            self.optimizer.step()
            return loss
        before = [p.detach().clone() for p in params]
        self.optimizer.step()
        down = _flat([old - p for old, p in zip(before, params, strict=True)])  # points where a gradient would
        for p, old, part in zip(params, before, _unflatten(self._projected(down, references), params), strict=True):
            p.copy_(old - part)
        return loss

    def own_state(self) -> dict[str, Any]:
        """Return the counts."""
        return {"steps": self.steps, "fired": self.fired, "zero_references": self.zero_references}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take the counts back."""
        self.steps, self.fired, self.zero_references = state["steps"], state["fired"], state["zero_references"]

    def _projected(self, g: Tensor, references: Tensor) -> Tensor:
        mean = references.mean(0)
        size = float(mean.norm())
        if size == 0:
            self.zero_references += 1
            return g
        norm = float(g.norm())
        self.cosine = float(torch.dot(g, mean)) / (size * norm) if norm else 0.0
        new = self._solve(g, references)
        self.fired += new is not g
        return new

    def _solve(self, g: Tensor, references: Tensor) -> Tensor:
        return project_agem(g, references.mean(0), self.eps)


class GEM(AGEM):
    r"""Take the part out of each step that would raise the loss of any old task (GEM); see :func:`project_gem`.

    Args:
        optimizer: takes the step.
        strength: memory strength, at least 0.
        eps: keeps the problem solvable.
        always: solve at every step. The gradients of old tasks are then added even where none is opposed.
        project: as for :class:`AGEM`.

    Raises:
        TypeError: if ``optimizer`` is no optimizer.
        ValueError: if ``strength`` or ``eps`` is negative, or ``project`` is unknown.
        RuntimeError: in ``step`` if no reference was given since the last one.

    References:
        Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840; Hess et al., 2024, arXiv:2311.04898.

    Example:
        >>> optimizer = GEM(torch.optim.SGD(model.parameters(), 0.1), always=True)
        >>> optimizer.reference([F.cross_entropy(model(x), y) for x, y in old_batches])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strength: float = 0.5,
        eps: float = 1e-3,
        always: bool = False,
        project: Project = "grad",
    ) -> None:
        super().__init__(optimizer, eps, project)
        if not strength >= 0:
            raise ValueError(f"strength must not be negative, got {strength}")
        self.strength, self.always = strength, always

    def _solve(self, g: Tensor, references: Tensor) -> Tensor:
        return project_gem(g, references, self.strength, self.eps, self.always)


def _dual(p: np.ndarray, products: np.ndarray, strength: float) -> np.ndarray:
    """Return the minimiser of v'Pv / 2 + products'v over v >= strength, by non-negative least squares."""
    linear = products + strength * p.sum(1)  # of w = v - strength >= 0
    try:
        root = cholesky(p, lower=True)
    except np.linalg.LinAlgError as error:
        raise ValueError("references depend on each other: eps must be above 0") from error
    w, _ = nnls(root.T, -solve_triangular(root, linear, lower=True))
    return w + strength


def _check_shapes(g: Tensor, references: Tensor) -> None:
    if g.ndim != 1 or references.ndim != 2 or references.shape[1] != len(g):
        raise ValueError(f"references must have {len(g)} columns, as many as g, got {tuple(references.shape)}")


def _check_finite(products: Tensor) -> None:
    # A NaN or an infinity of a gradient is one of its products, too: to read all gradients for it would cost as much.
    if not bool(torch.isfinite(products).all()):
        raise ValueError("gradients must be finite, got NaN or infinities")


def _pairs(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Iterable[tuple[Tensor, Tensor | None]]:
    return zip(params, grads, strict=True)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _unflatten(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in params])
    return [part.view_as(p) for part, p in zip(parts, params, strict=True)]
