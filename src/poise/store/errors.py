"""Errors of a run file."""

from __future__ import annotations


class StoreError(OSError):
    """A run file could not be created or written."""


class RunFileError(StoreError):
    """A run file could not be read: not there, empty, not made by poise, of a newer format, or corrupt."""
