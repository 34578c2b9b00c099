"""`poise.watch`: the watch for notebooks and custom loops."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import nn
from torch.optim import Optimizer

from poise.doctor.remedies import parse_remedy
from poise.doctor.session import Session, Settings
from poise.report import Finding, Report
from poise.store import Record

T = TypeVar("T")


class watch:
    """Watch a training loop and find what made it unstable.

    Use it as a context manager around the loop, or call :meth:`start` and :meth:`stop`. Nothing about the training
    changes: parameters end bit-identical with and without it.

    Args:
        model: the module that is trained, or several.
        optimizer: the optimizer that trains it, or several.
        out: folder for ``run.db``, ``findings.json`` and ``report.html``; a temporary one if ``None``.
        overhead: fraction of the loop's own time that watching may cost; 0.03 is 3 %.
        remedies: changes to apply to the live run, for example ``["lr_scale=0.3"]``.
        select: causes to look for; all if empty.
        ignore: causes to leave out.

    Raises:
        TypeError: if ``model`` is no module or ``optimizer`` no optimizer.
        FileExistsError: if ``out`` already holds a run.

    Example:
        >>> with poise.watch(model, optimizer) as run:
        ...     train(model, optimizer)
        >>> run.findings
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: Optimizer | Sequence[Optimizer],
        out: str | Path | None = None,
        *,
        overhead: float = 0.03,
        remedies: Sequence[str] = (),
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        models = _several(model, nn.Module, "model")
        optimizers = _several(optimizer, Optimizer, "optimizer")
        folder = Path(tempfile.mkdtemp(prefix="poise-")) if out is None else Path(out)
        settings = Settings(overhead, select, ignore, None, [parse_remedy(r) for r in remedies], {"script": "watch"})
        self._session = Session(folder, settings, only=optimizers, roots=models)
        self._running = False

    def start(self) -> Self:
        """Begin to watch.

        Raises:
            RuntimeError: if it was started before.
        """
        if self._session.record is not None or self._running:
            raise RuntimeError("a watch can be started once; make another one for another run")
        self._session.start()
        self._running = True
        return self

    def stop(self) -> list[Finding]:
        """Stop watching, diagnose, and return the findings, best first."""
        return self._stop("finished", "")

    def _stop(self, how: str, detail: str) -> list[Finding]:
        if self._running:
            self._running = False
            self._session.finish(how, detail)
        return self.findings

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._stop("finished", "")
        elif issubclass(kind, KeyboardInterrupt):
            self._stop("interrupted", "")
        else:
            self._stop("exception", f"{kind.__name__}: {error}")

    @property
    def out(self) -> Path:
        """Folder that the run is written to."""
        return self._session.out

    @property
    def findings(self) -> list[Finding]:
        """What was found, best first; empty before the end."""
        return self._session.findings

    @property
    def record(self) -> Record:
        """The signals of the run.

        Raises:
            RuntimeError: before the end.
        """
        if self._session.record is None:
            raise RuntimeError("the record can be read after stop() or the end of the with block")
        return self._session.record

    def report(self) -> Report:
        """Return the report.

        Raises:
            RuntimeError: before the end.
        """
        return self._session.report()

    def _repr_html_(self) -> str | None:
        return None if self._session.record is None else self.report()._repr_html_()


def _several(given: Any, kind: type[T], name: str) -> list[T]:
    items = list(given) if isinstance(given, list | tuple) else [given]
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{name} must be a torch {kind.__name__} or a list of them, got {type(item).__name__}")
    if not items:
        raise TypeError(f"{name} must not be an empty list")
    return items
