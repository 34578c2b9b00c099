"""Fusing: one model from the averaged weights of several that descend from the same one."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.optim.checkpoint import open_checkpoint

Source: TypeAlias = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]

# Elements of one tensor that are averaged at a time: the block of all models stays in a cache.
_BLOCK = 2**16
# Mean cosine between whole weights below which models have no ancestor in common. Independent initialisations have
# about 0; models fine-tuned from one keep most of it.
_KINSHIP = 0.25


@dataclass(frozen=True, slots=True)
class FuseInfo:
    r"""The result of fusing, as numbers.

    Args:
        n: number of models.
        averaged: names of the tensors that were averaged.
        taken: names of integer tensors, of which the largest value of all models was taken.
        excluded: names that patterns left out; the result has them only if it is a module, from the first model.
        norms: 2-norm of each task vector, the model minus ``base`` (minus the mean of all without ``base``).
        cosines: cosines between task vectors.
        shrink: norm of the mean task vector over the mean of their norms: :math:`1/\sqrt{n}` if the tasks have
            nothing in common, 1 if they are the same. NaN without ``base``.
        kinship: mean cosine between the matrices of two models; near 0 if they have no common ancestor.
    """

    n: int
    averaged: tuple[str, ...]
    taken: tuple[str, ...]
    excluded: tuple[str, ...]
    norms: Float[Tensor, " n"]
    cosines: Float[Tensor, "n n"]
    shrink: float
    kinship: float


def fuse(
    models: Sequence[Source],
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = True,
    exclude: Sequence[str] = (),
    base: Source | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[nn.Module | dict[str, Tensor], FuseInfo]:
    r"""Average the weights of models that were fine-tuned from the same one.

    .. math:: \theta_F = \theta_0 + s \Big( \sum_i c_i \theta_i - \theta_0 \Big), \qquad \sum_i c_i = 1

    (without ``base`` the first and the last term are absent). Floating tensors are accumulated in float32 (float64
    if they are float64) and cast back; of integer tensors, such as the batch counter of BatchNorm, the largest value
    is taken. Running statistics of BatchNorm are averaged: re-estimate them with
    ``torch.optim.swa_utils.update_bn`` if there is data. Nothing is changed in place. Of checkpoint files one tensor
    of each is in memory at a time.

    Args:
        models: modules, state dicts, or paths of safetensors or torch checkpoints; at least one.
        weights: weight of each model; equal by default.
        normalize: divide the weights by their sum.
        exclude: shell patterns of names to leave out, for example ``"head.*"``: heads of different tasks.
        base: the common ancestor.
        scale: how much of the mean task vector is added to ``base``; 1 is the average.
        dtype: dtype of the averaged tensors; that of the inputs by default.
        force: fuse models that seem to have no common ancestor.
        progress: called with the fraction done and the name of a tensor.

    Returns:
        A module if the first model is one (a copy of it), a state dict otherwise; and these numbers.

    Raises:
        ValueError: if there is no model, names or shapes differ, dtypes differ and ``dtype`` is not given, a pattern
            or all of them leave nothing, weights do not fit or cancel out, a tensor is not finite, ``scale`` is given
            without ``base``, or the models seem to have no common ancestor.
        FileNotFoundError: if there is no such checkpoint.

    References:
        Choshen et al., "Fusing finetuned models for better pretraining", 2022, arXiv:2204.03044.

    Example:
        >>> fused, info = fuse([model_a, model_b, model_c], exclude=["head.*"], base=pretrained)
    """
    if not models:
        raise ValueError("models must hold at least one model, got none")
    if base is None and scale != 1:
        raise ValueError(f"scale={scale} scales what is added to base, and no base is given")
    states = [_tensors(model) for model in models]
    ancestor = None if base is None else _tensors(base)
    shares = _shares(weights, len(states), normalize)
    names, excluded = _divide(states, ancestor, exclude, dtype)
    fusion = _Fusion(states, ancestor, shares, scale, dtype)
    for done, name in enumerate(names):
        fusion.add(name)
        if progress is not None:
            progress((done + 1) / len(names), name)
    info = fusion.info(excluded)
    if info.n > 1 and info.kinship < _KINSHIP and not force:
        raise ValueError(
            f"models must descend from a common one, but their weights have a mean cosine of {info.kinship:.2f} "
            f"(below {_KINSHIP}); between independent trainings there is nothing to average. force=True fuses anyway"
        )
    return _like(models[0], fusion.result), info


class _Fusion:
    """Goes through the tensors one by one and keeps the inner products of the models."""

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None,
        shares: Float[Tensor, " n"],
        scale: float,
        dtype: torch.dtype | None,
    ) -> None:
        self.states, self.base, self.shares, self.scale, self.dtype = states, base, shares, scale, dtype
        self.result: dict[str, Tensor] = {}
        self.taken: list[str] = []
        n = len(states)
        self.tasks, self.whole = (torch.zeros(n, n, dtype=torch.float64) for _ in range(2))
        self._places: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}

    def add(self, name: str) -> None:
        """Fuse one tensor."""
        tensors = [state[name].detach().cpu() for state in self.states]
        if not tensors[0].is_floating_point():
            self.result[name] = torch.stack(tensors).amax(0) if tensors[0].dtype != torch.bool else tensors[0].clone()
            self.taken.append(name)
            return
        place = tensors[0].data_ptr(), tensors[0].shape, tensors[0].stride()
        if tensors[0].numel() and place in self._places:  # tied: one tensor under two names
            self.result[name] = self.result[self._places[place]]
            return
        self._places[place] = name
        origin = None if self.base is None else self.base[name].detach().cpu()
        self.result[name] = self._mean(name, tensors, origin)

    def _mean(self, name: str, tensors: list[Tensor], origin: Tensor | None) -> Tensor:
        shape, dtype = tensors[0].shape, self.dtype or tensors[0].dtype
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        flat = [tensor.reshape(-1) for tensor in tensors]
        start = None if origin is None else origin.reshape(-1)
        out = torch.empty(shape.numel(), dtype=dtype)
        for first in range(0, len(out), _BLOCK):
            part = slice(first, first + _BLOCK)
            block = torch.stack([tensor[part] for tensor in flat]).to(wide)
            mean = self.shares.to(wide) @ block
            center = block.mean(0) if start is None else start[part].to(wide)
            tasks = block - center
            self.tasks += (tasks @ tasks.T).double()
            if len(shape) > 1:
                self.whole += (block @ block.T).double()
            if start is not None and self.scale != 1:
                mean = center + self.scale * (mean - center)
            out[part] = mean.to(dtype)
        self._require_finite(name, tensors, out)
        return out.reshape(shape)

    def _require_finite(self, name: str, tensors: list[Tensor], out: Tensor) -> None:
        if bool(torch.isfinite(out).all()):
            return
        for index, tensor in enumerate(tensors):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"models must be finite, but {name!r} of model {index} is not")
        raise ValueError(f"the average of {name!r} does not fit into {out.dtype}; give a wider dtype")

    def info(self, excluded: tuple[str, ...]) -> FuseInfo:
        """The numbers about the models."""
        norms = self.tasks.diagonal().clamp(min=0).sqrt()
        n = len(norms)
        mean = float((self.tasks.sum() / n**2).clamp(min=0).sqrt())
        shrink = math.nan if self.base is None or not float(norms.mean()) else mean / float(norms.mean())
        averaged = tuple(name for name in self.result if name not in set(self.taken))
        pairs = ~torch.eye(n, dtype=torch.bool)
        kinship = float(_cosines(self.whole)[pairs].mean()) if n > 1 and bool(self.whole.any()) else 1.0
        return FuseInfo(n, averaged, tuple(self.taken), excluded, norms, _cosines(self.tasks), shrink, kinship)


def _cosines(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    norms = gram.diagonal().clamp(min=0).sqrt()
    return gram / (norms[:, None] * norms).clamp(min=torch.finfo(torch.float64).tiny)


def _tensors(source: Source) -> Mapping[str, Tensor]:
    if isinstance(source, nn.Module):
        return source.state_dict()
    return source if isinstance(source, Mapping) else open_checkpoint(source)


def _like(source: Source, result: dict[str, Tensor]) -> nn.Module | dict[str, Tensor]:
    if not isinstance(source, nn.Module):
        return result
    module = copy.deepcopy(source)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in result:
            tensor.data = result[name].to(tensor.device)
    return module


def _shares(weights: Sequence[float] | None, n: int, normalize: bool) -> Float[Tensor, " n"]:
    given = torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(list(weights), dtype=torch.float64)
    if len(given) != n or not bool(torch.isfinite(given).all()):
        raise ValueError(f"weights must be finite, one for each of {n} models, got {weights}")
    total = float(given.sum())
    if not normalize and weights is not None:
        return given
    if abs(total) < 1e-12 * float(given.abs().sum()) or total == 0:
        raise ValueError(f"weights must not cancel out, got {weights}")
    return given / total


def _divide(
    states: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None,
    exclude: Sequence[str],
    dtype: torch.dtype | None,
) -> tuple[list[str], tuple[str, ...]]:
    """Names to fuse, which every model has alike, and names left out."""
    everything = list(dict.fromkeys(name for state in states for name in state))
    excluded = tuple(name for name in everything if any(fnmatchcase(name, pattern) for pattern in exclude))
    names = [name for name in everything if name not in set(excluded)]
    unused = [pattern for pattern in exclude if not any(fnmatchcase(name, pattern) for name in everything)]
    if unused:
        raise ValueError(f"exclude has patterns that fit no name: {unused}; there are {everything[:5]}")
    if not names:
        raise ValueError(f"exclude leaves nothing to fuse of {len(everything)} names")
    labelled = [(f"model {i}", state) for i, state in enumerate(states)]
    problems = [p for label, state in labelled[1:] for p in _differences(names, states[0], state, label, dtype)]
    problems += [f"{name!r} is missing in model 0" for name in names if name not in states[0]]
    if base is not None:
        problems += _differences(names, states[0], base, "base", None)
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"models must have the same tensors: {'; '.join(problems[:5])}{more}")
    return names, excluded


def _differences(
    names: Sequence[str],
    first: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    label: str,
    dtype: torch.dtype | None,
) -> list[str]:
    problems = []
    for name in names:
        if name not in first:
            continue
        if name not in other:
            problems.append(f"{name!r} is missing in {label}")
            continue
        a, b = first[name], other[name]
        if a.shape != b.shape:
            problems.append(f"{name!r} is {tuple(a.shape)} in model 0 and {tuple(b.shape)} in {label}")
        elif a.dtype != b.dtype and label != "base" and (dtype is None or not a.is_floating_point()):
            problems.append(f"{name!r} is {a.dtype} in model 0 and {b.dtype} in {label} (dtype= decides)")
    return problems
