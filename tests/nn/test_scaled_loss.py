import random

import numpy as np
import pytest
import torch
from torch import nn

from poise.nn import gradinit_adam_, gradinit_sgd_, metainit_
from poise.nn.scaled_loss import ScaledLoss, endless

INITIALISERS = [metainit_, gradinit_sgd_, gradinit_adam_]
CRITERION = nn.CrossEntropyLoss()


def batches(count=6, n=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)) for _ in range(count)
    ]


def net(*middle, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("initialise", INITIALISERS)
def test_nothing_else_is_touched(initialise):
    model = net(nn.BatchNorm1d(16), nn.Dropout(0.5))
    model[2].eval()
    model[0].bias.requires_grad_(False)
    model[0].bias.grad = torch.ones(16)
    modes, buffers = [m.training for m in model], {k: b.clone() for k, b in model.named_buffers()}
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    report = initialise(model, CRITERION, batches(), steps=3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert [m.training for m in model] == modes
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers())
    assert torch.equal(model[0].bias, before["0.bias"])
    assert "0.bias" not in {**report.norms, **report.skipped}
    assert torch.equal(model[0].bias.grad, torch.ones(16))
    assert model[0].weight.grad is None
    for name, p in model.named_parameters():  # only lengths change
        old = before[name].flatten()
        assert torch.allclose(p.flatten() * old.norm(), old * p.norm(), atol=1e-5)
        if name in report.norms:
            assert report.norms[name] == pytest.approx((old.norm().item(), p.norm().item()), rel=1e-5)


@pytest.mark.parametrize("initialise", INITIALISERS)
def test_same_seed_same_result_from_a_shuffling_loader(initialise):
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    first, second, other = net(), net(), net()
    reports = [
        initialise(model, CRITERION, loader, steps=4, seed=seed)
        for model, seed in ((first, 1), (second, 1), (other, 2))
    ]
    assert reports[0] == reports[1]
    assert torch.equal(first[0].weight, second[0].weight)
    assert reports[0].history != reports[2].history


@pytest.mark.parametrize("initialise", INITIALISERS)
def test_tied_weights_stay_tied_and_count_once(initialise):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids):
            return self.head(self.tokens(ids))

    torch.manual_seed(0)
    model, ids = Tied(), torch.arange(12)
    report = initialise(model, CRITERION, (ids, ids.roll(1)), steps=3)
    assert list(report.norms) == ["tokens.weight"]
    assert model.head.weight is model.tokens.weight
    before, after = report.norms["tokens.weight"]
    assert before != after


@pytest.mark.parametrize("initialise", INITIALISERS)
def test_hugging_face_model_with_a_mapping(initialise, make):
    model, ids = make("gpt2")
    data = {"input_ids": ids, "labels": ids}
    report = initialise(model, lambda m, b: m(**b).loss, data, steps=2)
    assert "transformer.wte.weight" in report.norms
    assert "lm_head.weight" not in report.norms
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_criterion_takes_labels_and_logits_of_a_mapping():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, pixels):
            return type("Output", (), {"logits": self.inner(pixels)})

    model, (x, y) = Named(), batches(1)[0]
    loss = ScaledLoss(model, CRITERION)
    found = loss(loss.values, {"pixels": x, "labels": y})
    assert found.item() == pytest.approx(CRITERION(model.inner(x), y).item())


def test_loss_is_that_of_scaled_parameters_in_float64():
    model, (x, y) = net().double(), batches(1)[0]
    loss = ScaledLoss(model, CRITERION)
    factors = [torch.tensor(f) for f in (0.5, 1.0, 3.0, 2.0)]
    found = loss(loss.scaled(factors), (x.double(), y))
    w0, b0, w1, b1 = (p.detach() * f for p, f in zip(model.parameters(), factors, strict=True))
    hidden = (x.double() @ w0.T + b0).clamp(min=0)
    logits = hidden @ w1.T + b1
    assert found.item() == pytest.approx((logits.logsumexp(1) - logits[torch.arange(16), y]).mean().item())


def test_endless_repeats_a_batch_and_goes_through_lists_again():
    pair = (torch.ones(2), torch.ones(2))
    once = endless(pair)
    assert next(once) is next(once) is pair
    turns = endless([[torch.ones(1)], [torch.zeros(1)]])
    assert [next(turns)[0].item() for _ in range(4)] == [1, 0, 1, 0]


@pytest.mark.parametrize("initialise", INITIALISERS)
def test_report_shows_norms_and_history(initialise):
    model = net()
    nn.init.zeros_(model[2].weight)
    report = initialise(model, CRITERION, batches(), steps=3)
    assert "zero" in report.skipped["2.weight"]
    shown = report.report().to_dict()
    assert {"Norms", "Left alone"} <= {block["title"] for block in shown["blocks"]}
    assert "scaled" in shown["summary"]


@pytest.mark.parametrize("initialise", INITIALISERS)
@pytest.mark.parametrize(
    ("model", "loss_fn", "data", "error", "message"),
    [
        (net().half(), CRITERION, batches(), TypeError, r"float16 for '0\.weight'"),
        (net().requires_grad_(False), CRITERION, batches(), ValueError, "no parameter"),
        (net(), 3, batches(), TypeError, "got int"),
        (net(), CRITERION, 3, TypeError, "data must be"),
        (net(), CRITERION, [], ValueError, "it holds none"),
        (net(), CRITERION, iter(batches(1)), ValueError, "gone through again"),
        (net(), CRITERION, torch.ones(4, 8), TypeError, "a pair"),
        (net(), lambda m, b: m(b[0]), batches(), ValueError, r"got shape \(16, 3\)"),
        (net(), lambda m, b: m(b[0]).sum() / 0, batches(), ValueError, "finite scalar"),
        (net(), lambda m, b: 1.0, batches(), TypeError, "got float"),
        (net(), CRITERION, batches(), ValueError, "steps"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(initialise, model, loss_fn, data, error, message):
    before = [p.detach().clone() for p in model.parameters()]
    data = iter(batches(1)) if message == "gone through again" else data
    with pytest.raises(error, match=message):
        initialise(model, loss_fn, data, steps=0 if message == "steps" else 2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_parameters_must_be_finite():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'0\.weight' is not"):
        ScaledLoss(model, CRITERION)
