"""The line of the user's code that runs now."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

_OWN_CODE = (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent), "<")


def user_line() -> str:
    """Return ``"file:line"`` of the innermost frame that is neither torch's nor poise's."""
    frame = user_frame()
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def user_frame() -> FrameType | None:
    """Return the innermost frame that is neither torch's nor poise's; ``None`` if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_frame(frame):
        frame = frame.f_back
    return frame


def is_user_frame(frame: FrameType) -> bool:
    """Return whether a frame belongs neither to torch nor to poise."""
    return not frame.f_code.co_filename.startswith(_OWN_CODE)
