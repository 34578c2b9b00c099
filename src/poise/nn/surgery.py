"""Shared by all operations on an existing model: their report, and the replacement of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from poise.report import Report, Table

RESIDUAL_OUT = ("o_proj", "c_proj", "down_proj", "out_proj", "linear2", "proj", "fc2")
"""Names that the last map of a residual branch has in torch, timm and transformers."""


@dataclass(frozen=True)
class Surgery:
    """What was changed in a model, and why the rest was not.

    Args:
        title: the operation.
        changed: what became of a module, by its name.
        skipped: why a module that seemed eligible was not changed, by its name.
        max_difference: largest difference of the outputs before and after, where the operation preserves them.
    """

    title: str
    changed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    max_difference: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.summary}"]
        lines += [f"  {name}: {change}" for name, change in self.changed.items()]
        lines += [f"  {name} left alone: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """How many modules were changed, in words."""
        counts = f"{len(self.changed)} modules changed, {len(self.skipped)} left alone."
        if self.max_difference is None:
            return counts
        return f"{counts} Outputs differ by at most {self.max_difference:.2g}."

    def report(self) -> Report:
        """Return it as a report with a table each of what was changed and what was not."""
        parts = (("Changed", "change", self.changed), ("Left alone", "reason", self.skipped))
        tables = [Table(title, ["module", column], list(rows.items())) for title, column, rows in parts if rows]
        return Report(self.title, self.summary, blocks=list(tables))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether the full name or its last part matches one of the patterns."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name.split(".")[-1], pattern) for pattern in patterns)


def named(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of a kind, each module once; the list is made before any is replaced."""
    yield from [(name, module) for name, module in model.named_modules() if name and wanted(module)]


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another, under all the names it has."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out repeated ones
            if child is old:
                setattr(parent, name, new)


def mix_in(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Add a mixin to a module's class: its forward changes, its parameters keep their names."""
    kind = type(module)
    module.__class__ = type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {})


def disable_fast_path(model: nn.Module) -> None:
    """Make torch's encoder layers call their modules: their fused path would bypass these modules."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False


def block_lists(model: nn.Module) -> dict[str, int]:
    """Lists of modules of one type that have parts: the prefix of their names, and their length."""
    return {
        f"{name}." if name else "": len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len({type(part) for part in module}) == 1
        and any(True for part in module for _ in part.children())
    }


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether it is transformers' linear layer with transposed weights."""
    return type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None


def kinds(model: nn.Module) -> str:
    """The types of modules in a model, for messages."""
    return ", ".join(sorted({type(module).__name__ for module in model.modules()}))


def settings_of(module: Any) -> dict[str, Any]:
    """Device and dtype of a module's first parameter."""
    first = next(module.parameters(), None)
    return {} if first is None else {"device": first.device, "dtype": first.dtype}
