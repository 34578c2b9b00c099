"""A tiny stand-in for the tap: hooks around every step, no wrappers."""

import contextlib
import textwrap

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@contextlib.contextmanager
def treated(*remedies, losses=None):
    """Apply remedies to every optimizer step; ``losses`` yields the detached loss of each step."""

    def before(optimizer, args, kwargs):
        loss = None if losses is None else next(losses)
        for remedy in remedies:
            remedy.before_step(optimizer, loss)

    def after(optimizer, args, kwargs):
        for remedy in reversed(remedies):
            remedy.after_step(optimizer)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parameters(seed=0):
    """A matrix and a vector in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64)) for shape in ((3, 4), (4,))
    ]


def gradients(steps, seed=1, scale=None):
    """Gradients for `parameters`, the same for every caller; ``scale[t]`` multiplies those of step t."""
    generator = torch.Generator().manual_seed(seed)
    for t in range(steps):
        factor = 1.0 if scale is None else scale[t]
        yield [factor * torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 4), (4,))]


def train(make, steps=12, *, scale=None, scheduler=None, every_step=None, step=None):
    """Run ``make(parameters)`` over fixed gradients; returns parameters and the learning rates the script sees."""
    ps = parameters()
    optimizer = make(ps)
    schedule = scheduler(optimizer) if scheduler else None
    seen = []
    for gs in gradients(steps, scale=scale):
        for p, g in zip(ps, gs, strict=True):
            p.grad = g.clone()
        if every_step:
            every_step(optimizer)
        if step:
            step(optimizer)
        else:
            optimizer.step()
        if schedule:
            schedule.step()
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
    return ps, seen, optimizer


def permanent(code):
    """Split a remedy's code into what runs once and what runs in the loop, as callables of an optimizer."""
    once, _, loop = code.partition("# in the loop")
    loop = loop.partition("\n")[2]
    space = {"torch": torch}

    def run(text):
        def go(optimizer, **names):
            space.update(optimizer=optimizer, **names)
            exec(textwrap.dedent(text), space)
            return space

        return go

    return run(once), run(loop)


def assert_same(ours, theirs, tolerance=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
