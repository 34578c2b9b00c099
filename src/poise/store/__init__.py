"""The run file: signals and events of one run, written while it goes and read at any time."""

from poise.store.errors import RunFileError, StoreError
from poise.store.event import Event
from poise.store.record import Record
from poise.store.run_file import read_run
from poise.store.series import Series
from poise.store.writer import RunWriter, SignalGroup

__all__ = ["Event", "Record", "RunFileError", "RunWriter", "Series", "SignalGroup", "StoreError", "read_run"]
