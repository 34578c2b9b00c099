"""What a monitor has seen: rows of each file, chunks, and the rows that wait for their chunk to be full."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from poise.tools.atomic_write import write_text

_HEAD_BYTES = 1 << 20


@dataclass
class FileSeen:
    """A file that was read.

    Args:
        rows: rows of it that are in finished chunks, or waiting.
        size: its size in bytes.
        head: SHA-256 of its first bytes.
        head_bytes: how many.
    """

    rows: int
    size: int
    head: str
    head_bytes: int


@dataclass
class Ledger:
    """The state of a monitor; written as a whole after every chunk.

    Args:
        chunks: number of finished chunks.
        rows: rows in them.
        result_bytes: length of the file of estimates up to the last finished chunk.
        waiting: number of rows in the file of waiting rows; 0 if there is none.
        files: by path.
    """

    chunks: int = 0
    rows: int = 0
    result_bytes: int = 0
    waiting: int = 0
    files: dict[str, FileSeen] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Return the ledger in a file; an empty one if there is no file."""
        if not path.exists():
            return cls()
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "files": {name: FileSeen(**seen) for name, seen in data["files"].items()}})

    def write(self, path: Path) -> None:
        """Write the ledger, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    def seen(self, path: Path) -> FileSeen:
        """Return what was seen of a file, which may have grown since.

        Raises:
            ValueError: if the file is shorter than it was, or begins otherwise.
        """
        key, size = str(path.resolve()), path.stat().st_size
        known = self.files.get(key)
        if known is not None and (size < known.size or _digest(path, known.head_bytes) != known.head):
            raise ValueError(f"{path} is not the file that was read before; give new rows another name")
        if known is None:
            head_bytes = min(size, _HEAD_BYTES)
            known = FileSeen(0, size, _digest(path, head_bytes), head_bytes)
            self.files[key] = known
        known.size = size
        return known


def _digest(path: Path, length: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()
