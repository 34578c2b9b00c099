import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.losses import MaskedCrossEntropyLoss, build_mask, masked_logits

INF = math.inf
TASKS = [0, 0, 1, 1]
SCOPES = ("own", "current", "seen", "old")


def logits(n=6, classes=4, dtype=torch.float64, seed=0):
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(loss_fn, z, y, **kwargs):
    z = z.clone().requires_grad_()
    loss_fn(z, y, **kwargs).backward()
    return z.grad


@pytest.mark.parametrize(("m", "wanted"), [(-INF, math.log(2)), (0.0, math.log(4)), (1.0, math.log(2 + 2 * math.e))])
def test_worked_values(m, wanted):
    loss = MaskedCrossEntropyLoss(TASKS, "own", m)(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([2]))
    assert loss.item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("m", [-INF, -2.0, 0.0, 3.0])
def test_value_and_gradient_are_those_of_the_composition(scope, m):
    z, y = logits(8), torch.tensor([2, 3, 2, 3, 0, 1, 0, 2])
    if scope == "old":
        y[-1] = 1  # replayed samples mask classes of the current task
    memory = torch.arange(8) >= 4
    loss_fn = MaskedCrossEntropyLoss(TASKS, scope, m)
    mask = build_mask(y, torch.tensor(TASKS), scope, 1, memory)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    ours, wanted = loss_fn(a, y, is_memory=memory), F.cross_entropy(masked_logits(b, mask, m), y)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    ours.backward()
    wanted.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)
    assert (a.grad[mask] == 0).all()


@pytest.mark.parametrize("m", [-INF, 0.5])
def test_second_derivatives_are_right(m):
    z, y = logits(3).requires_grad_(), torch.tensor([0, 2, 3])
    loss_fn = MaskedCrossEntropyLoss(TASKS, "own", m, reduction="none")
    assert torch.autograd.gradcheck(lambda z: loss_fn(z, y), z)
    assert torch.autograd.gradgradcheck(lambda z: loss_fn(z, y), z)


def test_gradient_of_the_open_classes_sums_to_the_missing_probability():
    z, y = logits(5), torch.tensor([0, 1, 2, 3, 2])
    for m in (-INF, -1.0, 2.0):
        grad = 5 * gradient(MaskedCrossEntropyLoss(TASKS, "own", m), z, y)
        own = torch.tensor(TASKS) == torch.tensor(TASKS)[y][:, None]
        total = torch.where(own, z, m).exp().sum(1)
        torch.testing.assert_close(grad.sum(1), -2 * math.exp(m) / total, rtol=1e-12, atol=1e-15)


def test_loss_rises_with_the_mask_value_by_the_masked_probability():
    z, y = logits(5), torch.tensor([0, 1, 2, 3, 2])
    losses = [MaskedCrossEntropyLoss(TASKS, "own", m)(z, y).item() for m in (-INF, -3, -1, 0, 2)]
    assert losses == sorted(losses)
    h = 1e-6
    up, down = (MaskedCrossEntropyLoss(TASKS, "own", 1 + s, "none")(z, y) for s in (h, -h))
    own = torch.tensor(TASKS) == torch.tensor(TASKS)[y][:, None]
    torch.testing.assert_close(
        (up - down) / (2 * h), 2 * math.e / torch.where(own, z, 1.0).exp().sum(1), rtol=1e-7, atol=0
    )
    assert MaskedCrossEntropyLoss(TASKS, "own", -40.0)(z, y).item() == pytest.approx(losses[0], abs=1e-12)


def test_invariances():
    z, y = logits(5), torch.tensor([0, 1, 2, 3, 2])
    local = MaskedCrossEntropyLoss(TASKS, "own")
    own = torch.tensor(TASKS) == torch.tensor(TASKS)[y][:, None]
    assert local(z + 7 * ~own, y).item() == pytest.approx(local(z, y).item(), abs=1e-12)
    assert local(z + 7 * own, y).item() == pytest.approx(local(z, y).item(), abs=1e-12)
    finite = MaskedCrossEntropyLoss(TASKS, "own", 0.0)
    assert abs(finite(z + 7 * own, y).item() - finite(z, y).item()) > 0.01
    order = torch.tensor([3, 0, 4, 1, 2])
    assert finite(z[order], y[order]).item() == pytest.approx(finite(z, y).item(), abs=1e-12)


def test_one_task_or_all_classes_seen_is_cross_entropy():
    z, y = logits(5), torch.tensor([0, 1, 2, 3, 2])
    wanted = F.cross_entropy(z, y).item()
    for m in (-INF, 0.0, 3.0):
        assert MaskedCrossEntropyLoss([0] * 4, "own", m)(z, y).item() == pytest.approx(wanted, abs=1e-12)
        assert MaskedCrossEntropyLoss(TASKS, "seen", m)(z, y).item() == pytest.approx(wanted, abs=1e-12)


