"""Lines on stderr that do no harm where a script has closed it."""

from __future__ import annotations

import contextlib
import sys


def say(line: str) -> None:
    """Print a line on stderr; do nothing where the script has closed it or set it to ``None``."""
    if sys.stderr is not None:  # print() would take stdout
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr)
