"""What a sweep over learning rates saves: two workers beside one, and hopeless runs that are given up.

Run with ``python benchmarks/preflight_sweep.py [workers] [early_kill] [--seeds N]``. The model is the character GPT of
the study of small-scale proxies, 200 steps, qk-norm off.

``workers``: wall time of the card's sweep with two processes, which are up already, as a share of that with one; rounds
take turns. ``early_kill``: steps that are saved, and how much the sensitivity moves, on the card's own sweep (AdamW,
clipping, cosine) and on one with plain SGD up to learning rates that break it.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from poise.optim import IndependentAdamW
from poise.preflight import lr_sensitivity, sweep
from poise.studies.kit.character_gpt import CONTEXT, CharacterGPT, corpus
from poise.studies.small_scale_proxies import Setting, train

CARD = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
STEPS, WARM_UP, WIDTH, BATCH = 200, 20, 32, 8
ROUNDS = 3


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The card's optimizer."""
    return IndependentAdamW(model.parameters(), lr, (0.9, 0.95), weight_decay=1e-4)


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Plain momentum."""
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def cosine(step: int) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def losses(lr: float, seed: int, make: Callable[..., torch.optim.Optimizer], clip: float) -> Iterator[float]:
    """Yield the validation loss at the start, the training loss of every step, and the validation loss at the end."""
    text, generator = corpus(), torch.Generator().manual_seed(seed)
    model = CharacterGPT(WIDTH, text.classes, False, generator, 2)
    optimizer = make(model, lr)
    schedule = LambdaLR(optimizer, cosine)
    starts = torch.randint(len(text.train) - CONTEXT, (STEPS, BATCH, 1), generator=generator)
    yield validate(model)
    for step in range(STEPS):
        ids = text.train[starts[step] + torch.arange(CONTEXT + 1)]
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        yield loss.item()
    yield validate(model)


@torch.no_grad()
def validate(model: nn.Module) -> float:
    """Cross entropy of fixed windows."""
    windows = corpus().windows
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()


def whole(lr: float, seed: int, **setting: Any) -> dict[str, float]:
    """A run to its end."""
    torch.set_num_threads(1)
    init_loss, *_, loss = losses(lr, seed, **setting)
    return {"loss": loss, "init_loss": init_loss}


def watched(lr: float, seed: int, watch: Callable[[int, float], None], **setting: Any) -> dict[str, float]:
    """The same run, which may be given up."""
    torch.set_num_threads(1)
    values = []
    for step, value in enumerate(losses(lr, seed, **setting)):
        values.append(value)
        if step <= STEPS:
            watch(step, value)
    return {"loss": values[-1], "init_loss": values[0]}


def workers(seeds: int) -> None:
    """Print the ratio of wall times."""
    run = functools.partial(train, Setting(qk_norm=False))
    sweep(run, CARD[:2], n_jobs=2, progress=False)
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for n_jobs in (1, 2):
            start = time.perf_counter()
            sweep(run, CARD, seeds=seeds, n_jobs=n_jobs, progress=False)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    middle = statistics.median(ratios)
    print(f"workers: two are {middle:.2f} times as fast as one ({min(ratios):.2f} to {max(ratios):.2f}; bar 1.7)")


def early_kill(seeds: int) -> None:
    """Print saved steps and what they cost."""
    grids: dict[str, tuple[Sequence[float], dict[str, Any]]] = {
        "card's sweep": (CARD, {"make": adamw, "clip": 1.0}),
        "AdamW to lr 100": ((*CARD, 1.0, 3.0, 10.0, 30.0, 100.0), {"make": adamw, "clip": 1.0}),
        "SGD to lr 100": (np.geomspace(1e-3, 100, 11).round(6).tolist(), {"make": sgd, "clip": math.inf}),
    }
    for name, (lrs, setting) in grids.items():
        full = sweep(functools.partial(whole, **setting), lrs, seeds=seeds, n_jobs=-1, progress=False)
        short = sweep(functools.partial(watched, **setting), lrs, seeds=seeds, n_jobs=-1, progress=False)
        made = sum(STEPS if p.stopped_at is None else p.stopped_at for p in short.points)
        saved = 1 - made / (STEPS * len(short.points))
        before, after = (lr_sensitivity(result.curve()).value for result in (full, short))
        ended = sorted({p.lr for p in short.points if p.stopped_at is not None})
        wrong = [p.lr for p, q in zip(short.points, full.points, strict=True) if p.stopped_at and q.loss < q.init_loss]
        print(
            f"early_kill, {name}: {saved:.0%} of the steps saved (bar 30 %), sensitivity {before:.4f} -> {after:.4f} "
            f"(bar 0.01); given up at {ended}; of them would have ended below their first loss: {wrong}",
            flush=True,
        )


def main() -> None:
    """Run the sections asked for."""
    sections = {"workers": workers, "early_kill": early_kill}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(sections), help=f"of {', '.join(sections)}")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.sections:
        sections[name](arguments.seeds)


if __name__ == "__main__":
    main()
