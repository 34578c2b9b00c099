import pytest
import torch
from torch import nn

from poise.studies.character_gpt import CONTEXT, CharacterGPT
from poise.studies.model_stack import ModelStack


def models(n=3, qk_norm=True):
    generator = torch.Generator().manual_seed(0)
    nets = [CharacterGPT(32, 11, qk_norm, generator).double() for _ in range(n)]
    for parameter in (p for net in nets for p in net.parameters()):  # gains that are not one
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return nets


def ids(n=3):
    return torch.randint(11, (n, 2, CONTEXT), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_every_model_sees_its_own_input_and_gets_its_own_gradient(qk_norm):
    own, x = models(qk_norm=qk_norm), ids()
    alone = [net(one) for net, one in zip(own, x, strict=True)]
    grads = [
        torch.autograd.grad(out.square().mean(), list(net.parameters())) for net, out in zip(own, alone, strict=True)
    ]
    stack = ModelStack(own)
    out = stack(x)
    torch.testing.assert_close(out, torch.stack(alone))
    out.square().mean((1, 2, 3)).sum().backward()
    for i, parameter in enumerate(stack.parameters.values()):
        torch.testing.assert_close(parameter.grad, torch.stack([grad[i] for grad in grads]))


def test_clipping_is_torchs_for_each_model():
    own = models()
    stack = ModelStack(own)
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    (stack(ids()).square().mean((1, 2, 3)) * scale).sum().backward()
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
    stack(ids()).square().mean().backward()
    torch.optim.SGD(leaves, lr=0.1).step()
    for r, net in enumerate(own):
        for name, p in net.named_parameters():
            moved = before[r][name] - 0.1 * stack.parameters[name].grad[r]
            torch.testing.assert_close(p.detach(), before[r][name] if r == 0 else moved)
    stack.zero_grad()
    assert all((leaf.grad == 0).all() for leaf in leaves)


def test_models_of_other_shapes_are_refused():
    wide, narrow = (CharacterGPT(width, 11, False, torch.Generator()) for width in (32, 16))
    with pytest.raises(ValueError, match="same names and shapes"):
        ModelStack([wide, narrow])
