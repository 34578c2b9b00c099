import pytest
import torch
import torch.nn.functional as F

from poise.losses import SoftTargetLoss


def sure(classes, predicted):
    return (10 * F.one_hot(torch.tensor([predicted]), classes)).double()


@pytest.mark.parametrize("predicted", [2, 4])
def test_a_fresh_target_of_an_old_class_does_not_depend_on_the_prediction(predicted):
    loss_fn = SoftTargetLoss(5, old_classes=range(5)).double()
    p = sure(5, predicted).softmax(1)
    t = loss_fn.soft_targets(p, p.argmax(1), torch.tensor([2]))[0]
    assert t[2].item() == pytest.approx(1 / 1.8)
    assert t[0].item() == pytest.approx(0.2 / 1.8)


def test_target_of_a_new_class_is_the_prediction_changed_in_two_places():
    loss_fn = SoftTargetLoss(4, old_classes=[0])
    p = torch.tensor([[0.1, 0.2, 0.6, 0.1]], dtype=torch.float64)
    t = loss_fn.soft_targets(p, p.argmax(1), torch.tensor([1]))
    torch.testing.assert_close(t, torch.tensor([[0.1, 1.0, 0.25, 0.1]], dtype=torch.float64) / 1.45)


def test_no_gradient_passes_through_the_targets():
    torch.manual_seed(0)
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    loss_fn = SoftTargetLoss(5, old_classes=[0, 1, 2]).double()
    loss_fn(z, y).backward()
    p = z.detach().softmax(1)
    t = loss_fn.soft_targets(p, p.argmax(1), y)
    torch.testing.assert_close(t.sum(1), torch.ones(6, dtype=torch.float64))
    assert (t.argmax(1) == y).all()
    torch.testing.assert_close(z.grad, (p - t) / 6, rtol=0, atol=1e-10)
    value = -(t * p.log()).sum(1).mean()
    torch.testing.assert_close(loss_fn(z.detach(), y), value, rtol=0, atol=1e-10)


def test_targets_become_the_mean_prediction_of_samples_that_were_right():
    torch.manual_seed(1)
    loss_fn = SoftTargetLoss(4, old_classes=[0, 1]).double()
    right = []
    for _ in range(5):
        z, y = 2 * torch.randn(20, 4, dtype=torch.float64), torch.randint(4, (20,))
        before = loss_fn.targets.clone()
        loss_fn(z, y)
        assert torch.equal(loss_fn.targets, before)  # moved after the step only
        p = z.softmax(1)
        right += [row for row, c in zip(p, y, strict=True) if c == 1 and row.argmax() == 1]
        loss_fn.update()
    torch.testing.assert_close(loss_fn.targets[1], torch.stack(right).mean(0))
    restored = SoftTargetLoss(4, old_classes=[]).double()
    restored.load_state_dict(loss_fn.state_dict())
    assert restored(z, y) == loss_fn(z, y)
    loss_fn.reset()
    assert (loss_fn.targets == 0.25).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="old_classes must lie"):
        SoftTargetLoss(3, [3])
    with pytest.raises(ValueError, match="must have 3 classes"):
        SoftTargetLoss(3, [0])(torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="target must lie"):
        SoftTargetLoss(3, [0])(torch.zeros(2, 3), torch.tensor([0, 3]))
