"""What layers cost beside those they take the place of: inference of a block, a training step, a recurrent network.

Run with ``python benchmarks/nn.py [NAME ...]`` (all comparisons by default), on an idle machine, one thread. The arms
of a comparison take the same input in turn in one process; ratios are taken within a round, so that a machine whose
speed drifts favours nobody. Another comparison is one more function in ``COMPARISONS``.

No package that installs with a current torch has a layer-normalised LSTM (haste-pytorch needs CUDA, its CPU port does
not compile), nor does any have unified norm; their peers are written here from the papers' equations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.nn import LayerNormLSTM, UnifiedNorm, fuse_norms, replace_norm

Norm = Callable[[int], nn.Module]


@dataclass
class Comparison:
    """Arms by name, each timed as it is called; ``bars`` are (arm, peer, the least that peer / arm should be)."""

    title: str
    arms: dict[str, Callable[[], Any]]
    bars: list[tuple[str, str, float]] = field(default_factory=list)
    rounds: int = 51


def report(comparison: Comparison) -> None:
    """Time every arm once a round, in turn, after one round that is thrown away; print medians and ratios."""
    times: dict[str, list[float]] = {name: [] for name in comparison.arms}
    for _ in range(comparison.rounds + 1):
        for name, step in comparison.arms.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    rows = {name: row[1:] for name, row in times.items()}
    first = next(iter(rows.values()))
    print(f"\n{comparison.title}; median of {comparison.rounds} rounds, {torch.get_num_threads()} thread(s)")
    print(f"{'':44s}{'time':>12s}{'first by this':>16s}")
    for name, row in rows.items():
        print(f"{name:44s}{statistics.median(row) * 1e3:9.3f} ms{ratio(first, row):16.2f}")
    for arm, peer, least in comparison.bars:
        found = ratio(rows[peer], rows[arm])
        print(f"  {peer} / {arm}: {found:.2f}, bar {least}: {'met' if found >= least else 'missed'}")


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median of the ratios within rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def repeated(step: Callable[[], Any], times: int) -> Callable[[], None]:
    """Return a function that calls another several times."""

    def several() -> None:
        for _ in range(times):
            step()

    return several


# --- inference of a block of a vision Transformer ----------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(Norm(x)), twice."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def inference(width: int, batch: int, tokens: int = 197) -> Comparison:
    """Compare a block by its norm, in evaluation."""
    x, blocks = torch.randn(batch, tokens, width), {}
    for name, kind in {"layer norm": None, "RMS norm": "rms", "UnifiedNorm": "unified"}.items():
        torch.manual_seed(0)
        blocks[name] = Block(width, width // 64).eval()
        if kind is not None:
            replace_norm(blocks[name], kind)
    blocks["UnifiedNorm, fused"] = fuse_norms(blocks["UnifiedNorm"], x)[0]
    blocks["no norm at all"] = Block(width, width // 64).eval()  # the bound of what any norm can gain
    blocks["no norm at all"].norm1 = blocks["no norm at all"].norm2 = nn.Identity()

    def arm(block: nn.Module) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: block(x))

    return Comparison(
        f"Inference of a ViT block, width {width}, {batch} x {tokens} positions",
        {name: arm(block) for name, block in blocks.items()},
        [("UnifiedNorm, fused", "layer norm", 1.3)],
    )


# --- training with unified norm ----------------------------------------------------------------------------------


class PlainUnifiedNorm(nn.Module):
    """The published algorithm, one equation a line.

    Args:
        channels: of the input.
        filtering: whether outliers are filtered.
        channels_second: transpose to (batch, channels, time) first, as the published code does.
        warmup: iterations without smoothing.
    """

    def __init__(self, channels: int, filtering: bool, channels_second: bool, warmup: int = 0) -> None:
        super().__init__()
        self.window, self.warmup, self.eps, self.momentum, self.t = 4, warmup, 1e-5, 0.9, 0
        self.filtering, self.channels_second = filtering, channels_second
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.moments, self.products = torch.zeros(2, self.window, channels)
        self.running, self.average = torch.ones(channels), torch.zeros(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input."""
        self.t += 1
        if not self.channels_second:
            return _PlainUnifiedNorm.apply(x, self.weight, self.bias, self, (0, 1))
        turned = x.permute(0, 2, 1).contiguous()
        return _PlainUnifiedNorm.apply(turned, self.weight, self.bias, self, (0, 2)).permute(0, 2, 1).contiguous()


class _PlainUnifiedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: PlainUnifiedNorm, dims: Any) -> Tensor:
        shape = (1, -1, 1) if dims == (0, 2) else (1, 1, -1)
        spread = norm.moments.sqrt().var()
        moment = (x * x).mean(dims)
        norm.moments[norm.t % norm.window] = moment
        skip = False
        if norm.filtering and norm.t >= max(norm.warmup, norm.window + 1):
            gap = norm.moments.mean(0) - norm.moments.log().mean(0).exp()
            skip = bool((gap > norm.window * spread).any())
            if skip:
                norm.moments[norm.t % norm.window] = norm.running
        smooth = norm.t > norm.window and norm.t >= norm.warmup and not skip
        variance = norm.moments.log().mean(0).exp() if smooth else moment
        ratio = (variance + norm.eps).sqrt() / (norm.running + norm.eps).sqrt()
        ratio = ratio.clamp(1 / 5, 5) if norm.t > max(1000, norm.warmup) and not skip else torch.ones_like(ratio)
        scale = (variance + norm.eps).sqrt()
        z = x / scale.view(shape)
        norm.running = norm.momentum * norm.running + (1 - norm.momentum) * variance
        ctx.save_for_backward(z, weight, ratio, scale)
        ctx.norm, ctx.dims, ctx.shape, ctx.t, ctx.skip, ctx.smooth = norm, dims, shape, norm.t, skip, smooth
        return weight.view(shape) * z + bias.view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, ratio, scale = ctx.saved_tensors
        norm, dims, shape = ctx.norm, ctx.dims, ctx.shape
        g = grad * weight.view(shape) * ratio.view(shape)
        product = (g * z).mean(dims)
        norm.products[ctx.t % norm.window] = norm.average if ctx.skip else product
        mean = norm.products.mean(0) if ctx.smooth else product
        norm.average = norm.momentum * norm.average + (1 - norm.momentum) * mean
        pull = mean if ctx.skip else norm.average
        grad_x = (g - pull.view(shape) * z) / scale.view(shape)
        return grad_x, (grad * (ratio.view(shape) * z)).sum(dims), grad.sum(dims), None, None


