"""Factors of the Gauss-Newton matrices of single examples, and their inner products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from poise.curvature.loss.batches import map_tensors, tensors_of
from poise.curvature.loss.criterion import CrossEntropy, MeanSquaredError
from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.loss.objective import as_supervised
from poise.curvature.loss.per_example import check_examples_are_independent, over_examples

_MOST_OUTPUTS = 512
_PSD_TOL = 1e-8


class PerExampleFactors:
    r"""Matrices :math:`A_i` with :math:`H_i = A_i^\top A_i`, the Gauss-Newton matrix of one example's loss.

    :math:`A_i = F_i^\top J_i` with the Jacobian :math:`J_i` of the outputs and :math:`F_i F_i^\top` the Hessian of the
    loss in the outputs; scaled so that the mean of :math:`H_i` is the Gauss-Newton matrix of the mean loss. Nothing of
    the model changes.

    Args:
        model: float32 or float64, without layers that mix examples.
        loss_fn: a criterion or a :class:`poise.curvature.Supervised`.
        data: a batch or an iterable of batches.
        params: names of parameters or of modules; by default all that require gradients.

    Attributes:
        n: number of examples.
        outputs: outputs of one example.
        parameters: number of parameters.

    Raises:
        ValueError: if BatchNorm is in train mode, or outputs are random or not finite.
        TypeError: if ``loss_fn`` does not separate outputs and loss.
    """

    def __init__(self, model: nn.Module, loss_fn: Any, data: Any, params: Sequence[str] | None = None) -> None:
        objective = as_supervised(loss_fn, "stability of SGD")
        if not objective.criterion.is_mean:
            raise ValueError("stability of SGD needs a loss that is a mean over the batch, got reduction='sum'")
        self._evaluation = Evaluation(model, objective, data, params)
        check_examples_are_independent(self._evaluation.model)
        self._evaluation.examine(self._evaluation.outputs)
        self._sizes = self._evaluation.n_examples
        self.n = sum(self._sizes)
        self.parameters = self._evaluation.flat.numel
        with self._evaluation.random_states(), torch.no_grad():
            self.outputs = self._evaluation.outputs(0).numel() // self._sizes[0]

    def mean_loss(self) -> float:
        """Return the mean loss over all examples.

        Raises:
            ValueError: if that of a batch is not a finite scalar.
        """
        with self._evaluation.random_states():
            return math.fsum(self._evaluation.checked_loss(i).item() for i in range(len(self._evaluation)))

    def sample(self, size: int, generator: torch.Generator | None = None) -> Int64[Tensor, " size"]:
        """Return the sorted indices of examples drawn without replacement.

        Args:
            size: how many, from 1 to n; n draws nothing.
            generator: of the draw.

        Raises:
            ValueError: if ``size`` is out of range.
        """
        if not 1 <= size <= self.n:
            raise ValueError(f"subsample must be from 1 to the number of examples {self.n}, got {size!r}")
        if size == self.n:
            return torch.arange(self.n)
        return torch.randperm(self.n, generator=generator or torch.Generator().manual_seed(0))[:size].sort().values

    def chunks(
        self,
        examples: Int64[Tensor, " m"],
        probes: int | None = None,
        chunk_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> Iterator[list[Float[Tensor, "chunk rows _"]]]:
        r"""Yield the factors of some examples, in parts: the columns of each parameter.

        Args:
            examples: sorted indices.
            probes: instead of all rows, that many random combinations :math:`r^\top A_i / \sqrt{probes}`, r of random
                signs; their products are unbiased for those of the rows.
            chunk_size: most examples at once.
            generator: of the signs.

        Raises:
            ValueError: if a factor is not finite, with the parameter, or the loss is not convex in the outputs.
        """
        generator = generator or torch.Generator().manual_seed(0)
        point = tuple(p.detach() for p in self._evaluation.flat.tensors)
        start = 0
        for i, size in enumerate(self._sizes):
            chosen = examples[(examples >= start) & (examples < start + size)] - start
            start += size
            if not len(chosen):
                continue
            batch = _rows(self._evaluation.batch(i), chosen, size)
            with self._evaluation.random_states():
                for piece in chosen.new_tensor(range(len(chosen))).split(chunk_size):
                    part = _rows(batch, piece, len(chosen))
                    cotangents = self._cotangents(part, len(piece), probes, generator)
                    yield from self._pulled(point, part, cotangents)

    def _pulled(self, point: tuple[Tensor, ...], batch: Any, cotangents: Tensor) -> Iterator[list[Tensor]]:
        """Yield the products of cotangents with the Jacobians of single examples."""

        def rows(parameters: tuple[Tensor, ...], example: Any) -> tuple[Tensor, ...]:
            inputs, along = example
            vjp = torch.func.vjp(lambda p: self._evaluation.outputs_of(inputs, p).reshape(-1), parameters)[1]
            return torch.vmap(lambda v: vjp(v)[0])(along.squeeze(0))

        for found in over_examples(rows, point, (batch, cotangents), len(cotangents), len(cotangents)):
            parts = [part.detach().flatten(2) for part in found]  # a parameter that does not move has a graph
            for name, part in zip(self._evaluation.flat.names, parts, strict=True):
                if not torch.isfinite(part.sum()):
                    raise ValueError(f"gradients of {name!r} are NaN or infinite")
            yield parts

    @torch.no_grad()
    def _cotangents(self, batch: Any, n: int, probes: int | None, generator: torch.Generator) -> Tensor:
        """Return the columns of ``F_i`` (or random combinations of them) as rows, of shape (n, rows, outputs)."""
        objective = self._evaluation.supervised
        outputs, targets = self._evaluation.outputs_of(batch), objective.targets(batch)
        directions = self._directions(outputs, n, probes, generator)
        criterion = objective.criterion
        if isinstance(criterion, MeanSquaredError):
            rows = math.sqrt(2.0) * directions
        elif isinstance(criterion, CrossEntropy):
            rows = _softmax_factor(criterion, outputs, targets, directions)
        else:
            factor = _dense_factor(objective, outputs, batch, n) * math.sqrt(n)
            return directions.reshape(-1, n, self.outputs).transpose(0, 1) @ factor.mT
        scale = math.sqrt(self.n / self._evaluation.total_weight)
        return scale * rows.reshape(-1, n, self.outputs).transpose(0, 1)

    def _directions(self, outputs: Tensor, n: int, probes: int | None, generator: torch.Generator) -> Tensor:
        if probes is not None:
            bits = torch.randint(2, (probes, *outputs.shape), generator=generator).to(outputs)
            return (2 * bits - 1) / math.sqrt(probes)
        if self.outputs > _MOST_OUTPUTS:
            raise ValueError(f"all rows of the factors need at most {_MOST_OUTPUTS} outputs, got {self.outputs}")
        units = torch.eye(self.outputs).to(outputs)
        return units[:, None].expand(-1, n, -1).reshape(self.outputs, *outputs.shape)


@dataclass(frozen=True, slots=True)
class PerExampleGram:
    r"""Inner products of the rows of the factors of some examples.

    Attributes:
        gram: products of all rows, those of one example side by side; float64 on the CPU.
        n: number of examples of the data.
        used: number of examples here; fewer are a random sample.
        noise: expected square of what a sketch adds to the products of two examples, summed over their rows; ``None``
            if all products are exact. Those within an example always are.
        probes: whether rows are random combinations of an example's outputs.
    """

    gram: Float[Tensor, "rows rows"]
    n: int
    used: int
    noise: Float[Tensor, "used used"] | None = None
    probes: bool = False

    @property
    def outputs(self) -> int:
        """Rows of one example."""
        return len(self.gram) // self.used

    @property
    def traces(self) -> Float[Tensor, " used"]:
        """Trace of each H_i."""
        return self.gram.diagonal().view(self.used, -1).sum(1)

    def squared_products(self) -> Float[Tensor, "used used"]:
        r"""Return :math:`\mathrm{tr}(H_i H_j)`, exact, or unbiased up to ``1 / sketch``."""
        blocks = self.gram.view(self.used, self.outputs, self.used, self.outputs)
        products = blocks.square().sum((1, 3))
        own = products.diagonal().clone()
        if self.noise is not None:
            products = products - self.noise
        if self.probes:  # a probe with itself would count twice
            itself = self.gram.diagonal().view(self.used, -1).square().sum(1)
            own = (own - itself) * self.outputs / (self.outputs - 1)
        return products.fill_diagonal_(0.0) + torch.diag(own)

    def own_blocks(self) -> Float[Tensor, "used rows rows"]:
        """Return the products within each example."""
        blocks = self.gram.view(self.used, self.outputs, self.used, self.outputs)
        return blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)


def per_example_gram(
    factors: PerExampleFactors,
    *,
    subsample: int | None = None,
    sketch: int | None = None,
    probes: int | None = None,
    chunk_size: int = 64,
    max_bytes: int = 2**30,
    generator: torch.Generator | None = None,
) -> PerExampleGram:
    r"""Return the inner products of the factors.

    Args:
        factors: of a model on its data.
        subsample: how many examples, drawn at random; all by default.
        sketch: shorten each row to this many numbers, so that memory does not grow with examples x parameters:
            entries with random signs are added up at this distance. Products are unbiased with a relative error of
            about ``1 / sqrt(sketch)``.
        probes: use that many random combinations of each example's outputs, at least 2; all outputs by default.
        chunk_size: most examples at once; fewer where ``max_bytes`` requires it.
        max_bytes: most memory for factors.
        generator: of everything random.

    Raises:
        ValueError: if the factors do not fit into ``max_bytes`` without a sketch, ``sketch`` is below the number of
            rows of an example, or a size is out of range.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if probes is not None and probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes!r}")
    rows = probes or factors.outputs
    if sketch is not None and sketch < rows:
        raise ValueError(f"sketch must be at least the number of outputs {rows}, got {sketch!r}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size!r}")
    examples = factors.sample(factors.n if subsample is None else subsample, generator)
    if sketch is None:
        needed = len(examples) * rows * factors.parameters * 8
        if needed > max_bytes:
            raise ValueError(
                f"the factors of {len(examples)} examples take {needed:.2g} bytes, more than "
                f"max_bytes={max_bytes:.2g}; give subsample or sketch"
            )
    fitting = max_bytes // (16 * rows * factors.parameters)
    chunks = factors.chunks(examples, probes, max(1, min(chunk_size, fitting)), generator)
    if sketch is None:
        flat = torch.cat([torch.cat(parts, dim=2).flatten(0, 1).to("cpu", torch.float64) for parts in chunks])
        return PerExampleGram(flat @ flat.mT, factors.n, len(examples), None, probes is not None)
    gram, noise = _sketched_gram(chunks, sketch, generator)
    return PerExampleGram(gram, factors.n, len(examples), noise, probes is not None)


