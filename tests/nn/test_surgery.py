import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.nn import (
    LayerNormLSTM,
    QKNorm,
    ScaledEmbedding,
    SDDLinear,
    UnifiedNorm,
    add_qk_norm,
    apply_sdd,
    fuse_norms,
    replace_norm,
    scale_embedding,
    stabilize_residuals,
    swap_recurrent,
)
from poise.nn.add_qk_norm import NormalizedMultiheadAttention
from poise.nn.surgery import mix_in

MODELS = ("encoder", "vit", "gpt2", "llama")


def trains(model, x, run):
    """A training step reaches every parameter that takes part, and gradients are finite."""
    model.train()
    run(model, x).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_replaced_norms_are_fused_with_the_same_outputs(name, make, run):
    model, x = make(name)
    report = replace_norm(model, "unified", warmup_iters=0)
    norms = [module for module in model.modules() if isinstance(module, UnifiedNorm)]
    assert len(norms) == len(report.changed) >= 4
    for _ in range(6):
        trains(model, x, run)
    fused, report = fuse_norms(model, x)
    torch.testing.assert_close(run(fused, x), run(model, x), rtol=1e-5, atol=1e-5)
    assert report.max_difference < 1e-5
    left = sum(isinstance(module, UnifiedNorm) for module in fused.modules())
    assert left == len(report.skipped)
    assert len(report.changed) + left == len(norms)
    assert left == len(report.skipped), report.skipped
    # torch's attention takes its input whole; GPT-2's head is tied to its embedding, which must not change
    assert left == {"encoder": 2, "vit": 0, "gpt2": 1, "llama": 0}[name]
    assert report.report().to_html()


@pytest.mark.parametrize("kind", ["batch", "rms"])
def test_other_norms(kind, make, run):
    model, x = make("vit")
    with torch.no_grad():
        model.norm.weight.fill_(1.5)
    replace_norm(model, kind)
    assert (model.norm.weight == 1.5).all()
    trains(model, x, run)


def test_eval_of_a_torch_encoder_uses_the_new_modules(make):
    """Its fused path would read weights past them."""
    model, x = make("encoder")
    model.eval()
    replace_norm(model, "unified")
    for module in model.modules():
        if isinstance(module, UnifiedNorm):
            module.running_var.fill_(4.0)
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x))


class Residual(nn.Module):
    def __init__(self, post=False):
        super().__init__()
        self.norm, self.linear, self.post = UnifiedNorm(4), nn.Linear(4, 4), post

    def forward(self, x):
        y = self.norm(x)
        return (y if self.post else x) + self.linear(y)


def test_norm_that_is_used_twice_is_not_fused():
    fused, report = fuse_norms(nn.Sequential(Residual(), Residual(post=True)).eval(), torch.randn(3, 4))
    assert list(report.changed) == ["0.norm"]
    assert "also used by add" in report.skipped["1.norm"]
    assert isinstance(fused[1].norm, UnifiedNorm)


def test_fusing_needs_a_norm_in_evaluation_before_a_map():
    with pytest.raises(RuntimeError, match="training mode"):
        fuse_norms(nn.Sequential(UnifiedNorm(4), nn.Linear(4, 4)), torch.ones(2, 4))
    with pytest.raises(ValueError, match="no UnifiedNorm"):
        fuse_norms(nn.Linear(4, 4).eval(), torch.ones(2, 4))
    shared = nn.Linear(4, 4)
    model = nn.Sequential(UnifiedNorm(4), shared, nn.ReLU(), shared).eval()
    assert "used with other inputs too" in fuse_norms(model, torch.randn(2, 4))[1].skipped["0"]
    last = nn.Sequential(nn.Linear(4, 4), UnifiedNorm(4)).eval()
    assert "the model's output" in fuse_norms(last, torch.randn(2, 4))[1].skipped["1"]


@pytest.mark.parametrize("convolution", [False, True])
def test_batch_norms_are_fused(convolution):
    after = nn.Conv1d(4, 3, 1, bias=False) if convolution else nn.Linear(4, 3, bias=False)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), after)
    x = 3 * torch.randn(20, 4, 6) + 2 if convolution else 3 * torch.randn(20, 4) + 2
    nn.init.normal_(model[0].bias)
    for _ in range(5):
        model(x)
    model.eval()
    fused, report = fuse_norms(model, x)
    assert list(report.changed) == ["0"]
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_decoupled_maps(name, make, run):
    model, x = make(name)
    report = apply_sdd(model, n_layers=16)
    layers = {key: module for key, module in model.named_modules() if isinstance(module, SDDLinear)}
    assert set(layers) == set(report.changed)
    assert len(layers) == {"encoder": 4, "vit": 8, "gpt2": 8, "llama": 14}[name]
    ends = ("linear2", "proj", "fc2", "c_proj", "o_proj", "down_proj")
    for key, layer in layers.items():
        assert (layer.alpha == (0.25 if key.split(".")[-1] in ends else 1)).all()
        assert layer.groups == (3 if key.endswith(("qkv", "c_attn")) else 1)
    trains(model, x, run)