def test_the_reference_of_er_ace_is_met():
    z, y = logits(8), torch.tensor([2, 3, 2, 3, 0, 1, 0, 1])
    memory = torch.arange(8) >= 4
    new = F.cross_entropy(z[:4, 2:], y[:4] - 2)
    old = F.cross_entropy(z[4:], y[4:])
    ours = MaskedCrossEntropyLoss(TASKS, "current")(z, y, is_memory=memory)
    assert ours.item() == pytest.approx(((new + old) / 2).item(), abs=1e-12)


def test_smoothing_and_weights_are_those_of_torch_over_the_open_classes():
    z, y = logits(6), torch.tensor([0, 1, 0, 1, 1, 0])
    weight = torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    ours = MaskedCrossEntropyLoss(TASKS, "own", label_smoothing=0.1)(z, y)
    assert ours.item() == pytest.approx(F.cross_entropy(z[:, :2], y, label_smoothing=0.1).item(), abs=1e-12)
    ours = MaskedCrossEntropyLoss(TASKS, "own", weight=weight)(z, y)
    assert ours.item() == pytest.approx(F.cross_entropy(z[:, :2], y, weight[:2]).item(), abs=1e-12)
    for reduction in ("sum", "none"):
        ours = MaskedCrossEntropyLoss(TASKS, "own", reduction=reduction)(z, y)
        torch.testing.assert_close(ours, F.cross_entropy(z[:, :2], y, reduction=reduction))


def test_rows_of_masked_classes_do_not_move():
    head = nn.Linear(5, 4)
    before = copy.deepcopy(head)
    loss_fn = MaskedCrossEntropyLoss(TASKS, "own", 0.5)
    loss_fn(head(torch.randn(6, 5)), torch.tensor([2, 3, 2, 3, 2, 3])).backward()
    torch.optim.SGD(head.parameters(), 0.1).step()
    assert torch.equal(head.weight[:2], before.weight[:2])
    assert torch.equal(head.bias[:2], before.bias[:2])
    assert not torch.equal(head.weight[2:], before.weight[2:])


def test_a_head_that_grows():
    loss_fn = MaskedCrossEntropyLoss(scope="seen")
    loss_fn.add_task([0, 1])
    z, y = logits(4), torch.tensor([0, 1, 0, 1])
    assert loss_fn(z, y).item() == pytest.approx(F.cross_entropy(z[:, :2], y).item(), abs=1e-12)
    loss_fn.add_task([3])
    assert loss_fn(z, y).item() == pytest.approx(F.cross_entropy(z[:, [0, 1, 3]], y).item(), abs=1e-12)
    assert loss_fn.current_task == 1
    restored = MaskedCrossEntropyLoss(scope="seen")
    restored.load_state_dict(loss_fn.state_dict())
    assert restored(z, y) == loss_fn(z, y)
    assert restored.current_task == 1


def test_half_precision_and_extreme_logits_are_finite():
    loss_fn = MaskedCrossEntropyLoss(TASKS, "own")
    z = torch.tensor([[6e4, -6e4, 0.0, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = loss_fn(z, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(1.2e5, rel=1e-3)
    assert torch.isfinite(z.grad).all()


def test_bad_input_is_named():
    z, y = logits(3), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="scope must be one of"):
        MaskedCrossEntropyLoss(TASKS, "all")
    for m in (math.nan, INF):
        with pytest.raises(ValueError, match="mask_value"):
            MaskedCrossEntropyLoss(TASKS, mask_value=m)
    with pytest.raises(ValueError, match="reduction"):
        MaskedCrossEntropyLoss(TASKS, reduction="max")
    with pytest.raises(ValueError, match="label_smoothing"):
        MaskedCrossEntropyLoss(TASKS, label_smoothing=1.0)
    with pytest.raises(ValueError, match="known \\[1\\]"):
        MaskedCrossEntropyLoss(TASKS).add_task([1, 5])
    with pytest.raises(ValueError, match="at least 4 classes"):
        MaskedCrossEntropyLoss(TASKS)(z[:, :3], y)
    with pytest.raises(KeyError, match=r"got \[3\]"):
        MaskedCrossEntropyLoss([0, 0, 1], "seen")(z, torch.tensor([0, 1, 3]))
    for target in (4, -1):
        with pytest.raises(KeyError, match=rf"got \[{target}\]"):
            MaskedCrossEntropyLoss(TASKS, "seen")(z, torch.tensor([0, 1, target]))
    for scope in ("current", "old"):
        with pytest.raises(ValueError, match="is_memory must say"):
            MaskedCrossEntropyLoss(TASKS, scope)(z, y)
    with pytest.raises(ValueError, match="class 2 in row 2"):
        MaskedCrossEntropyLoss(TASKS, "old")(z, y, is_memory=torch.tensor([True, True, True]))
    with pytest.raises(ValueError, match="class 2 in row 2"):
        MaskedCrossEntropyLoss(TASKS, "seen")(z, y, task=0)
