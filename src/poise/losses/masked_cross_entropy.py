"""Cross entropy whose softmax leaves out the classes of other tasks, so that new classes do not push down old ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

Scope = Literal["own", "current", "seen", "old"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_WITHOUT = -1  # task of a class that was not introduced
_UNDERFLOW = 1e-30  # probabilities above it are exact to rounding in float32


def masked_logits(
    logits: Float[Tensor, "batch classes"], mask: Bool[Tensor, "batch classes"], value: float = -math.inf
) -> Float[Tensor, "batch classes"]:
    """Return logits with a constant in the place of the masked ones, which then have no gradient.

    Args:
        logits: unnormalised scores.
        mask: true where a class is masked.
        value: the constant; ``-inf`` takes the class out of a softmax.
    """
    return logits.masked_fill(mask, value)


def build_mask(
    target: Int64[Tensor, " batch"],
    class_to_task: Int64[Tensor, " classes"],
    scope: Scope,
    current_task: int,
    is_memory: Bool[Tensor, " batch"] | None = None,
) -> Bool[Tensor, "batch classes"]:
    """Return which classes are masked for each sample.

    Args:
        target: classes of the samples.
        class_to_task: the task of every class, -1 for one that was not introduced (always masked).
        scope: as for :class:`MaskedCrossEntropyLoss`.
        current_task: the task that is trained.
        is_memory: which samples are replayed; none by default.

    Raises:
        ValueError: if ``scope`` is unknown.
    """
    _check_scope(scope)
    table, row = _mask_table(class_to_task, scope, current_task), class_to_task[target]
    if is_memory is not None and scope != "own":
        row = row.masked_fill(is_memory, len(table) - 1)
    return table[row]


class MaskedCrossEntropyLoss(nn.Module):
    r"""Cross entropy over the classes that compete, with a constant in the place of the others.

    .. math:: -\log \frac{e^{z_y}}{\sum_{c \text{ not masked}} e^{z_c} + U e^{m}}

    for :math:`U` masked classes and the mask value :math:`m`. Masked logits have the gradient 0. With :math:`m =
    -\infty` masked classes leave the softmax; a finite :math:`m` is a reference level that all tasks share, so that
    their logits stay comparable, and a larger one makes classes of the own task learn more.

    Scopes, that is, which classes are masked:

    - ``"own"``: every sample competes within the task of its own class. For task-incremental learning, or no memory.
    - ``"current"``: new samples compete within their own task, replayed ones with all classes seen (ER-ACE). It needs
      samples of the current task in the memory.
    - ``"seen"``: only classes that were not introduced yet are masked. No harm for any head that grows.
    - ``"old"``: new samples do not push down old classes, nor replayed ones those of the current task.

    Args:
        class_to_task: the task of each class, as a mapping or a sequence; more by :meth:`add_task`.
        scope: which classes are masked.
        mask_value: :math:`m`, finite or ``-inf``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: as in torch, spread over the classes that compete.
        weight: of each class, as in torch.

    Raises:
        ValueError: if ``scope`` or ``reduction`` is unknown, ``mask_value`` is NaN or infinite, ``label_smoothing`` is
            outside [0, 1), or a class is registered twice.

    References:
        Kim, Kwon and Kim, "Revisiting softmax masking for stability in continual learning", 2023, arXiv:2309.14808;
        Caccia et al., "New insights on reducing abrupt representation change in online continual learning", ICLR 2022,
        arXiv:2104.05025 (ER-ACE).

    Example:
        >>> loss_fn = MaskedCrossEntropyLoss(scope="current")
        >>> loss_fn.add_task([0, 1])
        >>> loss_fn.add_task([2, 3])
        >>> x, y = torch.cat([new_x, old_x]), torch.cat([new_y, old_y])
        >>> loss = loss_fn(model(x), y, is_memory=torch.arange(len(y)) >= len(new_y))
    """

    class_task: Tensor
    weight: Tensor | None

    def __init__(
        self,
        class_to_task: Mapping[int, int] | Sequence[int] | None = None,
        scope: Scope = "current",
        mask_value: float = -math.inf,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_scope(scope)
        if math.isnan(mask_value) or mask_value == math.inf:
            raise ValueError(f"mask_value must be finite or -inf, got {mask_value}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        self.scope, self.mask_value, self.reduction, self.label_smoothing = (
            scope,
            mask_value,
            reduction,
            label_smoothing,
        )
        self.register_buffer("class_task", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("weight", weight)
        self._kept: tuple[tuple[Any, ...], _Patterns] | None = None
        self._current = _WITHOUT
        pairs = class_to_task.items() if isinstance(class_to_task, Mapping) else enumerate(class_to_task or ())
        for c, task in pairs:
            self._register([int(c)], int(task))

    @property
    def current_task(self) -> int:
        """The task introduced last; -1 before the first."""
        return self._current

    def add_task(self, classes: Iterable[int]) -> None:
        """Introduce the classes of a new task, which becomes the current one.

        Args:
            classes: their numbers.

        Raises:
            ValueError: if there is none, or one was introduced before.
        """
        self._register([int(c) for c in classes], self.current_task + 1)

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int64[Tensor, " batch"],
        *,
        is_memory: Bool[Tensor, " batch"] | None = None,
        task: int | None = None,
    ) -> Float[Tensor, "..."]:
        """Return the loss.

        Args:
            logits: unnormalised scores; classes beyond those introduced are masked.
            target: classes of the samples.
            is_memory: which samples are replayed; needed with the scopes ``"current"`` and ``"old"`` once samples of
                earlier tasks are among them.
            task: the task that is trained; the one introduced last by default.

        Raises:
            KeyError: if a target was not introduced.
            ValueError: if there are fewer logits than classes, ``is_memory`` is needed and missing, or a target is
                masked (the message names sample and class).
        """
        if logits.shape[-1] < len(self.class_task):
            raise ValueError(
                f"logits must have at least {len(self.class_task)} classes, those introduced, got {logits.shape[-1]}"
            )
        wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
        known = self._patterns(wide, self._current if task is None else task)
        try:
            row = known.tasks.index_select(0, target)
        except IndexError as error:
            raise self._unknown(target, known.tasks) from error
        if not torch.compiler.is_compiling():
            self._check_targets(target, row, known, is_memory)
        if is_memory is not None and self.scope != "own":
            row = row.masked_fill_(is_memory, known.replayed)
        loss: Tensor = _MaskedNLL.apply(wide, target, known.biases, row, known.dummies)
        if self.label_smoothing:
            is_open = known.biases.index_select(0, row) == 0
            even = wide.where(is_open, 0.0).sum(1) / is_open.sum(1)
            loss = loss + self.label_smoothing * (wide.gather(1, target[:, None])[:, 0] - even)
        return self._reduced(loss, target)

    def _reduced(self, loss: Tensor, target: Tensor) -> Tensor:
        weights = None if self.weight is None else self.weight.to(loss)[target]
        loss = loss if weights is None else loss * weights
        if self.reduction == "none":
            return loss
        total = loss.sum()
        return total if self.reduction == "sum" else total / (len(loss) if weights is None else weights.sum())

    def _patterns(self, logits: Tensor, current: int) -> _Patterns:
        """Return the masks that samples can have; they are kept while nothing changes."""
        key = logits.shape[-1], current, logits.dtype, logits.device
        if self._kept is None or self._kept[0] != key:
            more = logits.shape[-1] - len(self.class_task)
            tasks = F.pad(self.class_task, (0, more), value=_WITHOUT).to(logits.device)
            table = _mask_table(tasks, self.scope, current)
            dummies = None
            if self.mask_value > -math.inf:  # U e^m enters as one more logit, of value m + log U
                dummies = table.sum(1).to(logits.dtype).log() + self.mask_value
            biases = torch.where(table, -math.inf, logits.new_zeros(()))
            whole = bool((tasks >= 0).all())
            self._kept = key, _Patterns(tasks, biases, dummies, len(table) - 1, whole, current, int(tasks.max()))
        return self._kept[1]

    def _check_targets(self, target: Tensor, task: Tensor, known: _Patterns, is_memory: Tensor | None) -> None:
        if not known.whole and len(target) and int(task.min()) < 0:
            raise self._unknown(target, known.tasks)
        if self.scope in ("current", "old") and is_memory is None and bool((task != known.current).any()):
            raise ValueError(
                f"is_memory must say which samples are replayed with the scope {self.scope!r}: there are targets of "
                "other tasks than the current one"
            )
        if self.scope != "old" and known.latest <= known.current:
            return  # a class competes within its own task, and all tasks are introduced
        row = task if is_memory is None or self.scope == "own" else task.masked_fill(is_memory, known.replayed)
        blocked = known.biases[row, target] != 0
        if bool(blocked.any()):
            b = int(blocked.nonzero()[0])
            raise ValueError(f"the target of a sample must not be masked, got class {int(target[b])} in row {b}")

    def _unknown(self, target: Tensor, tasks: Tensor) -> KeyError:
        unknown = [c for c in target.unique().tolist() if not 0 <= c < len(tasks) or int(tasks[c]) < 0]
        return KeyError(f"every target must be a class with a task, got {unknown[:5]}; introduce it with add_task()")

    def _register(self, classes: list[int], task: int) -> None:
        known = self.class_task
        twice = [c for c in classes if c < len(known) and int(known[c]) >= 0]
        if not classes or twice or len(set(classes)) < len(classes) or min(classes) < 0:
            raise ValueError(
                f"classes must be new, distinct and not negative, at least one; got {classes}, known {twice}"
            )
        size = max(len(known), max(classes) + 1)
        grown = known.new_full((size,), _WITHOUT)
        grown[: len(known)] = known
        grown[classes] = task
        self.class_task, self._kept, self._current = grown, None, max(task, self._current)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}class_task")
        if stored is not None:  # tasks are introduced while training: the size is the checkpoint's
            self.class_task = self.class_task.new_zeros(stored.shape)
            self._current = int(stored.max()) if len(stored) else _WITHOUT
        self._kept = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"scope={self.scope!r}, mask_value={self.mask_value}, tasks={self.current_task + 1}"


class _Patterns(NamedTuple):
    """The masks that samples can have.

    Args:
        tasks: of every class.
        biases: 0 for open classes, -inf for masked ones; a row for new samples of each task, and one for replayed ones.
        dummies: the logit that stands for all masked classes, by row; ``None`` where it is -inf.
        replayed: the last row.
        whole: whether every class has a task.
        current: the task that is trained.
        latest: the task introduced last.
    """

    tasks: Tensor
    biases: Tensor
    dummies: Tensor | None
    replayed: int
    whole: bool
    current: int
    latest: int


class _MaskedNLL(torch.autograd.Function):
    """``logsumexp`` over the open classes and the dummy, less the target's logit, for every row.

    One softmax serves the value and the gradient, and no more buffers are made than by ``cross_entropy``: the
    composition of ``masked_fill`` and ``cross_entropy`` takes twice the time.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, biases: Tensor, row: Tensor, dummies: Tensor | None
    ) -> Tensor:
        filled, column = biases.index_select(0, row).add_(logits), target[:, None]
        slope = filled.softmax(1)
        total = _log_normaliser(filled, slope, column)
        if dummies is not None:
            both = torch.logaddexp(total, dummies.index_select(0, row))
            slope.mul_((total - both).exp_()[:, None])
            total = both
        slope.scatter_add_(1, column, slope.new_full((len(slope), 1), -1.0))
        ctx.save_for_backward(logits, target, biases, row, dummies, slope)
        ctx.buffer = filled  # for the gradient
        return total - logits.gather(1, column)[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        logits, target, biases, row, dummies, slope = ctx.saved_tensors
        buffer, ctx.buffer = ctx.buffer, None
        if torch.is_grad_enabled():  # a second derivative is wanted
            filled = biases[row] + logits
            total = filled.logsumexp(1)
            total = total if dummies is None else torch.logaddexp(total, dummies[row])
            slope = (filled - total[:, None]).exp() - torch.zeros_like(slope).scatter(1, target[:, None], 1.0)
            return slope * grad[:, None], None, None, None, None
        return torch.mul(slope, grad[:, None], out=buffer), None, None, None, None


def _log_normaliser(filled: Tensor, p: Tensor, column: Tensor) -> Tensor:
    """Return the logarithm of the softmax's normaliser from a logit and its probability."""
    if filled.is_cpu and not torch.compiler.is_compiling():  # elsewhere, reading a number would wait for the device
        own = p.gather(1, column)
        if len(own) and float(own.min()) > _UNDERFLOW:
            return filled.gather(1, column).sub_(own.log_())[:, 0]
    # The largest probability is at least 1 / classes, so that its logarithm is exact to rounding.
    return filled.amax(1).sub_(p.amax(1).log_())


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {SCOPES}, got {scope!r}")


def _mask_table(tasks: Tensor, scope: Scope, current: int) -> Tensor:
    """Return the different rows that a mask can have: one for new samples of each task, the last for replayed ones."""
    unseen = (tasks < 0) | (tasks > current)
    n = int(tasks.max()) + 1 if len(tasks) else 0
    other = torch.arange(n, device=tasks.device)[:, None] != tasks
    rows = {
        "own": (other, unseen),
        "current": (other, unseen),
        "seen": (unseen.expand_as(other), unseen),
        "old": (((tasks < current) | unseen).expand_as(other), (tasks == current) | unseen),
    }[scope]
    return torch.cat([rows[0] | (tasks < 0), rows[1][None]])
