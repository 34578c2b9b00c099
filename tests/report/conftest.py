"""One report with a block of every kind."""

from collections.abc import Callable

import numpy as np
import pytest

from poise.report import Code, Evidence, Finding, Report, Table, Text, bar_chart, line_chart

STEPS = np.arange(300)


def sample_report() -> Report:
    finding = Finding(
        cause="attention_logit_growth",
        severity="error",
        probability=0.97,
        summary="The attention logits of blocks.1.attn grew from 4 to 138 and the loss diverged at step 212.",
        where=("blocks.1.attn", "blocks.0.attn"),
        onset_step=114,
        detected_step=140,
        event_step=212,
        evidence=(Evidence("attention_logit_max[blocks.1.attn]", 138.2, 50.0, 4.2, 198),),
        remedies=("lr_scale", "weight_decay"),
    )
    loss = 4 * np.exp(-STEPS / 60) + np.where(STEPS > 212, 3.0, 0.0)
    report = Report(
        "tiny_gpt.py lost its training",
        "The learning rate is too high for attention without normalised queries and keys.",
        [finding],
        meta={"script": "tiny_gpt.py", "seeds": [0, 1, 2]},
        verdict="proved",
    )
    report.add(Text("The product of *queries* and keys **grew**.", "Why"))
    report.add(
        line_chart(
            "Loss",
            {"untreated": (STEPS, loss), "treated": (STEPS, 4 * np.exp(-STEPS / 60))},
            "step",
            "loss (nats)",
            markers={"diverged": 212},
            alt="The untreated loss falls to 0.1 and jumps to 3 at step 212; the treated one keeps falling.",
        )
    )
    report.add(bar_chart("Final loss", {"untreated": 3.1, "treated": 0.1}, "loss (nats)"))
    report.add(Table("Remedies", ["remedy", "loss", "verdict"], [["lr_scale", 0.1, "proved"], ["warmup", None, None]]))
    return report.add(Code("Permanent", "-lr = 1e-2\n+lr = 1e-3\n", "diff"))


@pytest.fixture(scope="session")
def sample() -> Callable[[], Report]:
    """Makes a report of its own for every caller."""
    return sample_report
