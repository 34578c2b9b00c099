"""The same classes, whose inputs change from task to task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from poise.continual.streams.class_incremental import Pair
from poise.continual.streams.task import Task

Transform = Callable[[Tensor], Tensor]


def domain_incremental(train: Pair, test: Pair, transforms: Mapping[str, Transform]) -> list[Task]:
    """Return one task for each transform of the inputs.

    Args:
        train: inputs and targets.
        test: held-out inputs and targets.
        transforms: by the name of the task, what becomes of the inputs.

    Raises:
        ValueError: if there is no transform.
    """
    if not transforms:
        raise ValueError("transforms must hold at least one, got none")
    return [Task(f(train[0]), train[1], f(test[0]), test[1], name) for name, f in transforms.items()]


def rotated_images(train: Pair, test: Pair, angles: Sequence[float]) -> list[Task]:
    """Return one task for each angle by which all images are rotated.

    Args:
        train: square images, flat (samples, side * side) or (samples, channels, side, side), and targets.
        test: held-out images and targets.
        angles: in degrees, counter-clockwise.

    Raises:
        ValueError: if there is no angle, or images are not square.
    """
    return domain_incremental(train, test, {f"{angle:g} degrees": _rotation(angle) for angle in angles})


def permuted_pixels(train: Pair, test: Pair, tasks: int, *, seed: int = 0) -> list[Task]:
    """Return tasks whose inputs have their columns in another random order each; the first is as it is.

    Args:
        train: inputs of shape (samples, columns) and targets.
        test: held-out inputs and targets.
        tasks: how many, at least 1.
        seed: of the orders.

    Raises:
        ValueError: if ``tasks`` is below 1.
    """
    if tasks < 1:
        raise ValueError(f"tasks must be at least 1, got {tasks}")
    generator, columns = torch.Generator().manual_seed(seed), train[0].shape[1]
    orders = [torch.arange(columns), *(torch.randperm(columns, generator=generator) for _ in range(tasks - 1))]
    return domain_incremental(train, test, {f"order {i + 1}": _columns(order) for i, order in enumerate(orders)})


def rotate(images: Float[Tensor, "samples ..."], angle: float) -> Float[Tensor, "samples ..."]:
    """Rotate square images counter-clockwise about their centre, bilinearly, with zeros outside.

    Args:
        images: (samples, side * side) or (samples, channels, side, side).
        angle: in degrees.

    Raises:
        ValueError: if images are not square.
    """
    side = math.isqrt(images.shape[1]) if images.ndim == 2 else images.shape[-1]
    if (images.ndim == 2 and side * side != images.shape[1]) or (images.ndim != 2 and images.shape[-2] != side):
        raise ValueError(f"images must be square, got the shape {tuple(images.shape)}")
    grid = images.reshape(len(images), -1, side, side)
    turn = math.radians(angle)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0]]).to(grid)
    field = F.affine_grid(matrix.expand(len(grid), 2, 3), list(grid.shape), align_corners=False)
    return F.grid_sample(grid, field, align_corners=False).reshape(images.shape)


def _rotation(angle: float) -> Transform:
    return lambda images: images if angle == 0 else rotate(images, angle)


def _columns(order: Tensor) -> Transform:
    return lambda inputs: inputs[:, order]
