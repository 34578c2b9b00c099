"""Names of the optimizers of a run, as a user knows them."""

from __future__ import annotations

from poise.store import Record


def optimizer_names(record: Record) -> dict[str, str]:
    """Return, by timeline, the class of its optimizer, with its place among those of that class: ``"Adam 2"``.

    The optimizers are counted in the order of their first steps; one that is the only one of its class has no number.
    """
    classes = {prefix: _class_of(record, prefix) for prefix in record.timelines}
    names: dict[str, str] = {}
    for prefix, name in classes.items():
        alike = [other for other in classes if classes[other] == name]
        names[prefix] = f"{name} {alike.index(prefix) + 1}" if len(alike) > 1 else name
    return names


def _class_of(record: Record, prefix: str) -> str:
    for event in record.events("optimizer"):
        if event.payload.get("timeline", "") == prefix:
            return str(event.payload.get("class", "optimizer"))
    return "optimizer"
