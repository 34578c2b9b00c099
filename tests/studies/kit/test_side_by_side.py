import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.nn.mlp import mlp, seeded_mlp
from poise.studies.kit.batches import batch_indices, cross_entropies
from poise.studies.kit.character_gpt import CONTEXT, CharacterGPT
from poise.studies.kit.networks import relu_net
from poise.studies.kit.side_by_side import SideBySide
from poise.studies.kit.stacked_layers import STACKED

SEEDS, WIDTHS = (3, 4, 5), (6, 8, 7, 4)


def plain(seed):
    return relu_net(WIDTHS, seed, dtype=torch.float64)


def batch_norm(seed):
    return relu_net(WIDTHS, seed, 1e-5, torch.float64)


def layer_norm(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)).double()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("kinds", [STACKED, {}], ids=["stacked", "vmap"])
@pytest.mark.parametrize("make", [plain, batch_norm, layer_norm])
def test_each_network_trains_as_if_it_were_alone(make, kinds):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=g, dtype=torch.float64), torch.randint(4, (50,), generator=g)
    singles = [make(seed) for seed in SEEDS]
    nets = SideBySide(singles, kinds)
    assert nets.is_stacked == bool(kinds)

    def optimizer_of(params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)

    optimizer, others = optimizer_of(nets.parameters()), [optimizer_of(s.parameters()) for s in singles]
    for pick in batch_indices(SEEDS, 50, steps=10, batch=12):
        losses = cross_entropies(nets(x[pick]), y[pick])
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
    everywhere = x.expand(3, -1, -1), y.expand(3, -1)
    torch.testing.assert_close(nets.accuracy(*everywhere), torch.stack(expected))
    for own, single in zip(nets.models, singles, strict=True):  # the copies share what was trained
        torch.testing.assert_close(own.eval()(x), single(x))
        for name, buffer in single.named_buffers():
            torch.testing.assert_close(own.get_buffer(name), buffer)


@pytest.mark.parametrize("kinds", [STACKED, {}], ids=["stacked", "vmap"])
def test_gradients_of_single_networks_are_measured_scaled_and_clipped(kinds):
    singles = [plain(seed) for seed in SEEDS]
    nets, x = SideBySide(singles, kinds), torch.randn(3, 5, 6, dtype=torch.float64)
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    (nets(x).square().mean((1, 2)) * scale).sum().backward()
    before = {name: p.grad.clone() for name, p in nets.named_parameters.items()}
    norms = []
    for i, net in enumerate(singles):
        for name, p in net.named_parameters():
            p.grad = before[name][i].clone()
        norms.append(nn.utils.clip_grad_norm_(net.parameters(), 1.0))
    torch.testing.assert_close(nets.gradient_norms(), torch.stack(norms))
    torch.testing.assert_close(nets.clip_grad_norm(1.0), torch.stack(norms))
    assert norms[0] < 1 < norms[-1]
    for i, net in enumerate(singles):
        for name, p in net.named_parameters():
            torch.testing.assert_close(nets.named_parameters[name].grad[i], p.grad)
    clipped = nets.gradient_norms()
    nets.scale_gradients(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(nets.gradient_norms(), clipped * torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))


def gpts(n=3, qk_norm=True):
    generator = torch.Generator().manual_seed(0)
    nets = [CharacterGPT(32, 11, qk_norm, generator).double() for _ in range(n)]
    for parameter in (p for net in nets for p in net.parameters()):  # gains that are not one
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return nets


def ids(n=3):
    return torch.randint(11, (n, 2, CONTEXT), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_character_gpt_runs_on_stacked_layers_with_its_own_input_and_gradient(qk_norm):
    own, x = gpts(qk_norm=qk_norm), ids()
    alone = [net(one) for net, one in zip(own, x, strict=True)]
    grads = [
        torch.autograd.grad(out.square().mean(), list(net.parameters())) for net, out in zip(own, alone, strict=True)
    ]
    nets = SideBySide(own)
    assert nets.is_stacked
    out = nets(x)
    torch.testing.assert_close(out, torch.stack(alone))
    out.square().mean((1, 2, 3)).sum().backward()
    for i, parameter in enumerate(nets.parameters()):
        torch.testing.assert_close(parameter.grad, torch.stack([grad[i] for grad in grads]))


def test_a_leaf_steps_its_networks_and_no_other():
    nets = SideBySide(gpts())
    before = [{k: v.detach().clone() for k, v in net.named_parameters()} for net in nets.models]
    leaves = [nets.leaf(name, 1, 3) for name in nets.named_parameters]
    nets(ids()).square().mean().backward()
    torch.optim.SGD(leaves, lr=0.1).step()
    for r, net in enumerate(nets.models):
        for name, p in net.named_parameters():
            moved = before[r][name] - 0.1 * nets.named_parameters[name].grad[r]
            torch.testing.assert_close(p.detach(), before[r][name] if r == 0 else moved)
    nets.zero_grad()
    assert all((leaf.grad == 0).all() for leaf in leaves)


def test_what_cannot_train_side_by_side_is_refused():
    with pytest.raises(ValueError, match="same names and shapes"):
        SideBySide([relu_net((4, 3, 2), 0), relu_net((4, 5, 2), 0)])
    with pytest.raises(ValueError, match="at least one model"):
        SideBySide([])


def test_the_models_that_are_given_stay_as_they_are():
    model = plain(0)
    before = [p.detach().clone() for p in model.parameters()]
    nets = SideBySide([model, model])
    nets(torch.ones(2, 3, 6, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(nets.parameters(), lr=1.0).step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_seed_decides_weights_and_batches_whatever_stands_beside_it():
    pair, single = SideBySide([relu_net(WIDTHS, s) for s in (7, 8)]), SideBySide([relu_net(WIDTHS, 8)])
    for a, b in zip(pair.parameters(), single.parameters(), strict=True):
        assert torch.equal(a[1], b[0])
        assert not torch.equal(a[0], a[1])
    assert torch.equal(batch_indices((7, 8), 99, 4, 5)[:, 1], batch_indices((8,), 99, 4, 5)[:, 0])


def test_weights_start_within_the_bounds_of_torchs_linear_layers():
    first = relu_net((100, 50, 3), 0)[0]
    bound = 0.1
    assert 0.09 < first.weight.abs().max() <= bound
    assert first.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.1)
    assert first.bias.abs().max() <= bound


def test_a_seeded_mlp_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    made = seeded_mlp((5, 4, 2), 3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    assert torch.equal(made[0].weight, mlp((5, 4, 2))[0].weight)


def test_a_network_that_became_nan_answers_nothing_and_harms_no_other():
    models = [nn.Linear(2, 3) for _ in range(2)]
    models[0].weight.data.fill_(math.nan)
    nets = SideBySide(models)
    x = torch.ones(2, 5, 2)
    y = models[1](x[1]).argmax(-1).expand(2, 5)
    assert nets.accuracy(x, y).tolist() == [0.0, 1.0]
