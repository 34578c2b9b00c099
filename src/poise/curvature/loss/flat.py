"""A model's parameters as one flat vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.tools.nearest_name import did_you_mean


def flatten(tensors: Sequence[Tensor]) -> Float[Tensor, " P"]:
    """Return the entries of all tensors, one after the other.

    Args:
        tensors: at least one, of any shapes and one dtype.
    """
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Float[Tensor, " P"], like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of a flat vector, shaped like the given tensors.

    Args:
        vector: as long as the tensors together.
        like: tensors whose shapes are wanted.

    Raises:
        ValueError: if the vector's length is not the total of the tensors'.
    """
    total = sum(t.numel() for t in like)
    if vector.shape != (total,):
        raise ValueError(f"vector must have shape ({total},), got {tuple(vector.shape)}")
    parts = vector.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


class FlatParameters:
    """Trainable parameters of a model, and how they lie in a flat vector.

    A parameter that belongs to several modules is there once.

    Args:
        model: the model.
        names: of parameters, or of modules whose parameters are meant; by default all that require gradients.

    Attributes:
        names: of the parameters, in the order of the model.
        tensors: the parameters themselves.
        numel: the length of the flat vector.
        dtype: of all parameters.
        device: of all parameters.

    Raises:
        ValueError: if there is none, a name is unknown or frozen, or types or devices are mixed.
        TypeError: if they are not float32 or float64.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        named = dict(model.named_parameters())
        chosen = [name for name, p in named.items() if p.requires_grad] if names is None else _matching(named, names)
        if not chosen:
            raise ValueError("no parameter of the model requires a gradient" if names is None else "params is empty")
        self.names = tuple(chosen)
        self.tensors = [named[name] for name in chosen]
        self.dtype = _only_dtype(dict(zip(chosen, self.tensors, strict=True)))
        self.device = _only_device(dict(zip(chosen, self.tensors, strict=True)))
        self._sizes = [p.numel() for p in self.tensors]
        self._shapes = [p.shape for p in self.tensors]
        self.numel = sum(self._sizes)

    def vector(self) -> Float[Tensor, " P"]:
        """Return a copy of the parameters."""
        return flatten([p.detach() for p in self.tensors])

    def split(self, vector: Float[Tensor, " P"]) -> list[Tensor]:
        """Return views of a flat vector, shaped like the parameters."""
        parts = torch.split_with_sizes(vector, self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def join(self, tensors: Sequence[Tensor | None]) -> Float[Tensor, " P"]:
        """Return tensors shaped like the parameters as one vector; ``None`` stands for zeros."""
        return torch.cat(
            [
                torch.zeros(size, dtype=self.dtype, device=self.device) if t is None else t.reshape(-1)
                for t, size in zip(tensors, self._sizes, strict=True)
            ]
        )

    def slices(self) -> dict[str, slice]:
        """Return where each parameter lies in the flat vector."""
        ends = torch.tensor(self._sizes).cumsum(0).tolist()
        return {n: slice(end - size, end) for n, end, size in zip(self.names, ends, self._sizes, strict=True)}


def _matching(named: dict[str, nn.Parameter], wanted: Sequence[str]) -> list[str]:
    if isinstance(wanted, str):
        raise TypeError(f"params must be a list of names, got the string {wanted!r}")
    chosen: set[str] = set()
    for name in wanted:
        found = [n for n in named if n == name or n.startswith(f"{name}.")]
        if not found:
            raise ValueError(f"params: the model has no parameter {name!r}; {did_you_mean(name, named)}")
        frozen = [n for n in found if not named[n].requires_grad]
        if name in frozen or len(frozen) == len(found):
            raise ValueError(f"params: {frozen} is frozen (requires_grad=False); leave it out or unfreeze it")
        chosen.update(n for n in found if n not in frozen)
    return [n for n in named if n in chosen]


def _only_dtype(named: dict[str, nn.Parameter]) -> torch.dtype:
    for name, p in named.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"curvature needs parameters in float32 or float64; {name!r} is {p.dtype}. Convert a copy first, "
                "copy.deepcopy(model).float(), and keep torch.autocast for lower precision inside the model"
            )
    dtypes = {p.dtype for p in named.values()}
    if len(dtypes) > 1:
        raise ValueError(f"parameters must have one dtype, got {_first_of_each(named, 'dtype')}; convert the model")
    return dtypes.pop()


def _only_device(named: dict[str, nn.Parameter]) -> torch.device:
    devices = {p.device for p in named.values()}
    if len(devices) > 1:
        raise ValueError(
            f"parameters must lie on one device, got {_first_of_each(named, 'device')}; move the model or choose params"
        )
    return devices.pop()


def _first_of_each(named: dict[str, nn.Parameter], attribute: str) -> str:
    first: dict[str, str] = {}
    for name, p in named.items():
        first.setdefault(str(getattr(p, attribute)), name)
    return ", ".join(f"{value} ({name})" for value, name in first.items())
