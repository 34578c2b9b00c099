"""Write a file so that a reader sees the old one or the whole new one, never a part."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces ``path`` at the end, or is removed after an error.

    The temporary file is beside its target, so that the rename stays on one file system. It does not exist yet: the
    caller creates it, so that it gets the usual permissions.

    Args:
        path: file to write; its folder must exist.

    Raises:
        OSError: if the temporary file was not written, or cannot replace ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_write(target) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        path: file to write; its folder must exist.
        text: what it will hold.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
