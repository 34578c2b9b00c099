import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam

from poise.continual import (
    ContinualEvaluator,
    LoRALinear,
    class_mean_init_,
    find_head,
    grow_head,
    head_inputs,
    inject_lora,
    merge_lora_,
)
from poise.optim import AGEM, EMA


def network(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes))


def step(model, optimizer, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 6, generator=generator), torch.randint(classes, (16,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("wrap", [lambda o: o, AGEM], ids=["plain", "wrapped"])
def test_a_grown_head_keeps_the_state_of_the_old_rows_bit_for_bit(wrap):
    model = network()
    inner = Adam(model.parameters(), 0.01)
    optimizer = wrap(inner)
    step(model, inner, 4)
    old = {name: getattr(model[4], name) for name in ("weight", "bias")}
    before = {name: (p.detach().clone(), copy.deepcopy(inner.state[p])) for name, p in old.items()}
    logits = model(torch.ones(1, 6))
    layer = grow_head(model, optimizer, 2)
    assert layer is model[4]
    assert layer.out_features == 6
    for name, (values, state) in before.items():
        new = getattr(layer, name)
        assert torch.equal(new[:4], values)
        grown = inner.state[new]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(grown[key][:4], state[key])
            assert (grown[key][4:] == 0).all()
        assert grown["step"] == state["step"]
        assert old[name] not in inner.state
        assert any(new is p for p in inner.param_groups[0]["params"])
        assert not any(old[name] is p for p in inner.param_groups[0]["params"])
    torch.testing.assert_close(model(torch.ones(1, 6))[:, :4], logits, rtol=1e-6, atol=1e-6)
    frozen = layer.weight.detach().clone()
    step(model, inner, 6)
    assert not torch.equal(frozen[4:], layer.weight[4:])


def test_new_rows_are_those_of_the_generator_and_as_large_as_torch_makes_them():
    a, b = (grow_head(network(), None, 50, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a.weight, b.weight)
    assert a.weight[4:].abs().max() <= 8**-0.5
    assert a.weight[4:].std().item() == pytest.approx(8**-0.5 / 3**0.5, rel=0.1)


def test_the_head_is_the_last_linear_layer_or_the_named_one():
    model = network()
    assert find_head(model) == ("4", model[4])
    assert find_head(model, "2")[1] is model[2]
    with pytest.raises(ValueError, match="linear output layer, got none in Conv1d"):
        find_head(nn.Conv1d(1, 1, 1))
    with pytest.raises(ValueError, match="name a module"):
        find_head(model, "classifier")
    with pytest.raises(TypeError, match="head must be"):
        find_head(model, "1")
    with pytest.raises(ValueError, match="n must be at least 1"):
        grow_head(model, None, 0)
    x = torch.randn(5, 6)
    torch.testing.assert_close(head_inputs(model, model[4], x), model[:4](x))
    with pytest.raises(ValueError, match="used once"):
        head_inputs(model, nn.Linear(8, 2), x)


def test_a_new_row_that_wins_everywhere_breaks_old_classes_at_update_0():
    """Features e1 and e2, W = I: a row 2 e1 takes class 0, and the data-driven row of e3 does not."""
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3)[:2])
    x, y = torch.eye(3)[:2].repeat(5, 1), torch.arange(2).repeat(5)

    def old_accuracy():
        evaluator = ContinualEvaluator({"old": (x, y)}, subset=None)
        evaluator.begin_task(0, model)
        return evaluator.history.accuracy[0, 0]

    assert old_accuracy() == 1
    grow_head(model, None, 1)
    with torch.no_grad():
        model.weight[2] = torch.tensor([2.0, 0, 0])
    assert old_accuracy() == 0.5
    class_mean_init_(model, torch.tensor([[0.0, 0, 3]]), torch.tensor([2]), [2])
    assert old_accuracy() == 1
    assert model.weight[2].tolist() == [0, 0, 1]


def test_raw_rows_are_means_of_unit_vectors():
    layer = nn.Linear(4, 3)
    features, labels = torch.randn(20, 4), torch.arange(20) % 2 + 1
    bias = layer.bias.detach().clone()
    class_mean_init_(layer, features, labels, [1, 2], scale=None)
    for c in (1, 2):
        own = features[labels == c]
        torch.testing.assert_close(layer.weight[c], (own / own.norm(dim=1, keepdim=True)).mean(0))
        assert layer.weight[c].norm() < 1
    assert torch.equal(layer.bias, bias)
    class_mean_init_(layer, torch.ones(3, 4) * torch.tensor([[1.0], [2], [5]]), torch.ones(3), [1], scale=None)
    assert layer.weight[1].norm().item() == pytest.approx(1)  # all unit features coincide


def test_rows_with_old_features_ignore_what_all_have_in_common_and_win_few_old_samples():
    torch.manual_seed(0)
    shift = torch.tensor([10.0, 10, 10, 10])
    old, features, labels = torch.randn(200, 4), torch.randn(20, 4) + torch.eye(4)[3], torch.full((20,), 3)
    layer = nn.Linear(4, 4)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.bias -= twin.weight @ shift  # the same outputs on moved features
    class_mean_init_(layer, features, labels, [3], old_features=old, most=0.1)
    class_mean_init_(twin, features + shift, labels, [3], old_features=old + shift, most=0.1)
    torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(features), twin(features + shift), rtol=1e-3, atol=1e-3)
    assert layer.weight[3].norm().item() == pytest.approx(layer.weight[:3].norm(dim=1).mean().item())
    assert (layer(old).argmax(1) == 3).sum() == 20


