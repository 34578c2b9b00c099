"""Put the tap into this process: step hooks, wrappers of a few functions of torch, and the way back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from poise.doctor.remedies.remedy import Remedy
from poise.doctor.tap.attention_logits import scaled_dot_product_logits, softmax_logits
from poise.doctor.tap.discovery import is_compiled
from poise.doctor.tap.patches import Patches
from poise.doctor.tap.tap import Tap

_LOSSES = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
)
_SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_CROSS_ENTROPY_ARGUMENTS = (
    "input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing",
)  # fmt: skip

is_compiling = torch.compiler.is_compiling


@contextlib.contextmanager
def install(tap: Tap) -> Iterator[Tap]:
    """Watch this process through ``tap`` for as long as the context lasts."""
    patches = Patches()
    with contextlib.ExitStack() as stack:
        # A function of ours that the script has bound to a name of its own outlives the patches: it must fall through.
        stack.callback(tap.close)
        stack.callback(patches.undo)
        _hook_steps(tap, stack)
        _patch_functions(tap, patches)
        _patch_bookkeeping(tap, patches)
        _patch_compilers(tap, patches)
        hooks = _ModuleHooks(tap)
        tap.attach_module_hooks, tap.detach_module_hooks = hooks.attach, hooks.detach
        tap.patch_root_classes = functools.partial(_patch_root_classes, tap, patches)
        stack.callback(hooks.detach)
        if tap.sampling:
            hooks.attach()
        yield tap


@contextlib.contextmanager
def inspecting(tap: Tap) -> Iterator[None]:
    """Look at all modules and attentions of the forward pass that runs in this context, sampled step or not."""
    hooks = _ModuleHooks(tap)
    state = tap.busy, tap.shadowing
    tap.detach_module_hooks()
    tap.busy, tap.shadowing = False, True
    hooks.attach()
    try:
        yield
    finally:
        hooks.detach()
        tap.stack.clear()
        tap.busy, tap.shadowing = state
        if tap.sampling and not tap.compiled:
            tap.attach_module_hooks()


class _ModuleHooks:
    """Global forward hooks, there only while a sampled step runs: a module call without hooks costs nothing."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._handles: list[Any] = []

    def attach(self) -> None:
        if self._handles:
            return
        tap = self._tap

        def enter(module: nn.Module, args: Any) -> None:
            if not _is_transforming():
                tap.enter_module(module, args)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if not _is_transforming():
                tap.leave_module(module, args, output)

        self._handles = [
            nn_module.register_module_forward_pre_hook(enter),
            nn_module.register_module_forward_hook(leave),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _hook_steps(tap: Tap, stack: contextlib.ExitStack) -> None:
    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not is_compiling():
            tap.before_step(optimizer)
            if tap.treatment.remedies:
                tap.treatment.before_step(optimizer, tap.interval)
                tap.about_to_step(optimizer)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not is_compiling():
            if tap.treatment.acting:
                tap.treatment.after_step(optimizer)
            tap.after_step(optimizer)
            if tap.between_steps is not None:
                tap.step_over()

    stack.callback(torch_optimizer.register_optimizer_step_pre_hook(before).remove)
    stack.callback(torch_optimizer.register_optimizer_step_post_hook(after).remove)
    tap.step_hooks = before, after


def _is_transforming() -> bool:
    """Return whether the running code is being traced, or mapped and differentiated by torch.func: no numbers there."""
    return is_compiling() or torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None


def _plain(tensor: Any) -> TypeGuard[Tensor]:
    """Return whether ``tensor`` holds numbers: not a stand-in of a tracer, and not a nested tensor."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested and not _is_transforming()


def _overriding(remedies: Any, moment: str) -> list[Remedy]:
    return [r for r in remedies if getattr(type(r), moment) is not getattr(Remedy, moment)]


def _by_name(arguments: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(arguments, args, strict=False)), **kwargs}


def _patch_functions(tap: Tap, patches: Patches) -> None:
    patches.replace(F, "scaled_dot_product_attention", functools.partial(_wrap_sdpa, tap))
    patches.replace(torch, "softmax", functools.partial(_wrap_softmax, tap))
    patches.replace(Tensor, "softmax", functools.partial(_wrap_softmax, tap))  # F.softmax and nn.Softmax end here
    for owner, name in ((torch, "relu"), (torch, "relu_"), (Tensor, "relu"), (Tensor, "relu_")):
        patches.replace(owner, name, functools.partial(_wrap_relu, tap))
    patches.replace(F, "cross_entropy", functools.partial(_wrap_cross_entropy, tap))
    for name in _LOSSES:
        patches.replace(F, name, functools.partial(_wrap_loss, tap))
    patches.replace(Tensor, "backward", functools.partial(_wrap_backward, tap))
    patches.replace(torch.autograd, "backward", functools.partial(_wrap_autograd_backward, tap))
    for name in ("register_hook", "retain_grad"):
        patches.replace(Tensor, name, lambda original: _after(original, lambda t, _: tap.gradient_hooked(t)))
    for owner in (torch.nn.utils, torch.nn.utils.clip_grad):
        patches.replace(owner, "clip_grad_norm_", functools.partial(_wrap_clip, tap))


def _wrap_sdpa(tap: Tap, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    treated = original
    for remedy in _overriding(tap.treatment.remedies, "attention"):
        treated = functools.partial(remedy.attention, treated)

    @functools.wraps(original)
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
        if not is_compiling() and tap.sees_forward():
            named = _by_name(_SDPA_ARGUMENTS, args, kwargs)
            if _plain(named["query"]):
                tap.attention(lambda: scaled_dot_product_logits(**named))
        if treated is original:
            return original(*args, **kwargs)
        return treated(**_by_name(_SDPA_ARGUMENTS, args, kwargs))

    return scaled_dot_product_attention


def _is_attention(logits: Any, dim: Any) -> bool:
    """Return whether a softmax looks like one over keys: the last of at least 3 dimensions, queries like keys."""
    if not isinstance(logits, Tensor) or logits.dim() < 3 or dim not in (-1, logits.dim() - 1):
        return False
    queries, keys = logits.shape[-2:]
    # (batch, time, vocabulary) has three dimensions too: there only an exact square is taken for attention.
    return queries == keys > 1 if logits.dim() == 3 else keys > 1 and queries <= 4 * keys and keys <= 4 * queries


def _wrap_softmax(tap: Tap, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    treated = original
    for remedy in _overriding(tap.treatment.remedies, "attention_softmax"):
        treated = functools.partial(remedy.attention_softmax, treated)

    @functools.wraps(original)
    def softmax(*args: Any, **kwargs: Any) -> Tensor:
        if is_compiling() and treated is original:
            return original(*args, **kwargs)
        looking = tap.sees_forward()
        if not looking and treated is original:
            return original(*args, **kwargs)
        named = _by_name(("input", "dim"), args, kwargs)
        logits, dim = named.get("input", args[0] if args else None), named.get("dim")
        if not _is_attention(logits, dim):
            return original(*args, **kwargs)
        if looking and not is_compiling() and _plain(logits):
            seen: Tensor = logits
            tap.attention(lambda: softmax_logits(seen))
        rest = {k: v for k, v in kwargs.items() if k not in ("input", "dim")}
        return treated(logits, dim, *args[2:], **rest)

    return softmax


def _wrap_relu(tap: Tap, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def relu(*args: Any, **kwargs: Any) -> Tensor:
        output = original(*args, **kwargs)
        if not is_compiling() and tap.sees_forward() and _plain(output):
            tap.rectified(output)
        return output

    return relu


def _wrap_cross_entropy(tap: Tap, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    treated = original
    for remedy in _overriding(tap.treatment.remedies, "cross_entropy"):
        treated = functools.partial(remedy.cross_entropy, treated)

    @functools.wraps(original)
    def cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
        if is_compiling() and treated is original:
            return original(*args, **kwargs)
        if treated is original and not tap.sampler.looking:
            loss = original(*args, **kwargs)
            if not _is_transforming():
                tap.loss_computed(loss)
            return loss
        named = _by_name(_CROSS_ENTROPY_ARGUMENTS, args, kwargs)
        # The loss may well be computed outside the compiled part of a model: it is looked at there too.
        if tap.sampling and not tap.busy and torch.is_grad_enabled() and not is_compiling():
            logits, target = named.get("input"), named.get("target")
            if _plain(logits) and _plain(target):
                tap.loss_inputs(logits, target, named.get("ignore_index", -100))
        loss = original(*args, **kwargs) if treated is original else treated(**named)
        if not _is_transforming():
            tap.loss_computed(loss)
        return loss

    return cross_entropy


def _wrap_loss(tap: Tap, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def loss_function(*args: Any, **kwargs: Any) -> Tensor:
        loss = original(*args, **kwargs)
        if not _is_transforming():
            tap.loss_computed(loss)
        return loss

    return loss_function


def _wrap_backward(tap: Tap, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        if is_compiling():
            return original(self, *args, **kwargs)
        tap.before_backward(self)
        tap.in_backward += 1
        try:
            return original(self, *args, **kwargs)
        finally:
            tap.in_backward -= 1

    return backward


def _wrap_autograd_backward(tap: Tap, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> None:
        if not is_compiling() and not tap.in_backward:  # Tensor.backward ends here too
            tensors = args[0] if args else kwargs.get("tensors")
            tap.before_backward(tensors[0] if isinstance(tensors, tuple | list) and len(tensors) == 1 else tensors)
        return original(*args, **kwargs)

    return backward


def _wrap_clip(tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        if not _is_transforming():
            tap.clipped(norm, args[1] if len(args) > 1 else kwargs["max_norm"])
        return norm

    return clip_grad_norm_


def _patch_bookkeeping(tap: Tap, patches: Patches) -> None:
    for owner in (Optimizer, nn.Module):
        patches.replace(owner, "zero_grad", functools.partial(_wrap_zero_grad, tap))
    patches.replace(Optimizer, "load_state_dict", lambda original: _after(original, tap.optimizer_loaded))
    patches.replace(nn.Module, "load_state_dict", lambda original: _after(original, tap.model_loaded))
    patches.replace(torch, "load", lambda original: _after(original, lambda _, loaded: tap.file_loaded(loaded)))
    scaler = torch.amp.GradScaler
    patches.replace(scaler, "step", functools.partial(_wrap_scaler_step, tap))
    patches.replace(scaler, "scale", functools.partial(_wrap_scaler_scale, tap))


def _after(original: Callable[..., Any], then: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not is_compiling():
            then(args[0] if args else None, result)
        return result

    return call


def _wrap_zero_grad(tap: Tap, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # Only a step that is looked at asks whether gradients were reset; another optimizer's step may begin a look.
        if not is_compiling() and (tap.sampler.looking or len(tap.timelines) > 1):
            tap.zero_grad(self)

    return zero_grad


def _wrap_scaler_step(tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if not self.is_enabled():
            return original(self, optimizer, *args, **kwargs)
        steps, scale = tap.steps_of(optimizer), self._scale
        scale = None if scale is None else scale.detach().clone()
        result = original(self, optimizer, *args, **kwargs)
        if scale is not None:
            skipped = tap.steps_of(optimizer) == steps
            (tap.step_skipped if skipped else tap.step_scaled)(optimizer, scale)
        return result

    return step


def _wrap_scaler_scale(tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        tap.loss_scaled(scaled, outputs)
        return scaled

    return scale


def _patch_compilers(tap: Tap, patches: Patches) -> None:
    patches.replace(torch, "compile", functools.partial(_wrap_compile, tap))
    patches.replace(nn.Module, "compile", functools.partial(_wrap_module_compile, tap))
    patches.replace(torch.jit, "script", functools.partial(_wrap_script, patches))


def _wrap_compile(tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        tap.compiling()
        compiled = original(*args, **kwargs)
        target = args[0] if args else kwargs.get("model")
        owner = getattr(target, "__self__", None)
        if isinstance(owner, Optimizer) and getattr(target, "__name__", "") == "step":
            return _wrap_compiled_step(tap, owner, compiled)
        if isinstance(compiled, nn.Module):
            tap.model_compiled(compiled)
        return compiled

    return compile


def _wrap_compiled_step(tap: Tap, optimizer: Optimizer, compiled: Callable[..., Any]) -> Callable[..., Any]:
    # torch calls no step hook of ours from compiled code: call them around it.
    @functools.wraps(compiled)
    def step(*args: Any, **kwargs: Any) -> Any:
        before, after = tap.step_hooks
        before(optimizer, args, kwargs)
        result = compiled(*args, **kwargs)
        after(optimizer, args, kwargs)
        return result

    return step


def _wrap_module_compile(tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def compile(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tap.compiling()
        return original(self, *args, **kwargs)

    return compile


def _wrap_script(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    # TorchScript compiles the functions that a model calls, and cannot compile ours.
    @functools.wraps(original)
    def script(*args: Any, **kwargs: Any) -> Any:
        with patches.lifted():
            return original(*args, **kwargs)

    return script


def _patch_root_classes(tap: Tap, patches: Patches, roots: list[nn.Module]) -> None:
    """See every call of a root module by its class: a hook on the module itself would be saved with it."""
    for cls in {type(root) for root in roots}:
        # Inside a compiled function even this wrapper would be traced.
        if getattr(cls.__call__, "poise_tap", None) is tap or (tap.compiled and not any(map(is_compiled, roots))):
            continue
        patches.replace(cls, "__call__", functools.partial(_wrap_root_call, tap))


def _holds(roots: list[nn.Module], module: nn.Module) -> bool:
    return roots[0] is module if len(roots) == 1 else any(root is module for root in roots)


def _wrap_root_call(tap: Tap, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not tap.shadowing and not _is_transforming() and _holds(tap.roots, self):
            tap.call_root(self, args, kwargs)
        return original(self, *args, **kwargs)

    call.poise_tap = tap  # type: ignore[attr-defined]
    return call
