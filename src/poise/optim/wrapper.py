"""An optimizer around another optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class OptimizerWrapper(Optimizer):
    """Base of optimizers that change the gradients or the result of another optimizer.

    ``param_groups``, ``state`` and ``defaults`` *are* the wrapped optimizer's own objects at all times, also after
    either of the two loaded a checkpoint: a scheduler, a ``GradScaler`` or a training loop that holds the wrapper acts
    on the optimizer that takes the step. Step hooks, global ones too, belong to the wrapped optimizer and fire once a
    step, when it steps.

    A subclass defines ``step``. What it has to remember beyond the wrapped optimizer's state it returns from
    ``own_state`` and takes back in ``load_own_state``; settings that a user may edit while training go into the param
    groups through :meth:`add_group_settings`.

    Args:
        optimizer: the optimizer to wrap.

    Raises:
        TypeError: if ``optimizer`` is not a ``torch.optim.Optimizer``, or a parameter is complex.
    """

    optimizer: Optimizer

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.__setstate__({"optimizer": optimizer})
        for group in optimizer.param_groups:
            self.check_group(group)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step.hooked = True  # type: ignore[attr-defined]  # or torch would fire every hook here once more

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's param groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise where a param group cannot be handled.

        Raises:
            TypeError: if a parameter is complex.
        """
        if any(p.is_complex() for p in group["params"]):
            raise TypeError("params must be real, got a complex parameter (give torch.view_as_real of it)")

    def add_group_settings(self, **settings: Any) -> None:
        """Put settings into every param group that lacks them, and into those added later."""
        for name, value in settings.items():
            self.defaults[name] = value
            for group in self.param_groups:
                group.setdefault(name, value)
        for group in self.param_groups:
            self.check_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer.

        Raises:
            TypeError, ValueError: if the wrapper cannot handle it; it is then not added.
        """
        self.optimizer.add_param_group(param_group)
        try:
            self.check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise

    def known(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Return ``params`` as a list.

        Raises:
            ValueError: if one of them is not the wrapped optimizer's.
        """
        if isinstance(params, Tensor):
            raise ValueError("params must be an iterable of tensors, got a tensor")
        chosen, own = list(params), {id(p) for group in self.param_groups for p in group["params"]}
        unknown = [i for i, p in enumerate(chosen) if id(p) not in own]
        if unknown:
            raise ValueError(f"params must be parameters of the optimizer, got others at positions {unknown[:5]}")
        return chosen

    def with_gradient(self) -> list[Tensor]:
        """Return the parameters that have a gradient.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(p.grad is not None and p.grad.is_sparse for p in params):
            raise RuntimeError(f"{type(self).__name__} takes dense gradients, got a sparse one")
        return params

    def own_state(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint beside the wrapped optimizer's state."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back what ``own_state`` returned."""

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's ``state_dict``, with one more entry if the wrapper has a state of its own.

        The wrapped optimizer, unwrapped, can load it as well.
        """
        state_dict = self.optimizer.state_dict()
        own = self.own_state()
        return {**state_dict, type(self).__name__: own} if own else state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned, or a checkpoint of the wrapped optimizer alone.

        The settings that the wrapper keeps in the param groups stay as they are where the checkpoint has none.
        """
        kept = [dict(group) for group in self.param_groups]
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != type(self).__name__})
        for group, before in zip(self.param_groups, kept, strict=True):
            for name, value in before.items():
                group.setdefault(name, value)
        if type(self).__name__ in state_dict:
            self.load_own_state(state_dict[type(self).__name__])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients as the wrapped optimizer does."""
        self.optimizer.zero_grad(set_to_none)

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Register a hook that runs before the wrapped optimizer's step."""
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Register a hook that runs after the wrapped optimizer's step."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Register a hook of the wrapped optimizer's ``state_dict``."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Register a hook of the wrapped optimizer's ``state_dict``."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Register a hook of the wrapped optimizer's ``load_state_dict``."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any], prepend: bool = False) -> RemovableHandle:
        """Register a hook of the wrapped optimizer's ``load_state_dict``."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, hooks and a scheduler's patch of step stay behind.
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "step"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"