def _sketched_gram(
    chunks: Iterator[list[Tensor]], sketch: int, generator: torch.Generator
) -> tuple[Float[Tensor, "rows rows"], Float[Tensor, "used used"]]:
    """Return the products of sketched rows, and the expected square of what the sketch adds to them."""
    seed, parameters = int(torch.randint(2**62, (), generator=generator)), 0
    own, short, energy = [], [], []
    for parts in chunks:
        parameters = sum(part.shape[2] for part in parts)
        own.append(torch.stack([torch.bmm(part, part.mT).double() for part in parts]).sum(0).cpu())
        rows, squares = _folded(parts, min(sketch, parameters), torch.Generator().manual_seed(seed))
        short.append(rows.flatten(0, 1).double().cpu())
        energy.append(squares.double().cpu())
    rows, squares, blocks = torch.cat(short), torch.cat(energy), torch.cat(own)
    gram, size = rows @ rows.mT, blocks.shape[1]
    for i, block in enumerate(blocks):
        gram[i * size : (i + 1) * size, i * size : (i + 1) * size] = block
    # Pairs of entries that meet in a fold; an entry and its own like add no noise, one in `parameters / length` pairs.
    return gram, (1 - rows.shape[1] / parameters) * squares @ squares.mT


def _folded(
    parts: list[Float[Tensor, "chunk rows _"]], length: int, generator: torch.Generator
) -> tuple[Float[Tensor, "chunk rows length"], Float[Tensor, "chunk length"]]:
    """Add up the entries at a distance of ``length`` with random signs; also their squares, over all rows."""
    total = parts[0].new_zeros(*parts[0].shape[:2], length)
    squares = parts[0].new_zeros(len(parts[0]), length)
    for part in parts:
        signs = 2 * torch.randint(2, part.shape[2:], generator=generator, dtype=torch.int8) - 1
        part.mul_(signs.to(part.device))
        whole = part.shape[2] // length * length
        folded, rest = part[..., :whole].unflatten(-1, (-1, length)), part[..., whole:]
        total += folded.sum(-2)
        squares += torch.linalg.vector_norm(folded, dim=(1, 2)).square()
        total[..., : rest.shape[2]] += rest
        squares[:, : rest.shape[2]] += rest.square().sum(1)
    return total, squares


