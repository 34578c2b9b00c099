"""Where a sweep keeps its points: a folder from which a killed sweep can be continued."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from filelock import FileLock

from poise.preflight.sweeps.sweep_point import SweepPoint
from poise.tools.atomic_write import write_text

FORMAT = 1
HEADER, POINTS, _LOCK = "sweep.json", "points.jsonl", "lock"


class OtherSweepError(ValueError):
    """A folder holds the points of something else."""


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """The finished points of a sweep, one line of JSON each.

    The process that finishes a run appends its point, under a file lock, so that it survives the end of every other
    process. Only on a machine without access to the folder is that left to the process that called :func:`sweep`.

    Args:
        path: the folder.
        name: unique name of the sweep, which distinguishes its folder from one at the same path on another machine.
    """

    path: Path
    name: str

    @classmethod
    def open(cls, path: Path, what: str) -> SweepFolder:
        """Open a folder, or make it.

        Args:
            path: the folder.
            what: fingerprint of what is run.

        Raises:
            FileExistsError: if the folder holds something else.
            ValueError: if it is a sweep of something else, or of another version of poise.
        """
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / _LOCK):
            header = path / HEADER
            if not header.exists():
                foreign = sorted(p.name for p in path.iterdir() if p.name != _LOCK)
                if foreign:
                    raise FileExistsError(f"folder must be for one sweep alone, but {str(path)!r} holds {foreign[0]!r}")
                made = {"format": FORMAT, "name": uuid.uuid4().hex, "train": what}
                write_text(header, json.dumps(made) + "\n")
            found = _read_header(header)
        if found["train"] != what:
            raise OtherSweepError(
                f"folder {str(path)!r} holds the points of another train function (or of this one before it was "
                "changed, or under another version of Python); choose another folder, or remove this one"
            )
        folder = cls(path, found["name"])
        folder.points()
        return folder

    def keep(self, point: SweepPoint) -> None:
        """Append a point, unless this machine has no access to the folder."""
        if not self._visible():
            return
        line = (json.dumps(point.to_dict(), allow_nan=False) + "\n").encode()
        with FileLock(self.path / _LOCK), (self.path / POINTS).open("a+b") as file:
            _cut_unfinished_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def points(self) -> list[SweepPoint]:
        """Return all points; of those that were run twice, the first.

        Raises:
            ValueError: if the file is damaged (an unfinished last line is not: it is left out).
        """
        file = self.path / POINTS
        text = file.read_bytes() if file.exists() else b""
        found: dict[tuple[int | None, float, int], SweepPoint] = {}
        for number, line in enumerate(text.split(b"\n")[:-1], start=1):
            try:
                point = SweepPoint.from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"line {number} of {str(file)!r} is not a point of a sweep ({error})") from error
            found.setdefault(point.key, point)
        return list(found.values())

    def _visible(self) -> bool:
        try:
            return bool(_read_header(self.path / HEADER)["name"] == self.name)
        except (OSError, ValueError):
            return False


def _read_header(file: Path) -> dict[str, Any]:
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"folder must be one of a sweep, but {str(file)!r} is no JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not {"name", "train"} <= header.keys():
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise ValueError(f"folder must be one of a sweep in format {FORMAT}, but {str(file)!r} has format {got!r}")
    return header


def _cut_unfinished_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)


def fingerprint(train: Callable[..., Any]) -> str:
    """Return what identifies a function: its own code and the arguments that are bound to it.

    What it calls, and what it reads from its module or a closure, is not part of it. An object may define an attribute
    ``fingerprint`` instead.
    """
    if isinstance(own := getattr(train, "fingerprint", None), str):
        return own
    bound = []
    while isinstance(train, functools.partial):
        bound.append(joblib.hash((train.args, sorted(train.keywords.items()))))
        train = train.func
    function = train if hasattr(train, "__code__") else getattr(train, "__func__", type(train).__call__)
    code = getattr(function, "__code__", None)
    text = _describe(code) if isinstance(code, types.CodeType) else f"{type(train).__module__}.{type(train).__name__}"
    return hashlib.sha256("\n".join([*bound, text]).encode()).hexdigest()[:32]


def _describe(constant: Any) -> str:
    # Line numbers, comments and the docstring's place do not count; sets have no order.
    if isinstance(constant, types.CodeType):
        inner = ", ".join(map(_describe, constant.co_consts))
        return f"{constant.co_name} {constant.co_code.hex()} {constant.co_names} {constant.co_varnames} ({inner})"
    if isinstance(constant, frozenset):
        return f"{{{', '.join(sorted(map(repr, constant)))}}}"
    return repr(constant)
