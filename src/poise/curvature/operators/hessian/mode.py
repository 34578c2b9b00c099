"""What a mode of the Hessian is."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

HessianProduct = Callable[[Tensor], Tensor]
HessianMode = Literal["auto", "retained", "linearize", "rebuild", "forward_over_reverse", "finite_difference"]
