"""How a number is written for a reader."""

from __future__ import annotations

import math


def number(value: float, digits: int = 4) -> str:
    """Write a number with ``digits`` significant digits; with an exponent only where there would be many zeros.

    Whole numbers of type ``int`` are written whole, and large ones with commas between thousands.

    Args:
        value: any number.
        digits: significant digits, at least 1: four in a table, three in a sentence.

    Example:
        >>> number(0.041234), number(0.041234, 3), number(14681.2), number(1.5e-9), number(math.inf)
        ('0.04123', '0.0412', '14,681', '1.5e-9', '∞')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    sign, size = ("−" if value < 0 else ""), abs(value)
    if isinstance(value, int):
        return f"{sign}{size:,}" if size >= 10_000 else f"{sign}{size}"
    if size == 0:
        return "0"
    if not 1e-3 <= size < 1e6:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        return f"{sign}{_short(mantissa)}e{int(exponent)}"
    return sign + _short(f"{size:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}")


def _short(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