def test_bad_input_of_the_initialisation_is_named():
    layer = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"none for \[2\]"):
        class_mean_init_(layer, torch.ones(2, 4), torch.zeros(2), [0, 2])
    with pytest.raises(ValueError, match=r"none for \[5\]"):
        class_mean_init_(layer, torch.ones(2, 4), torch.full((2,), 5), [5])
    with pytest.raises(ValueError, match="no direction"):
        class_mean_init_(layer, torch.zeros(2, 4), torch.zeros(2), [0])
    with pytest.raises(TypeError, match="layer must be"):
        class_mean_init_(nn.Conv1d(1, 1, 1), torch.ones(2, 4), torch.zeros(2), [0])
    with pytest.raises(ValueError, match="most must lie"):
        class_mean_init_(layer, torch.ones(2, 4), torch.zeros(2), [0], most=0.0)
    with pytest.raises(ValueError, match="scale must be"):
        class_mean_init_(layer, torch.ones(2, 4), torch.zeros(2), [0], scale="fit")


def test_low_rank_changes_begin_at_zero_have_their_rank_and_merge():
    model = network()
    plain, x = copy.deepcopy(model), torch.randn(7, 6)
    assert inject_lora(model, rank=2) == ["0", "2"]
    assert torch.equal(model(x), plain(x))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.a", "0.b", "2.a", "2.b", "4.weight", "4.bias"}
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for seed in range(5):
        step(model, optimizer, 4, seed)
    wanted = model(x)
    assert merge_lora_(model) == ["0", "2"]
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
    change = model[0].weight - plain[0].weight
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 2
    assert torch.equal(model[0].bias, plain[0].bias)
    assert all(p.requires_grad for p in model.parameters())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 6\]"):
        inject_lora(model, rank=7)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="targets must match"):
        inject_lora(model, rank=1, targets=["attention.*"])
    with pytest.raises(ValueError, match="rank must lie"):
        LoRALinear(nn.Linear(3, 2), 3)


def test_an_average_follows_a_head_that_grows():
    model = network()
    optimizer, ema = SGD(model.parameters(), 0.1), EMA(model, 0.9)
    step(model, optimizer, 4)
    ema.update()
    kept = ema.module[4].weight.clone()
    grow_head(model, optimizer, 2)
    with pytest.raises(RuntimeError, match=r"4.weight of the model .* sync_structure"):
        ema.update()
    ema.sync_structure()
    assert torch.equal(ema.module[4].weight[:4], kept)
    assert torch.equal(ema.module[4].weight[4:], model[4].weight[4:])
    start = ema.module[4].weight.clone()
    step(model, optimizer, 6)
    ema.update()
    torch.testing.assert_close(ema.module[4].weight, 0.9 * start + 0.1 * model[4].weight)
