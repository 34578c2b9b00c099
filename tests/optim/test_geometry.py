import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.optim.geometry import RULES, VIEWS, cosine, effective_lr, norm, radial, tangential


def tensors(seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (5,), (2, 3, 2, 2), (1, 7))
    return [[torch.randn(*s, generator=g, dtype=dtype) for s in shapes] for _ in range(2)]


def vectors(tensors, view):
    """The vectors of a view, by the definition."""
    if view == "global":
        return [torch.cat([t.flatten() for t in tensors])]
    if view == "channel":
        return [row.flatten() for t in tensors for row in (t if t.ndim > 1 else t[None])]
    return [t.flatten() for t in tensors]


@given(seed=st.integers(0, 10_000), view=st.sampled_from(VIEWS))
@settings(max_examples=20, deadline=None)
def test_parts_sum_to_the_whole_and_are_orthogonal_to_each_other(seed, view):
    w, x = tensors(seed)
    along, across = radial(w, x, view), tangential(w, x, view)
    for a, b, whole in zip(along, across, x, strict=True):
        torch.testing.assert_close(a + b, whole)
    every = zip(*(vectors(t, view) for t in (w, x, along, across)), strict=True)
    for wi, xi, ai, bi in every:
        torch.testing.assert_close(ai, wi * (wi @ xi) / (wi @ wi))
        assert abs(float(bi @ wi)) < 1e-12 * float(wi.norm() * xi.norm())
    torch.testing.assert_close(tangential(w, across, view), across)


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), view=st.sampled_from(VIEWS))
@settings(max_examples=15, deadline=None)
def test_the_size_of_weights_changes_no_part_and_no_cosine(seed, scale, view):
    w, x = tensors(seed)
    scaled = [scale * t for t in w]
    torch.testing.assert_close(tangential(scaled, x, view), tangential(w, x, view))
    torch.testing.assert_close(cosine(scaled, x, view), cosine(w, x, view))


@pytest.mark.parametrize("view", VIEWS)
def test_cosines_and_norms_by_their_definition(view):
    w, x = tensors(0)
    want = [float(a @ b / a.norm() / b.norm()) for a, b in zip(vectors(w, view), vectors(x, view), strict=True)]
    got = torch.cat([c.reshape(-1) for c in cosine(w, x, view)]).tolist()
    assert got == pytest.approx(want * (4 if view == "global" else 1))
    sizes = torch.cat([n.reshape(-1) for n in norm(w, view)]).tolist()
    assert sizes == pytest.approx([float(v.norm()) for v in vectors(w, view)] * (4 if view == "global" else 1))


def test_layouts_give_the_same_parts():
    w, x = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    for view in VIEWS:
        other = tangential(w.to(memory_format=torch.channels_last), x, view)
        torch.testing.assert_close(other, tangential(w, x, view))


def test_half_precision_is_summed_in_single():
    w = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    assert norm([w], "tensor")[0].item() == 64.0
    assert norm([torch.full((4,), 300.0, dtype=torch.float16)], "tensor")[0].item() == 600.0  # its square overflows
    part = tangential(w, torch.arange(4096).to(torch.bfloat16))
    assert part.dtype == torch.bfloat16


def test_a_zero_weight_has_no_radial_direction():
    w, x = torch.zeros(2, 3), torch.ones(2, 3)
    for view in VIEWS:
        assert torch.equal(tangential(w, x, view), x)
        assert not radial(w, x, view).any()
        assert not cosine(w, x, view).any()


def test_the_gradient_of_a_normalised_layer_is_tangential_and_the_heads_is_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, eps=1e-12), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(20, 6, dtype=torch.float64)
    nn.functional.cross_entropy(model(x), torch.arange(20) % 3).backward()
    hidden, head = model[0].weight, model[3].weight
    assert cosine(hidden, hidden.grad, "channel").abs().max() < 1e-9
    assert cosine(head, head.grad, "tensor").abs() > 1e-3


@pytest.mark.parametrize(("rule", "power"), list(zip(RULES, (2, 1, 1, 1), strict=True)))
def test_effective_rate_falls_with_the_norm(rule, power):
    w = torch.randn(3, 4)
    for view in ("channel", "layer"):
        once, thrice = effective_lr(w, 0.1, rule, view), effective_lr(3 * w, 0.1, rule, view)
        torch.testing.assert_close(once, thrice * 3**power)
    assert effective_lr(w, 0.1, rule, "channel").shape == (3,)


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_directions_move_alike_at_the_same_effective_rate(scale):
    def direction_after(c, lr):
        w = nn.Parameter(c * torch.tensor([0.6, 0.8], dtype=torch.float64))
        optimizer = torch.optim.SGD([w], lr)
        for _ in range(5):
            optimizer.zero_grad()
            (w[0] / w.norm() - 1).square().backward()
            optimizer.step()
        return (w / w.norm()).detach()

    w = torch.tensor([0.6, 0.8], dtype=torch.float64)
    lr = 0.2 * float(effective_lr(w, 1.0) / effective_lr(scale * w, 1.0))
    assert lr == pytest.approx(0.2 * scale**2)
    torch.testing.assert_close(direction_after(1.0, 0.2), direction_after(scale, lr))


def test_bad_input():
    w = torch.ones(2, 2)
    with pytest.raises(ValueError, match="view must be one of"):
        radial(w, w, "row")
    with pytest.raises(ValueError, match=r"same shapes, got \[\(2, 2\)\] and \[\(3,\)\]"):
        cosine(w, torch.ones(3))
    with pytest.raises(ValueError, match="rule must be one of"):
        effective_lr(w, 0.1, "lion")
    assert math.isinf(effective_lr(torch.zeros(3), 0.1))
