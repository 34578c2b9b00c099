import re
from pathlib import Path

import pytest

import poise.report
from poise.report.charts import PALETTE


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("color", PALETTE[:4])
@pytest.mark.parametrize("ground", ["#ffffff", "#171b21"])
def test_first_colours_stand_on_both_themes(color, ground):
    assert contrast(color, ground) > 2.9


TOKENS = dict(
    re.findall(
        r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)",
        (Path(poise.report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8"),
    )
)


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize(
    "pair",
    [(ink, ground) for ink in ("text", "muted", "accent") for ground in ("page", "card", "sunk")]
    + [(tone, ground) for tone in ("error", "warning", "info", "good") for ground in ("card", f"{tone}-soft")],
)
def test_text_stands_out_from_its_ground(pair, theme):
    ink, ground = (TOKENS[name].split(", ")[theme] for name in pair)
    assert contrast(ink, ground) >= 4.5
