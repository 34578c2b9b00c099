"""What a trial runs: the script, the remedies, the seeds."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from poise.doctor.masking import Masking
from poise.doctor.remedies import parse_remedy


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of a trial: what is applied, and with which seed.

    Args:
        remedies: specs of the remedies that act together; empty for the untreated run.
        seed: added to every seed that the script sets.
    """

    remedies: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """``"untreated"``, or the specs joined by ``+``."""
        return arm_name(self.remedies)


def arm_name(remedies: Sequence[str]) -> str:
    """Return the name of arms with these remedies."""
    return "+".join(remedies) or "untreated"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a trial runs.

    Args:
        script: path of the script, or name of the module.
        args: its arguments.
        module: whether ``script`` is the name of a module (``python -m``).
        remedies: one entry per treated arm: the specs that act together there.
        seeds: number of seeds, from 0.
        steps: compare after at most this many steps; ``None`` for as many as both runs have.
        sha256: hash of the script's text.
        keep_args: whether arguments that look like secrets are written into reports and run files.
    """

    script: str
    args: tuple[str, ...]
    module: bool
    remedies: tuple[tuple[str, ...], ...]
    seeds: int
    steps: int | None
    sha256: str
    keep_args: bool = False

    @property
    def masking(self) -> Masking:
        """What leaves secrets and absolute paths out of everything that is written."""
        return Masking(self.args, self.keep_args)

    @property
    def arms(self) -> list[Arm]:
        """All runs, the untreated ones first."""
        return [Arm(remedies, seed) for remedies in ((), *self.remedies) for seed in range(self.seeds)]


def make_plan(
    script: str | Path,
    args: Sequence[str],
    remedies: Sequence[str | Sequence[str]],
    seeds: int,
    module: bool = False,
    steps: int | None = None,
    keep_args: bool = False,
) -> Plan:
    """Check what a trial is asked for; arguments and errors as for :func:`trial`."""
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if isinstance(remedies, str) or not remedies:
        raise ValueError(f"remedies must be a list of at least one remedy, got {remedies!r}")
    groups = tuple(
        tuple(parse_remedy(spec).spec for spec in ([given] if isinstance(given, str) else given)) for given in remedies
    )
    twice = next((g for i, g in enumerate(groups) if g in groups[:i] or not g), None)
    if twice is not None:
        raise ValueError(f"remedies must be different and not empty, got {arm_name(twice)} more than once or nothing")
    path = _module_file(str(script)) if module else Path(script)
    path = path / "__main__.py" if path.is_dir() else path  # Python runs folders in this way
    if not path.is_file():
        raise FileNotFoundError(f"script must be a file, or a folder with a __main__.py, got {str(script)!r}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Plan(str(script), tuple(map(str, args)), module, groups, seeds, steps, sha256, keep_args)


def _module_file(name: str) -> Path:
    # Only the top package is asked for: to find what is inside it, importlib would run its code.
    top, *inner = name.split(".")
    spec = PathFinder.find_spec(top, [os.getcwd()]) or importlib.util.find_spec(top)
    if spec is not None and not inner and spec.submodule_search_locations is None and spec.origin is not None:
        return Path(spec.origin)
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        base = Path(place, *inner)
        for file in (base / "__main__.py", base.with_name(f"{base.name}.py")):
            if file.is_file():
                return file
    raise ModuleNotFoundError(f"script must be the name of a module or of a package with a __main__, got {name!r}")
