import pytest
import torch
from torch import nn

from poise.optim import IndependentAdamW, mu_param_groups


class Transformer(nn.Module):
    def __init__(self, width=1024, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.positions = nn.Parameter(torch.zeros(8, width))
        self.attention = nn.MultiheadAttention(width, 2)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.patches = nn.Linear(17, width)
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def rates(model, base_width=256, lr=0.01, **settings):
    groups = mu_param_groups(model, base_width, lr, **settings)
    by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(by_id)  # nothing twice
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_linear_layers_of_four_times_the_width_learn_at_a_quarter():
    scaled = {"attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight", "head.weight"}
    for name, lr in rates(Transformer()).items():
        assert lr == pytest.approx(0.0025 if name in scaled else 0.01), name


def test_every_rate_is_unchanged_at_the_base_width():
    assert set(rates(Transformer(width=256)).values()) == {0.01}


def test_a_head_tied_to_the_embedding_is_an_embedding():
    assert rates(Transformer(tied=True))["embedding.weight"] == 0.01


def test_groups_go_into_an_optimizer():
    optimizer = IndependentAdamW(mu_param_groups(Transformer(64), 16, 0.02))
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.005]
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.02, 0.005]


def test_ambiguous_width_must_be_given():
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 3))
    with pytest.raises(ValueError, match=r"width must be given: the fan-ins \[10, 20\]"):
        mu_param_groups(model, 10)
    assert rates(model, 10, width=20) == {"0.weight": 0.01, "0.bias": 0.01, "1.weight": 0.005, "1.bias": 0.01}


@pytest.mark.parametrize("settings", [{"base_width": 0}, {"base_width": 8, "lr": 0.0}, {"base_width": 8, "width": -1}])
def test_numbers_must_be_positive(settings):
    with pytest.raises(ValueError, match="must be positive"):
        mu_param_groups(nn.Linear(8, 8), **settings)


def test_a_model_without_linear_layers():
    with pytest.raises(ValueError, match="must have a linear layer"):
        mu_param_groups(nn.LayerNorm(4), 2)


class Wide(nn.Module):
    """Token, hidden layer, head: widths between a data side and an output side that stay."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.hidden, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, 10, bias=False)
        with torch.random.fork_rng():
            torch.manual_seed(width)
            nn.init.normal_(self.embedding.weight)
            for layer in (self.hidden, self.head):
                nn.init.normal_(layer.weight, std=width**-0.5)


def first_step(width, groups_of):
    """Root mean square of what one Adam step adds to the hidden layer's output and to the logits."""
    net, tokens = Wide(width), torch.arange(10)
    x = net.embedding(tokens)
    hidden = net.hidden(x)
    loss = nn.functional.cross_entropy(net.head(hidden.relu()), (tokens * 3 + 1) % 10)
    optimizer = torch.optim.Adam(groups_of(net))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loss.backward()
    optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    changes = x @ moved["hidden.weight"].T, hidden.relu() @ moved["head.weight"].T
    return torch.stack([change.square().mean().sqrt() for change in changes])


def test_coordinate_check_a_step_changes_activations_as_much_at_every_width():
    widths = (64, 256, 1024)
    mu = torch.stack([first_step(width, lambda net: mu_param_groups(net, 64, 1e-3)) for width in widths])
    usual = torch.stack([first_step(width, lambda net: [{"params": net.parameters(), "lr": 1e-3}]) for width in widths])
    # Adam's first step is the sign of the gradient, which is aligned with the input: its sum over the fan-in grows
    # with the width, and muParam divides by just that.
    torch.testing.assert_close(mu, mu[:1].expand(3, 2), rtol=0.25, atol=0)
    torch.testing.assert_close(usual, usual[:1] * torch.tensor([[1.0], [4.0], [16.0]]), rtol=0.25, atol=0)
