import pytest
import torch
from torch import nn

from poise.optim import decay_groups, param_groups


class RootMeanNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8)
        self.lstm = nn.LSTM(4, 4)
        self.norm = RootMeanNorm(4)
        self.alpha = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


def names(groups):
    return {group["weight_decay"]: set(group["names"]) for group in groups}


def test_matrices_are_decayed_and_biases_and_norms_are_not():
    model = Tied()
    found = names(decay_groups(model, 0.1))
    assert found[0.0] == {
        "layer.self_attn.in_proj_bias", "layer.self_attn.out_proj.bias", "layer.linear1.bias", "layer.linear2.bias",
        "layer.norm1.weight", "layer.norm1.bias", "layer.norm2.weight", "layer.norm2.bias",
        "lstm.bias_ih_l0", "lstm.bias_hh_l0", "norm.gain", "head.bias", "alpha",
    }  # fmt: skip
    assert "embed.weight" in found[0.1]
    assert "head.weight" not in found[0.1] | found[0.0]
    assert found[0.1] | found[0.0] == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gamma", (4,)), ("scale", ()), ("cls_token", (1, 1, 4)), ("class_token", (1, 1, 4)), ("reg_token", (1, 2, 4)),
        ("class_embedding", (1, 4)), ("register_tokens", (2, 4)), ("registers", (2, 4)), ("mask_token", (1, 4)),
        ("pos_embed", (1, 9, 4)), ("pos_embedding", (1, 9, 4)), ("positional_embedding", (9, 4)),
        ("position_embeddings", (1, 9, 4)), ("absolute_pos_embed", (1, 9, 4)),
        ("relative_position_bias_table", (49, 3)), ("v_bias", (2, 4)),
    ],
)  # fmt: skip
def test_gains_tokens_and_positions_of_their_own_are_not_decayed(name, shape):
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.ones(shape)))
    model.layer = nn.Linear(4, 4, bias=False)
    model.tokens_to_heads = nn.Parameter(torch.ones(4, 4))  # a matrix like any other
    found = names(decay_groups(model, 0.1))
    assert found == {0.1: {"layer.weight", "tokens_to_heads"}, 0.0: {name}}


def test_every_trainable_parameter_is_in_exactly_one_group_and_the_optimizer_takes_them():
    model = Tied()
    model.lstm.requires_grad_(False)
    groups = decay_groups(model, 0.1, exclude=["alpha"], embeddings=False)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    found = names(groups)
    assert {"alpha", "embed.weight"} <= found[0.0]
    torch.optim.AdamW(groups, lr=1e-3)


def test_a_tied_weight_follows_its_undecayed_place():
    assert "embed.weight" in names(decay_groups(Tied(), 0.1, exclude=["head.weight"]))[0.0]


def test_patterns_take_parameters_in_order():
    model = Tied()
    groups = param_groups(model, {"*.bias": {"lr": 1.0}, "layer.*": {"weight_decay": 0.5}})
    assert "layer.linear1.bias" in groups[0]["names"]
    assert groups[0]["lr"] == 1.0
    assert "layer.linear1.weight" in groups[1]["names"]
    assert "embed.weight" in groups[2]["names"]
    assert "lr" not in groups[2]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="fits no parameter; the model has"):
        decay_groups(Tied(), 0.1, exclude=["haed.*"])
    with pytest.raises(ValueError, match="pattern 'x' fits no parameter"):
        param_groups(Tied(), {"x": {}})
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight_decay must be finite"):
            decay_groups(Tied(), bad)
    with pytest.raises(ValueError, match="no parameter that requires"):
        decay_groups(Tied().requires_grad_(False), 0.1)