def training(shape: tuple[int, int, int], filtering: bool, calls: int) -> Comparison:
    """Compare forward and backward of unified norms after their warm-up; plain ones in both layouts."""
    channels = shape[-1]
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    norms = {
        "written plainly, channels second (as published)": PlainUnifiedNorm(channels, filtering, True),
        "written plainly, channels last": PlainUnifiedNorm(channels, filtering, False),
        "UnifiedNorm": UnifiedNorm(channels, warmup_iters=0, outlier_filtration=filtering),
        "nn.LayerNorm": nn.LayerNorm(channels),
    }

    def arm(norm: nn.Module) -> Callable[[], None]:
        def step() -> None:
            norm(x).backward(grad)
            x.grad = None

        return repeated(step, calls)

    same_result(norms["UnifiedNorm"], norms["written plainly, channels last"], x, grad)
    return Comparison(
        f"Unified norm, {calls} x forward and backward of {shape}, {'with' if filtering else 'no'} filter",
        {name: arm(norm) for name, norm in norms.items()},
        [("UnifiedNorm", name, 1.5) for name in norms if name.startswith("written")],
        31,
    )


def same_result(a: nn.Module, b: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Check that both norms take the same six steps."""
    for scale in (1.0, 1.1, 0.9, 1.2, 1.0, 0.8):
        outputs = [norm(scale * x) for norm in (a, b)]
        gradients = [torch.autograd.grad(y, x, grad)[0] for y in outputs]
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients)


# --- layer-normalised LSTM ---------------------------------------------------------------------------------------


class PlainLayerNormLSTM(nn.Module):
    """A loop over time of a cell with three ``nn.LayerNorm``, as it is written everywhere."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.of_input = nn.Sequential(nn.Linear(inputs, 4 * units, bias=False), nn.LayerNorm(4 * units))
        self.of_state = nn.Sequential(nn.Linear(units, 4 * units, bias=False), nn.LayerNorm(4 * units))
        self.of_cell = nn.LayerNorm(units)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        """Return all outputs of a (time, batch, inputs) sequence."""
        h = c = x.new_zeros(x.shape[1], self.units)
        outputs = []
        for step in x:
            i, f, g, o = (self.of_input(step) + self.of_state(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.of_cell(c))
            outputs.append(h)
        return torch.stack(outputs)


class CellLoop(nn.Module):
    """A loop over time of ``nn.LSTMCell``."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.cell, self.units = nn.LSTMCell(inputs, units), units

    def forward(self, x: Tensor) -> Tensor:
        """Return all outputs of a (time, batch, inputs) sequence."""
        h = c = x.new_zeros(x.shape[1], self.units)
        outputs = []
        for step in x:
            h, c = self.cell(step, (h, c))
            outputs.append(h)
        return torch.stack(outputs)


def recurrent(time_steps: int, batch: int, units: int) -> Comparison:
    """Compare forward and backward of LSTMs."""
    x = torch.randn(time_steps, batch, units)
    models = {
        "loop of cells with nn.LayerNorm": PlainLayerNormLSTM(units, units),
        "LayerNormLSTM": LayerNormLSTM(units, units),
        "loop of nn.LSTMCell, no norm": CellLoop(units, units),
        "nn.LSTM, no norm": nn.LSTM(units, units),
    }

    def arm(model: nn.Module) -> Callable[[], None]:
        def step() -> None:
            out = model(x)
            (out if isinstance(out, Tensor) else out[0]).sum().backward()

        return step

    return Comparison(
        f"LSTM, forward and backward, {time_steps} steps, batch {batch}, {units} units",
        {name: arm(model) for name, model in models.items()},
        [
            ("LayerNormLSTM", "loop of cells with nn.LayerNorm", 0.67),
            ("LayerNormLSTM", "loop of cells with nn.LayerNorm", 1.5),  # what we would like
            ("LayerNormLSTM", "loop of nn.LSTMCell, no norm", 0.77),
        ],
        31,
    )


COMPARISONS: dict[str, Callable[[], Comparison]] = {
    "inference-256": lambda: inference(256, 8),
    "inference-768": lambda: inference(768, 1),
    "training-small": lambda: training((16, 16, 32), False, 20),
    "training-filter": lambda: training((16, 16, 32), True, 20),
    "training-vit": lambda: training((8, 197, 256), False, 1),
    "lstm": lambda: recurrent(50, 8, 64),
    "lstm-wide": lambda: recurrent(50, 32, 256),
}


def main() -> None:
    """Run the comparisons that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(COMPARISONS)}; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="instead of each comparison's own number")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names or COMPARISONS:
        torch.manual_seed(0)
        comparison = COMPARISONS[name]()
        comparison.rounds = arguments.rounds or comparison.rounds
        report(comparison)


if __name__ == "__main__":
    main()