def test_depth_is_the_number_of_blocks(make):
    model, _ = make("llama")
    apply_sdd(model)
    assert model.model.layers[0].mlp.down_proj.alpha[0].item() == pytest.approx(1 / math.sqrt(2))


def test_decoupling_refuses():
    with pytest.raises(ValueError, match="n_layers cannot be inferred"):
        apply_sdd(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no linear map to exchange"):
        apply_sdd(nn.Sequential(nn.Conv1d(3, 3, 1)), n_layers=2)
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"1 shares its weights: 0\.weight, 1\.weight"):
        apply_sdd(tied, n_layers=2)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("name", MODELS)
def test_queries_and_keys_are_normalised(name, kind, make, run):
    model, x = make(name)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = add_qk_norm(model, x, kind)
    assert len(report.changed) == 2
    norms = [module for module in model.modules() if isinstance(module, QKNorm)]
    assert len(norms) == 2
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert not unexpected
    assert all(".qk_norm." in key for key in missing)
    out = run(model, x)
    for norm in norms:  # gains of zero make every logit zero: attention is the mean, whatever the projections
        norm.query_gain.data.zero_()
    flat = run(model, x)
    assert not torch.allclose(out, flat)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                value.mul_(100)
    torch.testing.assert_close(run(model, x), flat)
    trains(copy.deepcopy(model), x, run)
    assert len(add_qk_norm(model, x).skipped) == 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:-1], 2, 12).transpose(1, 2).chunk(3, -1)
        return F.scaled_dot_product_attention(query=q, key=k, value=v, is_causal=True).transpose(1, 2).reshape(x.shape)


def test_hand_written_attention_and_the_formula():
    attention = nn.Sequential(Attention())
    x = torch.randn(2, 5, 8)
    plain = copy.deepcopy(attention)
    add_qk_norm(attention, x)
    q, k, v = plain[0].qkv(x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)
    q, k = QKNorm(4)(q, k)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_multihead_attention_is_torchs_but_for_the_norm(batch_first, sizes):
    """With a norm that does nothing, every setting gives torch's own outputs and weights."""
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).eval()
    model = nn.ModuleList([attention])
    plain = copy.deepcopy(attention)
    x, key, value = (
        torch.randn(3, 5, 8),
        torch.randn(3, 7, sizes.get("kdim", 8)),
        torch.randn(3, 7, sizes.get("vdim", 8)),
    )
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[0, 5:] = True
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    if not batch_first:
        x, key, value = (each.transpose(0, 1) for each in (x, key, value))

    class NoNorm(nn.Module):
        def forward(self, query, key):
            return query, key

    attention.qk_norm = NoNorm()
    mix_in(attention, NormalizedMultiheadAttention)
    for settings in (
        {},
        {"need_weights": False},
        {"key_padding_mask": padding, "attn_mask": causal},
        {"attn_mask": torch.randn(6, 5, 7), "average_attn_weights": False},
    ):
        ours, theirs = (each(x, key, value, **settings) for each in (model[0], plain))
        torch.testing.assert_close(ours[0], theirs[0])
        if settings.get("need_weights", True):
            torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_causal_hint_without_a_mask_is_refused_as_torch_refuses_it(need_weights):
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    model, x = nn.Sequential(copy.deepcopy(plain)), torch.randn(3, 5, 8)
    model.forward = lambda x: model[0](x, x, x)[0]
    add_qk_norm(model, x)
    for attention in (plain, model[0]):
        with pytest.raises(RuntimeError, match="attn_mask"):
            attention(x, x, x, is_causal=True, need_weights=need_weights)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    changed = torch.cat([x[:, :-1], x[:, -1:] + 10], 1)  # the last token only
    before, after = (
        model[0](y, y, y, attn_mask=mask, is_causal=True, need_weights=need_weights)[0] for y in (x, changed)
    )
    torch.testing.assert_close(before[:, :-1], after[:, :-1])


def test_attention_that_multiplies_by_itself_is_named(make):
    model, x = make("llama")
    model.config._attn_implementation = "eager"
    report = add_qk_norm(model, x)
    assert not report.changed
    assert all("does not call scaled_dot_product_attention" in reason for reason in report.skipped.values())
    with pytest.raises(ValueError, match="no attention"):
        add_qk_norm(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))


