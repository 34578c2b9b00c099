"""The diagonal linear network: the smallest model in which parametrisation and noise decide what is learnt."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DiagonalLinear(nn.Module):
    r"""A linear function whose coefficients are products of weights.

    .. math:: f(x) = \langle w_1 \odot \dots \odot w_D,\, x\rangle

    What it can express is what ``nn.Linear(features, 1, bias=False)`` can; how it learns is not. Weights start as
    standard normal numbers of torch's global generator: far from small, the regime in which the noise of SGD matters.

    Args:
        features: size of the input.
        depth: number of factors of a coefficient, at least 1.
        device: of the weights.
        dtype: of the weights.

    Attributes:
        weight: the factors, of shape (depth, features).

    Raises:
        ValueError: if ``features`` or ``depth`` is below 1.

    References:
        Woodworth et al., "Kernel and Rich Regimes in Overparametrized Models", COLT 2020, arXiv:2002.09277.
        Wu and Su, ICML 2023, arXiv:2305.17490.

    Example:
        >>> DiagonalLinear(5)(torch.randn(3, 5)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        features: int,
        depth: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features < 1 or depth < 1:
            raise ValueError(f"features and depth must be at least 1, got {features!r} and {depth!r}")
        self.features, self.depth = features, depth
        self.weight = nn.Parameter(torch.empty(depth, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights again."""
        nn.init.normal_(self.weight)

    def coefficients(self) -> Float[Tensor, " features"]:
        """Return the coefficients of the linear function."""
        return self.weight.prod(0)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch 1"]:
        """Return the function's value.

        Raises:
            ValueError: if ``x`` does not end in ``features``.
        """
        if x.shape[-1] != self.features:
            raise ValueError(f"x must end in features={self.features}, got shape {tuple(x.shape)}")
        return (x @ self.coefficients()).unsqueeze(-1)

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"features={self.features}, depth={self.depth}"
