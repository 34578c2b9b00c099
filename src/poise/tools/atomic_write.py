"""Write a file so that a reader sees the old one or the whole new one, never a part."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give the path of a draft that takes the place of ``path`` at the end, or disappears if an error comes.

    The draft lies beside its target, so that the rename stays on one file system. It is not there yet: whoever writes
    opens it, so that it gets the usual permissions.

    Args:
        path: file to write; its folder must exist.

    Raises:
        OSError: if the draft was not written, or cannot take the place of ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_write(target) as draft:
        ...     _ = draft.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield draft
        draft.replace(path)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            draft.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        path: file to write; its folder must exist.
        text: what it shall hold.
    """
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
