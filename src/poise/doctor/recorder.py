"""Carries numbers from the live run into the run file without making a device wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poise.store import RunWriter


class Recorder:
    """Turns signals, which may still be tensors on a device, into rows of the run file.

    Values on the CPU are written at once. Values on a device are copied to pinned memory behind the running kernels
    and written when the copy has arrived; nothing waits for them before :meth:`close`.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self._groups: dict[tuple[str, ...], Any] = {}
        self._pending: deque[tuple[Any, int, list[float], list[int], Tensor, Any]] = deque()

    def add(self, step: int, names: tuple[str, ...], values: Tensor | Sequence[float | Tensor]) -> None:
        """Append one row: ``values[i]``, a number or a tensor of one element, is signal ``names[i]`` at ``step``."""
        group = self._groups.get(names)
        if group is None:
            group = self._groups[names] = self.writer.group(names)
        if isinstance(values, Tensor):
            if values.is_cpu:
                group.append(step, values.tolist())
                return
            positions = list(range(len(names)))
            self._pending.append((group, step, [math.nan] * len(names), positions, *_to_host(values.double())))
            self.drain()
            return
        on_device = [i for i, v in enumerate(values) if isinstance(v, Tensor) and not v.is_cpu]
        if not on_device:
            group.append(step, [float(v) for v in values])
            return
        row = [math.nan if isinstance(v, Tensor) and not v.is_cpu else float(v) for v in values]
        stacked = torch.stack([values[i].detach().reshape(()).double() for i in on_device])  # type: ignore[union-attr]
        self._pending.append((group, step, row, on_device, *_to_host(stacked)))
        self.drain()

    def event(self, step: int, kind: str, payload: dict[str, Any]) -> None:
        """Append something that happened, at once."""
        self.writer.event(step, kind, payload)

    def drain(self, wait: bool = False) -> None:
        """Write the device values that have arrived; with ``wait`` all of them."""
        while self._pending:
            group, step, row, positions, host, arrived = self._pending[0]
            if arrived is not None and not wait and not arrived.query():
                return
            if arrived is not None:
                arrived.synchronize()
            for position, value in zip(positions, host.tolist(), strict=True):
                row[position] = value
            group.append(step, row)
            self._pending.popleft()

    def close(self) -> None:
        """Write all that is left and close the run file."""
        self.drain(wait=True)
        self.writer.close()


def _to_host(values: Tensor) -> tuple[Tensor, Any]:
    """Start the copy of ``values`` to the host; the second item is the event of its arrival, ``None`` at once."""
    if values.device.type != "cuda":
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))
    return host, arrived
