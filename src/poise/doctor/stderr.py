"""Lines on stderr, also where a script has closed it."""

from __future__ import annotations

import contextlib
import sys


def print_line(line: str) -> None:
    """Print a line on stderr; do nothing where the script has closed it or set it to ``None``."""
    if sys.stderr is not None:  # with None, print() would write to stdout
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr)
