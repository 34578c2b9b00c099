import pytest
import torch
from torch import nn

from poise.studies.model_stack import ModelStack


def models(n=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double() for _ in range(n)]


def test_every_model_sees_its_own_input_and_gets_its_own_gradient():
    own, x = models(), torch.randn(3, 6, 4, dtype=torch.float64)
    alone = [net(one) for net, one in zip(own, x, strict=True)]
    grads = [
        torch.autograd.grad(out.square().mean(), list(net.parameters())) for net, out in zip(own, alone, strict=True)
    ]
    stack = ModelStack(own)
    out = stack(x)
    torch.testing.assert_close(out, torch.stack(alone))
    out.square().mean((1, 2)).sum().backward()
    for i, parameter in enumerate(stack.parameters.values()):
        torch.testing.assert_close(parameter.grad, torch.stack([grad[i] for grad in grads]))


def test_clipping_is_torchs_for_each_model():
    own, x = models(), torch.randn(3, 6, 4, dtype=torch.float64) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    stack = ModelStack(own)
    stack(x).square().mean((1, 2)).sum().backward()
    norms = []
    for r, net in enumerate(own):
        for name, p in net.named_parameters():
            p.grad = stack.parameters[name].grad[r].clone()
        norms.append(nn.utils.clip_grad_norm_(net.parameters(), 1.0))
    torch.testing.assert_close(stack.clip_grad_norm(1.0), torch.stack(norms))
    assert norms[0] < 1 < norms[-1]
    for r, net in enumerate(own):
        for name, p in net.named_parameters():
            torch.testing.assert_close(stack.parameters[name].grad[r], p.grad)


def test_a_leaf_steps_its_models_and_no_other():
    own = models()
    before = [{k: v.detach().clone() for k, v in net.named_parameters()} for net in own]
    stack = ModelStack(own)
    leaves = [stack.leaf(name, 1, 3) for name in stack.parameters]
    stack(torch.ones(3, 1, 4, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(leaves, lr=0.1).step()
    for r, net in enumerate(own):
        for name, p in net.named_parameters():
            moved = before[r][name] - 0.1 * stack.parameters[name].grad[r]
            torch.testing.assert_close(p.detach(), before[r][name] if r == 0 else moved)
    stack.zero_grad()
    assert all((leaf.grad == 0).all() for leaf in leaves)


def test_models_of_other_shapes_are_refused():
    with pytest.raises(RuntimeError, match="stack"):
        ModelStack([nn.Linear(2, 3), nn.Linear(2, 4)])
