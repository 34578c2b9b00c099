"""Compiled models: seen by an eager repetition of sampled steps, and trained bit-identically."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.norm = nn.BatchNorm1d(8)
        self.qkv = nn.Linear(8, 24)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, 10)

    def forward(self, ids):
        x = self.norm(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(self.drop(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


def train(compile_model=True, compile_step=False, dropout=0.2, steps=12):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(dropout)
    forward = torch.compile(model) if compile_model else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2) if compile_step else 1e-2)
    step = torch.compile(optimizer.step) if compile_step else optimizer.step
    for _ in range(steps):
        ids = torch.randint(10, (4, 7))
        loss = F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        step()
    return {**model.state_dict(), "random": torch.rand(3)}


def test_a_compiled_model_trains_bit_identically_and_is_seen(watching):
    bare = train()
    with watching() as watched:
        seen = train()
    assert watched.tap.fault is None
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    assert len(watched["loss"]) == 12
    assert set(watched.record.by_layer("attention_logit_max")) == {"Net"}
    assert {"embed", "norm", "qkv", "drop", "head"} <= set(watched.record.by_layer("act_rms"))
    assert watched.record.events("compiled")[0].payload["mode"] == "shadow forward"


def test_the_shadow_sees_what_an_eager_run_sees(watching):
    # Compiled dropout draws other numbers than eager dropout: without it both train alike, up to rounding.
    with watching() as eager:
        train(compile_model=False, dropout=0.0)
    with watching() as compiled:
        train(dropout=0.0)
    for signal in ("attention_logit_max", "attention_entropy"):
        a, b = (w.record.by_layer(signal)["Net"] for w in (eager, compiled))
        assert set(a.steps) & set(b.steps)
        for step in set(a.steps) & set(b.steps):
            assert a.values[a.steps == step] == pytest.approx(b.values[b.steps == step], rel=2e-2)


def test_a_compiled_optimizer_step_is_seen(watching):
    with watching() as watched:
        train(compile_model=False, compile_step=True)
    assert watched.tap.fault is None
    assert len(watched["loss"]) == 12
    assert len(watched["grad_norm"]) == 12
