"""Many small networks with one hidden layer, trained side by side."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SmallNetworks(nn.Module):
    """Networks with one hidden layer of tanh units and a linear shortcut, each of which sees some of the inputs.

    Args:
        masks: which inputs each network sees.
        hidden: units of the hidden layer.
        generator: of the initial weights.
    """

    masks: Tensor

    def __init__(self, masks: Bool[Tensor, "networks inputs"], hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.count, inputs = masks.shape
        self.register_buffer("masks", masks[:, :, None].float())

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(self.count, *shape, generator=generator) / max(1, shape[0]) ** 0.5)

        self.first, self.bias = normal(inputs, hidden), nn.Parameter(torch.zeros(self.count, 1, hidden))
        self.last, self.shortcut = normal(hidden, 1), nn.Parameter(torch.zeros(self.count, inputs, 1))
        self.offset = nn.Parameter(torch.zeros(self.count, 1, 1))

    def forward(self, x: Float[Tensor, "*networks rows inputs"]) -> Float[Tensor, "networks rows"]:
        """Return the output of each network, for common rows or for rows of its own."""
        hidden = torch.tanh(x @ (self.masks * self.first) + self.bias)
        return (hidden @ self.last + x @ (self.masks * self.shortcut) + self.offset)[..., 0]

    def fit(self, x: Float[Tensor, "rows inputs"], y: Float[Tensor, " rows"], steps: int, lr: float) -> Self:
        """Minimise the mean squared error by Adam, with a learning rate that falls to zero along a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            ((self(x) - y) ** 2).mean(1).sum().backward()
            optimizer.step()
            schedule.step()
        return self