@pytest.mark.slow
def test_normalised_attention_compiles():
    attention = nn.Sequential(Attention())
    x = torch.randn(2, 5, 8)
    add_qk_norm(attention, x)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), attention(x))


@pytest.mark.parametrize(("name", "tokens"), [("gpt2", "transformer.wte"), ("llama", "model.embed_tokens")])
def test_embeddings_are_scaled_to_unit_deviation(name, tokens, make, run):
    model, x = make(name)
    state = copy.deepcopy(model.state_dict())
    report = scale_embedding(model)
    assert list(report.changed) == [tokens]
    embedding = model.get_submodule(tokens)
    assert isinstance(embedding, ScaledEmbedding)
    assert embedding(torch.arange(40)).std().item() == pytest.approx(1, rel=0.01)
    assert (model.lm_head.weight is embedding.weight) == (name == "gpt2")  # tied heads stay tied
    model.load_state_dict(state)
    trains(model, x, run)
    assert "ScaledEmbedding" in scale_embedding(model).skipped[tokens]


def test_embeddings_left_alone():
    model = nn.ModuleDict({"frozen": nn.Embedding(4, 2), "sparse": nn.Embedding(4, 2, sparse=True)})
    model["frozen"].weight.requires_grad_(False)
    assert set(scale_embedding(model).skipped) == {"frozen", "sparse"}
    with pytest.raises(ValueError, match=r"no nn\.Embedding"):
        scale_embedding(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("name", MODELS)
def test_branches_with_factor_zero_leave_the_stream(name, make, run):
    model, x = make(name)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    plain = run(model, x)
    report = stabilize_residuals(model, "uniform")
    assert len(report.changed) == 4
    scales = [value for key, value in model.named_buffers() if key.endswith("residual_scale")]
    assert sum(scale.item() ** 2 for scale in scales) == pytest.approx(1)
    assert not model.load_state_dict(before, strict=False).unexpected_keys
    assert not torch.allclose(run(model, x), plain)
    for scale in scales:
        scale.fill_(1)
    torch.testing.assert_close(run(model, x), plain)
    trains(model, x, run)
    with pytest.raises(ValueError, match="scaled already"):
        stabilize_residuals(model)


@pytest.mark.parametrize(("kind", "branches"), [("resnet18", 8), ("resnet50", 16)])
def test_convolutional_blocks_are_scaled_after_their_last_batch_norm(kind, branches):
    import torchvision

    report = stabilize_residuals(getattr(torchvision.models, kind)())
    last = ".bn2" if kind == "resnet18" else ".bn3"
    assert len(report.changed) == branches
    assert all(name.endswith(last) for name in report.changed)


def test_stabilising_refuses():
    with pytest.raises(ValueError, match="no additive residual branch"):
        stabilize_residuals(nn.Sequential(nn.Linear(2, 2)))
    block = nn.ModuleDict({"proj": nn.Conv1d(2, 2, 1), "norm": nn.BatchNorm1d(2)})
    with pytest.raises(ValueError, match="which cancels any factor"):
        stabilize_residuals(nn.Sequential(block, copy.deepcopy(block)))


def test_recurrent_layers_are_swapped():
    model = nn.ModuleDict(
        {
            "a": nn.LSTM(3, 4, 2, bidirectional=True),
            "b": nn.GRU(3, 4),
            "c": nn.RNN(3, 4),
        }
    )
    model["d"], model["e"], model["f"] = nn.LSTM(3, 4, proj_size=2), nn.LSTMCell(3, 4), model["a"]
    state = model["a"].state_dict()
    report = swap_recurrent(model)
    assert set(report.changed) == {"a", "b", "c"}
    assert set(report.skipped) == {"d", "e"}
    assert isinstance(model["a"], LayerNormLSTM)
    assert model["f"] is model["a"]
    model["a"].load_state_dict(state)
    assert model["a"](torch.randn(5, 2, 3))[0].shape == (5, 2, 8)
    with pytest.raises(ValueError, match="no recurrent layer"):
        swap_recurrent(nn.Sequential(nn.Linear(2, 2)))


def test_bad_norms():
    with pytest.raises(ValueError, match="kind must be one of"):
        replace_norm(nn.Sequential(nn.LayerNorm(2)), "group")
    with pytest.raises(ValueError, match="no layer normalisation"):
        replace_norm(nn.Sequential(nn.Linear(2, 2)))
    report = replace_norm(nn.Sequential(nn.LayerNorm((2, 2))))
    assert "more than the last dimension" in report.skipped["0"]