def _rows(batch: Any, index: Int64[Tensor, " m"], n: int) -> Any:
    """Return some examples of a batch of n."""
    if not any(t.ndim and t.shape[0] == n for t in tensors_of(batch)):
        raise ValueError(f"the batch holds no tensor with its {n} examples along the first dimension")
    return map_tensors(lambda t: t[index.to(t.device)] if t.ndim and t.shape[0] == n else t, batch)


def _softmax_factor(criterion: CrossEntropy, outputs: Tensor, targets: Tensor, directions: Tensor) -> Tensor:
    """Return F r for each direction r: F = sqrt(s) (diag(sqrt(p)) - p sqrt(p)^T) of each softmax."""
    classes = 0 if outputs.ndim == 1 else 1
    p = outputs.softmax(classes)
    weights = criterion._term_weights(targets, outputs.shape[classes], outputs.dtype).unsqueeze(classes)
    along = p.sqrt() * directions
    return weights.sqrt() * (along - p * along.sum(classes + 1, keepdim=True))


def _dense_factor(objective: Any, outputs: Tensor, batch: Any, n: int) -> Float[Tensor, "n outputs outputs"]:
    """Return a square root of each example's Hessian of the batch's mean loss in its outputs."""
    size = outputs.numel() // n
    if size > _MOST_OUTPUTS:
        raise ValueError(
            f"this criterion needs at most {_MOST_OUTPUTS} outputs, got {size}; cross entropy has no limit"
        )
    product = objective.criterion.hessian(outputs, objective.targets(batch))
    units = torch.eye(size).to(outputs)
    columns = [product(unit.expand(n, -1).reshape(outputs.shape).contiguous()).reshape(n, size) for unit in units]
    values, vectors = torch.linalg.eigh(torch.stack(columns, dim=-1).double())
    if (values < -_PSD_TOL * values.abs().amax(-1, keepdim=True)).any():
        raise ValueError(
            f"the loss must be convex in the outputs, got a Hessian with eigenvalue {values.min().item():.3g}; "
            "stability of SGD is that of the Gauss-Newton matrices of a convex loss"
        )
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).to(outputs.dtype)
