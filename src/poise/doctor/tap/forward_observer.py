"""What happens within the forward pass of modules: their calls, attention, ReLUs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.doctor.tap.attention_logits import scaled_dot_product_logits, softmax_logits
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.patches import Patches
from poise.doctor.tap.plain import is_compiling, is_plain, is_transforming

Logits = Callable[[], tuple[Tensor, Tensor | None]]
Function = Callable[..., Tensor]

SDPA_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_SOFTMAX_PARAMETERS = ("input", "dim")


class ForwardObserver(Protocol):
    """What is called during forward passes."""

    def observes(self) -> bool:
        """Return whether what is computed now is of interest; asked before every call below but ``exit``."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward of ``module`` begins."""

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward of ``module`` has returned ``output``."""

    def exit(self, module: nn.Module) -> None:
        """The call of ``module`` is over, with an output or with an exception."""

    def attention(self, logits: Logits) -> None:
        """Attention is computed; ``logits`` makes the logits of one sample, and which of them are visible."""

    def rectified(self, output: Tensor) -> None:
        """A ReLU has returned ``output``."""

    def over_dimension(self, function: str, given: Tensor, dim: int) -> None:
        """A softmax runs over dimension ``dim`` of ``given``, which may be its first one."""


class ForwardObservation:
    """Connects an observer to the modules of this process, from :meth:`start` to :meth:`stop`.

    Module calls are seen by a hook within ``nn.Module.__call__`` itself. ``scaled_dot_product_attention``, ``softmax``
    and ``relu`` are compiled functions of torch: they are replaced only while an outermost module call runs that the
    observer is interested in, only for its thread, and put back at its end.

    Args:
        observer: what is called.
        attention: replaces ``scaled_dot_product_attention`` (a remedy); the function itself if ``None``.
        attention_softmax: replaces a softmax of attention logits; the function itself if ``None``.
        failed: called with what the observer raises.
    """

    def __init__(
        self,
        observer: ForwardObserver,
        attention: Callable[[Function], Function] | None = None,
        attention_softmax: Callable[[Function], Function] | None = None,
        failed: Callable[[Exception], object] | None = None,
    ) -> None:
        self._observer = observer
        self._attention, self._softmax = attention, attention_softmax
        self._treats = attention is not None or attention_softmax is not None
        self._hook = FunctionHook(nn.Module._call_impl, self._enter, self._leave, self._exit)
        if failed is not None:
            self._hook.failed = failed
        self._depth = 0
        self._thread = 0
        self._functions = Patches()
        self._originals: dict[int, Any] = {}  # by id: the replacement of each function that modules of code may hold
        self._searched: set[str] = set()
        self._prepare()

    def start(self) -> None:
        """Begin to observe."""
        self._hook.install()

    def stop(self) -> None:
        """Stop observing; replaced functions are put back."""
        self._hook.remove()
        self.suspend()
        self._depth = 0

    def suspend(self) -> None:
        """Put replaced functions back for the rest of the running module call: something is going to be compiled."""
        if self._functions.active:
            self._functions.undo()

    # ---- module calls ----------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth and self._thread != threading.get_ident():
            return
        if is_transforming():
            return
        self._thread = threading.get_ident()
        self._depth += 1
        observes = self._observer.observes()
        if observes or self._treats:
            self._find_bound_functions(module)
            if self._depth == 1:
                self._functions.apply()
        if observes:
            self._observer.enter(module, args, kwargs)

    def _leave(self, output: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._is_inside() and self._observer.observes():
            self._observer.leave(module, args, output)
        return output

    def _exit(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._is_inside():
            return
        self._depth -= 1
        if not self._depth:
            self.suspend()
        self._observer.exit(module)

    def _is_inside(self) -> bool:
        return self._depth > 0 and self._thread == threading.get_ident() and not is_transforming()

    def _observes(self) -> bool:
        return not is_compiling() and self._thread == threading.get_ident() and self._observer.observes()

    def _is_own_thread(self) -> bool:
        return is_compiling() or self._thread == threading.get_ident()

    # ---- compiled functions ----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for owner, name, make in (
            (F, "scaled_dot_product_attention", self._wrap_attention),
            (torch, "softmax", self._wrap_softmax),
            (Tensor, "softmax", self._wrap_softmax_method),  # F.softmax and nn.Softmax end here
            (torch, "relu", self._wrap_relu),  # F.relu and nn.ReLU end here
            (torch, "relu_", self._wrap_relu),
            (Tensor, "relu", self._wrap_relu_method),
            (Tensor, "relu_", self._wrap_relu_method),
        ):
            original = getattr(owner, name)
            self._originals[id(original)] = original, self._functions.prepare(owner, name, make)

    def _find_bound_functions(self, module: nn.Module) -> None:
        """Reach ``from torch.nn.functional import scaled_dot_product_attention`` in the file of a module's class."""
        file = type(module).__module__
        if file in self._searched:
            return
        self._searched.add(file)
        owner = None if file.partition(".")[0] == "torch" else sys.modules.get(file)
        for name, value in list(vars(owner).items()) if owner is not None else ():
            original, replacement = self._originals.get(id(value), (None, None))
            if value is original and original is not None:
                self._functions.prepare(owner, name, lambda _, new=replacement: new)  # type: ignore[misc]

    def _wrap_attention(self, original: Function) -> Function:
        compute = original if self._attention is None else self._attention(original)

        def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
            if self._observes():
                named = by_name(SDPA_PARAMETERS, args, kwargs)
                if is_plain(named.get("query")):
                    self._observer.attention(lambda: scaled_dot_product_logits(**named))
            if compute is original or not self._is_own_thread():
                return original(*args, **kwargs)
            return compute(**by_name(SDPA_PARAMETERS, args, kwargs))

        return scaled_dot_product_attention

    def _wrap_softmax(self, original: Function) -> Function:
        compute = original if self._softmax is None else self._softmax(original)

        def softmax(*args: Any, **kwargs: Any) -> Tensor:
            is_observed = self._observes()
            if compute is original and not is_observed:
                return original(*args, **kwargs)
            named = by_name(_SOFTMAX_PARAMETERS, args, kwargs)
            logits, dim = named.get("input", args[0] if args else None), named.get("dim")
            if is_observed and _may_be_first(dim) and is_plain(logits):
                self._observer.over_dimension("softmax", logits, dim)
            if not self._is_own_thread() or not is_attention(logits, dim):
                return original(*args, **kwargs)
            if is_observed and is_plain(logits):
                self._observer.attention(lambda: softmax_logits(logits))
            rest = {k: v for k, v in kwargs.items() if k not in _SOFTMAX_PARAMETERS}
            return compute(logits, dim, *args[2:], **rest)

        return softmax

    def _wrap_softmax_method(self, original: Function) -> Function:
        return self._wrap_softmax(self._method(original))

    def _wrap_relu_method(self, original: Function) -> Function:
        return self._wrap_relu(self._method(original))

    def _method(self, original: Function) -> Function:
        """Call a method of tensors so that what handles ``__torch_function__`` is given the original.

        torch looks it up by its name in the class, where the replacement is.
        """

        def call(*args: Any, **kwargs: Any) -> Tensor:
            ordinary = args and type(args[0]) is Tensor and not torch._C._len_torch_function_stack()
            if is_compiling() or ordinary or not self._functions.active:
                return original(*args, **kwargs)
            self._functions.undo()
            try:
                return original(*args, **kwargs)
            finally:
                self._functions.apply()

        return call

    def _wrap_relu(self, original: Function) -> Function:
        def relu(*args: Any, **kwargs: Any) -> Tensor:
            output = original(*args, **kwargs)
            if self._observes() and is_plain(output):
                self._observer.rectified(output)
            return output

        return relu


def by_name(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(parameters, args, strict=False)), **kwargs}


def _may_be_first(dim: Any) -> TypeGuard[int]:
    return isinstance(dim, int) and (dim == 0 or dim < -1)


def is_attention(logits: Any, dim: Any) -> bool:
    """Return whether a softmax looks like one over keys: the last of at least 3 dimensions, queries like keys."""
    if is_compiling():
        return isinstance(logits, Tensor) and _is_attention_shape(logits.shape, dim)
    if not is_plain(logits):
        return False
    with torch._C.DisableTorchFunction():
        return _is_attention_shape(logits.shape, dim)


def _is_attention_shape(shape: torch.Size, dim: Any) -> bool:
    if len(shape) < 3 or dim not in (-1, len(shape) - 1):
        return False
    queries, keys = shape[-2:]
    # (batch, time, vocabulary) has three dimensions too: there only an exact square is taken for attention.
    return queries == keys > 1 if len(shape) == 3 else keys > 1 and queries <= 4 * keys and keys <= 4 * queries
