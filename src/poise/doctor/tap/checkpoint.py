"""What a loaded checkpoint holds."""

from __future__ import annotations

from typing import Any


def holds_optimizer_state(content: Any, depth: int = 3) -> bool:
    """Return whether a loaded checkpoint holds the state of an optimizer, however deep in its dictionaries."""
    if not isinstance(content, dict) or depth == 0:
        return False
    if "param_groups" in content and content.get("state"):
        return True
    return any(holds_optimizer_state(value, depth - 1) for value in content.values())
