"""The run file: signals and events of one run, written while it runs and read at any time."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.store.errors import RunFileError, StoreError
    from poise.store.event import Event
    from poise.store.record import Record
    from poise.store.run_file import read_run
    from poise.store.series import Series
    from poise.store.writer import RunWriter, SignalGroup

__all__ = ["Event", "Record", "RunFileError", "RunWriter", "Series", "SignalGroup", "StoreError", "read_run"]

lazy_front(__name__)
