import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.studies.stacked_mlp import StackedMLP, batch_indices, stacked_accuracy, stacked_cross_entropy

SEEDS, WIDTHS = (3, 4, 5), (6, 8, 7, 4)


def alone(stack, i, norm):
    """One network of the stack as torch's own layers."""
    layers = []
    for j, weight in enumerate(stack.weights):
        last = j == len(stack.weights) - 1
        linear = nn.Linear(*weight.shape[1:], bias=last or not norm, dtype=torch.float64)
        linear.weight.data.copy_(weight.data[i].T)
        if linear.bias is not None:
            linear.bias.data.copy_(stack.biases[-1 if norm else j].data[i, 0])
        layers.append(linear)
        if not last:
            layers += [nn.BatchNorm1d(weight.shape[2], eps=1e-5, dtype=torch.float64)] if norm else []
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", [False, True])
def test_each_network_trains_as_if_it_were_alone(norm):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=g, dtype=torch.float64), torch.randint(4, (50,), generator=g)
    stack = StackedMLP(SEEDS, WIDTHS, 1e-5 if norm else None, torch.float64)
    singles = [alone(stack, i, norm) for i in range(3)]
    picks = batch_indices(SEEDS, 50, steps=10, batch=12)

    def make(params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)

    optimizer, others = make(stack.parameters()), [make(s.parameters()) for s in singles]
    for pick in picks:
        losses = stacked_cross_entropy(stack(x[pick]), y[pick])
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        for i, (single, other) in enumerate(zip(singles, others, strict=True)):
            loss = F.cross_entropy(single(x[pick[i]]), y[pick[i]])
            torch.testing.assert_close(losses[i], loss, rtol=1e-10, atol=1e-12)
            other.zero_grad()
            loss.backward()
            other.step()
    expected = [(single.eval()(x).argmax(1) == y).double().mean() for single in singles]
    torch.testing.assert_close(stacked_accuracy(stack, x, y), torch.stack(expected))
    assert stack.training


def test_a_seed_decides_weights_and_batches_whatever_stands_beside_it():
    pair, single = StackedMLP((7, 8), WIDTHS), StackedMLP((8,), WIDTHS)
    for a, b in zip(pair.parameters(), single.parameters(), strict=True):
        assert torch.equal(a[1], b[0])
        assert not torch.equal(a[0], a[1])
    assert torch.equal(batch_indices((7, 8), 99, 4, 5)[:, 1], batch_indices((8,), 99, 4, 5)[:, 0])


def test_weights_start_within_the_bounds_of_torchs_linear_layers():
    stack = StackedMLP((0,), (100, 50, 3))
    bound = 0.1
    assert 0.09 < stack.weights[0].abs().max() <= bound
    assert stack.weights[0].var().item() == pytest.approx(bound**2 / 3, rel=0.1)
    assert stack.biases[0].abs().max() <= bound


def test_one_network_of_the_stack_is_the_same_function():
    stack, x = StackedMLP(SEEDS, WIDTHS), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stack.network(1)(x), stack(x)[1])
    with pytest.raises(ValueError, match="batch norm"):
        StackedMLP(SEEDS, WIDTHS, 1e-5).network(0)
