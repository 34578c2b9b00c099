import pytest
import torch
from torch import nn

from poise.optim import AdamP, scale_invariant_parameters


class Branches(nn.Module):
    """What a name would get wrong: a norm that nothing feeds, a weight normalised by hand, tied weights."""

    def __init__(self):
        super().__init__()
        self.norm_by_name = nn.Linear(6, 6)
        self.hidden = nn.Linear(6, 8, bias=False)
        self.layer_norm = nn.LayerNorm(8)
        self.by_hand = nn.Parameter(torch.randn(4, 8))
        self.unused = nn.Parameter(torch.randn(3))
        self.zero = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        h = self.layer_norm(self.hidden(torch.tanh(self.norm_by_name(x))))
        directions = self.by_hand / self.by_hand.norm(dim=1, keepdim=True)
        return {"logits": h @ directions.T + self.zero, "extras": (h, None)}


def test_finds_what_is_invariant_per_channel_and_as_a_whole():
    torch.manual_seed(0)
    found = scale_invariant_parameters(Branches(), torch.randn(32, 6))
    assert found == {"hidden.weight": "layer", "by_hand": "channel"}


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 3)
    )


def test_conv_before_batch_norm_and_nothing_of_the_model_changes():
    model, x = convolutional(), torch.randn(16, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert scale_invariant_parameters(model, (x,)) == {"0.weight": "channel"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert scale_invariant_parameters(model, {"input": x}, seed=3) == {"0.weight": "channel"}


def test_a_second_norm_makes_the_first_ones_scale_invariant():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.LayerNorm(6, bias=False), nn.LayerNorm(6), nn.Linear(6, 2))
    assert set(scale_invariant_parameters(model, torch.randn(9, 5))) == {"0.weight", "1.weight"}


def test_the_result_goes_into_param_groups():
    model = convolutional()
    found = scale_invariant_parameters(model, torch.randn(16, 1, 8, 8))
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in found], "scale_invariant": "channel"},
        {"params": [p for n, p in model.named_parameters() if n not in found], "scale_invariant": False},
    ]
    assert [g["scale_invariant"] for g in AdamP(groups).param_groups] == ["channel", False]


def test_bad_input():
    model, x = convolutional(), torch.randn(4, 1, 8, 8)
    with pytest.raises(ValueError, match="tolerance must lie in"):
        scale_invariant_parameters(model, x, tolerance=0.0)
    with pytest.raises(ValueError, match="finite floating-point"):
        scale_invariant_parameters(model, x * float("nan"))
    with pytest.raises(ValueError, match="training mode"):
        scale_invariant_parameters(model.eval(), x)
