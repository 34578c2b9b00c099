"""Do the test suites of other packages pass and fail under the watch exactly as without it?

Downloads source distributions from the package index, installs them into an environment of their own
(``.venv-suites``), and runs their tests twice: by ``python -m pytest`` and by ``poise run -m pytest``. Prints for each
package how many tests passed, failed, were skipped or ended with an error, and every test whose outcome differs. These
are run again both ways, so that a test whose outcome changes by itself is told from one that the watch changes.

    python benchmarks/public_suites.py                   # all
    python benchmarks/public_suites.py einops skorch     # some
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-suites"
PYTHON = ENVIRONMENT / "bin" / "python"
SECONDS = 1500  # of one run of a suite at most


@dataclass(frozen=True)
class Suite:
    """A package and what of its tests is run."""

    package: str
    tests: tuple[str, ...]  # paths in the source distribution
    needs: tuple[str, ...] = ()  # what its tests import beside the package
    options: tuple[str, ...] = ()
    left_out: str = ""  # why some of its tests are not run
    environment: dict[str, str] = field(default_factory=dict)


SUITES = (
    Suite("einops==0.8.2", ("einops/tests",), ("parameterized",), environment={"EINOPS_TEST_BACKENDS": "numpy,torch"}),
    Suite("torch-optimizer==0.3.0", ("tests",), ("matplotlib", "hyperopt")),
    Suite(
        "pytorch-ignite==0.5.5",
        ("tests/ignite/engine", "tests/ignite/metrics/test_accuracy.py", "tests/ignite/handlers/test_checkpoint.py",
         "tests/ignite/handlers/test_ema_handler.py", "tests/ignite/handlers/test_lr_finder.py"),
        ("pytest-order", "requests", "matplotlib", "tqdm", "tensorboard"),
        ("-k", "not distrib and not multinode and not horovod and not nccl and not mnist"),
        "tests of several nodes need a cluster",
    ),
    Suite(
        "skorch==1.4.0",
        ("skorch/tests/test_net.py", "skorch/tests/test_classifier.py", "skorch/tests/callbacks"),
        ("pytest-cov", "flaky", "pandas", "matplotlib"),
        ("-p", "no:cacheprovider", "-m", "not slow"),
    ),
    Suite("opacus==1.6.0", ("opacus/tests/grad_samples",), ("hypothesis",)),
    Suite("gpytorch==1.15.2", ("test/kernels", "test/optim"), ()),
)  # fmt: skip


def pip(*arguments: str) -> None:
    subprocess.run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def set_up(suites: list[Suite]) -> None:
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        tools = ("pytest", "pytest-timeout", "setuptools<81", "wheel")
        pip("install", "--constraint", str(ROOT / "constraints.txt"), "--editable", str(ROOT), *tools)
    for suite in suites:
        # Without isolation: some of them import torch while they are built.
        constraint = ("--constraint", str(ROOT / "constraints.txt"))
        pip("install", "--no-build-isolation", *constraint, suite.package, *suite.needs)


def unpack(suite: Suite, folder: Path) -> Path:
    """Download the source distribution and return the folder that it unpacks to."""
    name = suite.package.partition("==")[0].replace("-", "_")
    if not any(path.name.replace("-", "_").startswith(f"{name}_") for path in folder.glob("*")):
        folder.mkdir(parents=True, exist_ok=True)
        pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), suite.package)
        for archive in {*folder.glob(f"{name}-*.tar.gz"), *folder.glob(f"{suite.package.partition('==')[0]}-*.tar.gz")}:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            archive.unlink()
    folders = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return next(path for path in folders if path.name.replace("-", "_").startswith(f"{name}_"))


def outcomes(suite: Suite, source: Path, watched: bool, only: tuple[str, ...] = ()) -> dict[str, str]:
    """Run the tests; return the outcome of each by its name."""
    report = source / f"outcomes-{'watched' if watched else 'plain'}.xml"
    report.unlink(missing_ok=True)
    how = ["-m", "poise", "run", "--quiet", "--out", str(source / f"run-{os.getpid()}-{len(only)}"), "-m"]
    command = [str(PYTHON), *(how if watched else ["-m"]), "pytest", *suite.options, "-q", "--timeout", "300"]
    command += ["-p", "no:randomly", f"--junitxml={report}", *(only or suite.tests)]
    environment = {**os.environ, **suite.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if not report.exists():
        raise RuntimeError(f"{suite.package}: no outcomes\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return {
        f"{case.get('classname')}::{case.get('name')}": next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        for case in ElementTree.parse(report).iter("testcase")
    }


def compare(suite: Suite, folder: Path) -> bool:
    """Run a suite both ways and print what came out; return whether every outcome is the same."""
    source = unpack(suite, folder)
    plain, watched = outcomes(suite, source, watched=False), outcomes(suite, source, watched=True)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(plain.values()).items()))
    different = sorted(name for name in plain.keys() | watched.keys() if plain.get(name) != watched.get(name))
    print(f"{suite.package:24s} {counts}; {len(different)} differ under the watch", flush=True)
    if suite.left_out:
        print(f"    left out: {suite.left_out}")
    if different:
        again, again_watched = outcomes(suite, source, watched=False), outcomes(suite, source, watched=True)
        for name in different:
            print(f"    {name}: {plain.get(name)} and {again.get(name)} without, ", end="")
            print(f"{watched.get(name)} and {again_watched.get(name)} with", flush=True)
        different = [name for name in different if again.get(name) != again_watched.get(name)]
    return not different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="names of packages; all of the list by default")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / ".suites", help="where they are unpacked")
    options = parser.parse_args()
    names = options.packages or [suite.package.partition("==")[0] for suite in SUITES]
    suites = [suite for suite in SUITES if suite.package.partition("==")[0] in names]
    set_up(suites)
    same = [compare(suite, options.folder) for suite in suites]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
