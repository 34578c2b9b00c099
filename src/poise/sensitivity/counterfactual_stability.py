"""How likely a counterfactual is to stay valid when the model is trained again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Predict = Callable[[Float[np.ndarray, "rows dim"]], Float[np.ndarray, " rows"]]
_BLOCK = 2_000_000  # numbers that are predicted at a time


def favourable_probability(model: Any, favourable: Any = 1) -> Predict:
    """Return the function that gives the probability of the favourable class.

    Args:
        model: a fitted scikit-learn classifier with ``predict_proba``; a torch module that returns logits of shape
            (rows, classes) or (rows,); or already a function of rows.
        favourable: label (scikit-learn) or column (torch) of the favourable class.

    Raises:
        TypeError: if the model is none of these.
        ValueError: if the classifier does not know the label.
    """
    if isinstance(model, nn.Module):
        return lambda X: _module_probability(model, X, int(favourable))
    if hasattr(model, "predict_proba"):
        where = np.flatnonzero(np.asarray(model.classes_) == favourable)
        if not len(where):
            raise ValueError(f"favourable must be one of {list(model.classes_)}, got {favourable!r}")
        return lambda X: np.asarray(model.predict_proba(X))[:, where[0]]
    if callable(model):
        return model
    raise TypeError(f"model must be a classifier, a torch module or a function, got {type(model).__name__}")


@torch.no_grad()
def _module_probability(model: nn.Module, X: Float[np.ndarray, "rows dim"], favourable: int) -> np.ndarray:
    parameter = next(model.parameters(), torch.zeros(()))
    rows = torch.as_tensor(X, dtype=parameter.dtype, device=parameter.device)
    return torch_probability(model, rows, favourable).double().cpu().numpy()


def torch_probability(model: nn.Module, rows: Float[Tensor, "rows dim"], favourable: int) -> Float[Tensor, " rows"]:
    """Return the probability of the favourable class from a module's logits.

    Args:
        model: returns logits of shape (rows, classes), or (rows,) or (rows, 1) of class 1.
        rows: inputs.
        favourable: its class.
    """
    logits = model(rows)
    if logits.ndim == 1 or logits.shape[1] == 1:
        probability = logits.reshape(len(rows)).sigmoid()
        return probability if favourable == 1 else 1 - probability
    return logits.softmax(-1)[:, favourable]


def counterfactual_stability(
    model: Any,
    X: Float[np.ndarray, "rows dim"],
    *,
    sigma: float = 0.1,
    n_samples: int = 1000,
    form: Literal["relaxed", "lipschitz"] = "relaxed",
    gamma: float | None = None,
    favourable: Any = 1,
    seed: int = 0,
) -> Float[np.ndarray, " rows"]:
    r"""Return the stability of points under naturally occurring changes of a model.

    With :math:`x_i \sim N(x, \sigma^2 I)` and the favourable probability m,

    .. math:: \hat R = \tfrac1k \sum_i \big(m(x_i) - |m(x) - m(x_i)|\big), \qquad
        R = \tfrac1k \sum_i \big(m(x_i) - \gamma \|x - x_i\|\big),

    the relaxed form, which is at most m(x), and the one that the guarantee of :func:`validity_guarantee` is about.

    Args:
        model: classifier, torch module or function, as :func:`favourable_probability`.
        X: points, features on a common scale.
        sigma: standard deviation of the neighbourhood, one number for all features.
        n_samples: neighbours of a point; all points share their displacements.
        form: ``"relaxed"`` or ``"lipschitz"``.
        gamma: Lipschitz constant of m near the points, for ``"lipschitz"``.
        favourable: the favourable class.
        seed: of the displacements.

    Raises:
        ValueError: if a number is out of range, points are not finite, probabilities lie outside [0, 1], or ``gamma``
            is missing.

    References:
        Hamman, Noorani, Mishra, Magazzeni, Dutta, "Robust counterfactual explanations for neural networks with
        probabilistic guarantees", ICML 2023, arXiv:2305.11997.
    """
    X = np.atleast_2d(np.asarray(X, float))
    _check(X, sigma, n_samples)
    if form not in ("relaxed", "lipschitz"):
        raise ValueError(f"form must be 'relaxed' or 'lipschitz', got {form!r}")
    if form == "lipschitz" and gamma is None:
        raise ValueError("gamma must be given with form='lipschitz'")
    predict = favourable_probability(model, favourable)
    noise = sigma * np.random.default_rng(seed).standard_normal((n_samples, X.shape[1]))
    distance = float(np.linalg.norm(noise, axis=1).mean())
    found = []
    rows = max(1, _BLOCK // noise.size)
    for start in range(0, len(X), rows):
        points = X[start : start + rows]
        near = predict((points[:, None] + noise).reshape(-1, X.shape[1])).reshape(len(points), n_samples)
        here = predict(points)
        if min(near.min(), here.min()) < 0 or max(near.max(), here.max()) > 1:
            raise ValueError("model must give probabilities of the favourable class in [0, 1]")
        if form == "relaxed":
            found.append(np.minimum(here[:, None], 2 * near - here[:, None]).mean(1))
        else:
            found.append(near.mean(1) - float(gamma or 0) * distance)
    return np.concatenate(found)


def validity_guarantee(eps: float, n_samples: int, sigma: float, gamma_model: float, gamma_new: float) -> float:
    r"""Return the probability with which a new model gives a point at least its stability less ``eps``.

    :math:`1 - \exp(-k \varepsilon^2 / (8 (\gamma_m + \gamma_M)^2 \sigma^2))`, over the neighbours drawn and the new
    model, whose mean deviation on the neighbourhood must be below ``eps / 2``.

    Args:
        eps: margin.
        n_samples: neighbours, k.
        sigma: standard deviation of the neighbourhood.
        gamma_model: Lipschitz constant of the model.
        gamma_new: that of the new one.

    Raises:
        ValueError: if a number is not above 0.
    """
    values = {"eps": eps, "n_samples": n_samples, "sigma": sigma, "gamma_model": gamma_model, "gamma_new": gamma_new}
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")
    return -math.expm1(-n_samples * eps**2 / (8 * (gamma_model + gamma_new) ** 2 * sigma**2))


def _check(X: np.ndarray, sigma: float, n_samples: int) -> None:
    if not np.isfinite(X).all():
        raise ValueError("X must be finite, got NaN or infinity")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma!r}")
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, got {n_samples!r}")
