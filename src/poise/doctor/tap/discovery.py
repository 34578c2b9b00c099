"""Find the model behind an optimizer: its root modules and the names of its parameters and modules."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from poise.tools.unwrap import unwrap

# What torch.compile and FSDP put into the names the user knows. (DDP's "module" is removed by unwrapping its root: a
# user may have a module of that name.)
_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass
class Names:
    """Names of what belongs to a model, by object identity; keeps the modules alive for as long as it lives."""

    roots: list[nn.Module] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    modules: dict[int, str] = field(default_factory=dict)

    def add_root(self, root: nn.Module, prefix: str = "") -> None:
        """Name everything below ``root``."""
        self.roots.append(root)
        for name, module in root.named_modules():
            self.modules.setdefault(id(module), prefix + plain_name(name) or type(root).__name__)
        for name, parameter in root.named_parameters():
            self.parameters.setdefault(id(parameter), prefix + plain_name(name))


def plain_name(name: str) -> str:
    """Strip what wrappers put into a qualified name: ``_orig_mod.blocks.0`` becomes ``blocks.0``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def live_modules() -> list[nn.Module]:
    """Return every module alive in this process.

    Only types are compared: ``isinstance`` on unknown objects would load lazy proxies, some of which import a library.
    """
    objects = gc.get_objects()
    kinds = set(_subclasses(nn.Module))
    return list(itertools.compress(objects, map(kinds.__contains__, map(type, objects))))


def _subclasses(cls: type[nn.Module]) -> Iterator[type[nn.Module]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _subclasses(subclass)


def find_roots(parameters: Iterable[Tensor]) -> list[nn.Module]:
    """Return the outermost live modules that own any of ``parameters``, those that own the most first."""
    wanted = {id(p) for p in parameters}
    holders = {}
    for module in live_modules():
        # A module that is still being built, or was torn down, has no _modules yet.
        if "_modules" not in module.__dict__:
            continue
        owned = sum(id(p) in wanted for p in module.parameters())
        if owned:
            holders[id(module)] = (owned, module)
    inner = {id(child) for _, m in holders.values() for child in m.modules() if child is not m}
    roots = [(owned, m) for key, (owned, m) in holders.items() if key not in inner]
    return [m for _, m in sorted(roots, key=lambda pair: -pair[0])]


def is_compiled(root: nn.Module) -> bool:
    """Return whether ``root`` or a part of it is compiled by torch.compile or ``Module.compile``."""
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in root.modules())


def name_model(roots: list[nn.Module]) -> Names:
    """Name the parameters and modules of ``roots``; several roots are distinguished by their class names."""
    names = Names()
    unwrapped = [unwrap(root) for root in roots]
    for i, root in enumerate(unwrapped):
        label = type(root).__name__
        same = [type(r).__name__ for r in unwrapped].count(label) > 1
        prefix = "" if len(unwrapped) == 1 else f"{label}{i if same else ''}."
        names.add_root(root, prefix)
    return names
