"""What the rules of this folder read: the first event of a kind, and the line it happened in."""

from __future__ import annotations

from poise.store import Event, Record


def first_event(record: Record, kind: str) -> Event | None:
    """Return the first event of a kind; ``None`` if there is none."""
    return next(iter(record.events(kind)), None)


def at_line(event: Event) -> str:
    """Return ``" (train.py:12)"`` as a part of a sentence; empty where the line is not known."""
    source = str(event.payload.get("source") or "")
    return f" ({short(source)})" if source else ""


def short(source: str) -> str:
    """Return ``file:line`` without the folder."""
    return source.replace("\\", "/").rpartition("/")[2]
