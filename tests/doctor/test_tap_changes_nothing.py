"""Training ends bit-identical with and without the watch, and nothing of it stays behind."""

import inspect
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as torch_optimizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 10)
        )
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.features(x)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 12)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.encoder(self.embed(ids), mask=mask, is_causal=True))


def images(n=16):
    return torch.randn(n, 1, 8, 8), torch.randint(10, (n,))


def plain(steps=25):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for _ in range(steps):
        x, y = images()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def transformer():
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        ids = torch.randint(12, (4, 9))
        loss = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def accumulation():
    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for _ in range(15):
        for _ in range(3):
            x, y = images(4)
            (F.cross_entropy(model(x), y) / 3).backward()
        optimizer.step()
        model.zero_grad()
    return model


def adversaries():
    maker, judge = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 1)
    of_maker, of_judge = torch.optim.Adam(maker.parameters()), torch.optim.Adam(judge.parameters())
    loss = nn.BCEWithLogitsLoss()
    for _ in range(20):
        real, noise = torch.randn(8, 6), torch.randn(8, 4)
        of_judge.zero_grad()
        made = maker(noise)
        one, zero = torch.ones(8, 1), torch.zeros(8, 1)
        (loss(judge(real), one) + loss(judge(made.detach()), zero)).backward()
        of_judge.step()
        of_maker.zero_grad()
        loss(judge(made), one).backward()
        of_maker.step()
    return nn.ModuleList([maker, judge])


def closures():
    model = nn.Linear(5, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    x, y = torch.randn(32, 5), torch.randn(32, 1)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(6):
        optimizer.step(closure)
    return model


def half_precision():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    for _ in range(15):
        x, y = images()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


def nans():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        x = torch.randn(6, 4)
        if step == 8:
            x = torch.full_like(x, torch.inf)
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def bfloat16():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(4, 8, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    return model


def state_after(train):
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - the state that scripts use
    torch.manual_seed(3)
    model = train()
    randomness = random.random(), float(np.random.rand()), torch.rand(3)  # noqa: NPY002
    return model, {**model.state_dict(), "calls": torch.tensor(getattr(model, "calls", 0))}, randomness


LOOPS = [plain, transformer, accumulation, adversaries, closures, half_precision, nans, bfloat16]


@pytest.mark.parametrize("train", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("overhead", [0.03, 1.0])
def test_training_is_bit_identical(train, overhead, watching):
    _, bare, bare_randomness = state_after(train)
    with watching(overhead) as watched:
        model, seen, randomness = state_after(train)
    assert watched.tap.fault is None
    assert watched.record.last_step >= 5
    assert bare.keys() == seen.keys()
    for name, value in bare.items():
        assert torch.equal(value.nan_to_num(7.0), seen[name].nan_to_num(7.0)), name
    assert randomness[:2] == bare_randomness[:2]
    assert torch.equal(randomness[2], bare_randomness[2])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


HOOKED = (
    F.cross_entropy, F.mse_loss, nn.Module._call_impl, nn.Module.zero_grad, torch.autograd.backward, torch.load,
    torch.compile, torch.amp.GradScaler.step, torch.jit.trace, inspect.unwrap(nn.utils.clip_grad_norm_),
)  # fmt: skip
REPLACED = (
    (F, "scaled_dot_product_attention"), (torch, "softmax"), (torch, "relu"), (torch, "relu_"),
    (torch.Tensor, "softmax"), (torch.Tensor, "relu"), (torch.Tensor, "relu_"),
)  # fmt: skip


def test_everything_is_put_back(watching):
    codes = [function.__code__ for function in HOOKED]
    originals = [getattr(owner, name) for owner, name in REPLACED]
    hooks = len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)
    within = []

    class Inner(nn.Module):
        def forward(self, x):
            within.append([getattr(owner, name) for owner, name in REPLACED] != originals)
            return x

    with watching():
        assert all(function.__code__ is not code for function, code in zip(HOOKED, codes, strict=True))
        Inner()(torch.ones(1))
        assert [getattr(owner, name) for owner, name in REPLACED] == originals  # only while a model runs
        plain()
    assert within == [True]
    assert [function.__code__ for function in HOOKED] == codes
    assert [getattr(owner, name) for owner, name in REPLACED] == originals
    assert "softmax" not in vars(torch.Tensor)
    assert "__call__" not in vars(Net)
    assert not nn_module._global_forward_hooks
    assert not nn_module._global_forward_pre_hooks
    after = len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)
    assert after == hooks


def test_a_function_bound_by_name_works_after_the_end(watching):
    with watching():
        bound = F.cross_entropy
        plain(3)
    logits, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert torch.equal(bound(logits, target), F.cross_entropy(logits, target))


def test_torchscript_still_compiles(watching):
    class Scripted(nn.Module):
        def forward(self, x):
            return torch.relu(x).softmax(-1)

    with watching():
        scripted = torch.jit.script(Scripted())
        assert torch.equal(scripted(torch.ones(1, 2)), torch.full((1, 2), 0.5))


def test_a_model_saved_whole_holds_nothing_of_ours(watching, tmp_path):
    with watching():
        model = plain(5)
        torch.save(model.features, tmp_path / "model.pt")
    assert b"poise" not in (tmp_path / "model.pt").read_bytes()


def test_vmapped_gradients_are_left_alone(watching):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(5, 3), torch.randint(2, (5,))

    def loss(parameters, sample, label):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (sample[None],)), label[None])

    with watching() as watched:
        for _ in range(3):
            parameters = dict(model.named_parameters())
            grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
            for name, parameter in model.named_parameters():
                parameter.grad = grads[name].mean(0)
            optimizer.step()
    assert watched.tap.fault is None
    assert watched.tap.counts["step"] == 3
