"""logit_soft_cap: attention with bounded logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from poise.doctor.remedies import parse_remedy

GENERATOR = torch.Generator().manual_seed(0)


def qkv(heads=4, kv_heads=4, time=5, source=5, dim=8, scale=1.0):
    shapes = ((2, heads, time, dim), (2, kv_heads, source, dim), (2, kv_heads, source, 3))
    return [(scale * torch.randn(*s, generator=GENERATOR, dtype=torch.float64)).requires_grad_() for s in shapes]


def capped(cap, *tensors, **kwargs):
    return parse_remedy(f"logit_soft_cap={cap}").attention(F.scaled_dot_product_attention, *tensors, **kwargs)


BOOLEAN = torch.rand(5, 5, generator=GENERATOR) > 0.4
BOOLEAN[:, 0] = True
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": BOOLEAN},
    "additive mask": {"attn_mask": torch.randn(5, 5, generator=GENERATOR, dtype=torch.float64)},
    "scale": {"scale": 0.7},
}


@pytest.mark.parametrize("case", CASES)
def test_a_huge_cap_is_plain_attention_with_its_gradients(case):
    tensors = qkv()
    plain = F.scaled_dot_product_attention(*tensors, **CASES[case])
    ours = capped(1e7, *tensors, **CASES[case])
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    probe = torch.randn(plain.shape, generator=GENERATOR, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), tensors),
        torch.autograd.grad((plain * probe).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_grouped_queries_and_other_lengths():
    tensors = qkv(heads=6, kv_heads=2, time=3, source=7)
    plain = F.scaled_dot_product_attention(*tensors, enable_gqa=True)
    torch.testing.assert_close(capped(1e7, *tensors, enable_gqa=True), plain, rtol=1e-9, atol=1e-9)
    tensors = qkv(time=3, source=7)
    plain = F.scaled_dot_product_attention(*tensors, is_causal=True)
    torch.testing.assert_close(capped(1e7, *tensors, is_causal=True), plain, rtol=1e-9, atol=1e-9)


def test_rows_that_see_nothing_are_zero_and_have_finite_gradients():
    tensors = qkv()
    mask = BOOLEAN.clone()
    mask[2] = False
    ours = capped(1e7, *tensors, attn_mask=mask)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(*tensors, attn_mask=mask), rtol=1e-9, atol=1e-9)
    assert torch.count_nonzero(ours[..., 2, :]) == 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(ours.sum(), tensors))


@pytest.mark.parametrize("cap", [0.5, 5.0, 30.0])
def test_equals_the_code_that_makes_it_permanent(cap):
    query, key, value = qkv(scale=4.0)
    space = {"torch": torch, "query": query, "key": key, "value": value}
    exec(parse_remedy(f"logit_soft_cap={cap}").code(), space)
    torch.testing.assert_close(capped(cap, query, key, value, is_causal=True), space["y"], rtol=1e-12, atol=1e-12)


def test_no_attention_weight_is_ever_zero():
    # logits lie in [-c, c], so over n entries the smallest weight is at least e^{-2c} / n.
    query, key, _ = qkv(scale=100.0)
    weights = capped(3.0, query, key, torch.eye(5, dtype=torch.float64).expand(2, 4, 5, 5))
    assert weights.min() >= math.exp(-6) / 5
    plain = F.scaled_dot_product_attention(query, key, torch.eye(5, dtype=torch.float64).expand(2, 4, 5, 5))
    assert plain.min() < 1e-30


def test_dropout_scales_what_it_keeps():
    tensors = qkv()
    torch.manual_seed(0)
    mean = torch.stack([capped(30.0, *tensors, dropout_p=0.5) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, capped(30.0, *tensors), rtol=0, atol=0.2)
    assert torch.count_nonzero(capped(30.0, *tensors, dropout_p=1.0)) == 0


def test_low_precision_comes_back_in_its_dtype():
    tensors = [t.detach().bfloat16() for t in qkv()]
    assert capped(30.0, *tensors, is_causal=True).dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [-math.inf, -1e9, -1e4, -10_000.0 + 300.0, torch.finfo(torch.float32).min])
def test_hand_written_softmax_keeps_what_is_masked(masked):
    remedy = parse_remedy("logit_soft_cap=5")
    logits = (50 * torch.randn(2, 3, 6, 6, generator=GENERATOR, dtype=torch.float64)).requires_grad_()
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    ours = remedy.attention_softmax(torch.softmax, logits.masked_fill(hidden, masked), -1)
    right = torch.softmax((5 * torch.tanh(logits / 5)).masked_fill(hidden, -math.inf), -1)
    torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)
    probe = torch.randn(ours.shape, generator=GENERATOR, dtype=torch.float64)
    (a,) = torch.autograd.grad((ours * probe).sum(), logits)
    (b,) = torch.autograd.grad((right * probe).sum(), logits)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.count_nonzero(a) > 0


@given(st.floats(0.1, 100.0), st.lists(st.floats(-4000, 4000), min_size=2, max_size=8))
def test_the_cap_bounds_and_keeps_the_order(cap, values):
    remedy = parse_remedy(f"logit_soft_cap={cap}")
    logits = torch.tensor(values, dtype=torch.float64)
    seen = remedy.attention_softmax(lambda x, dim: x, logits, -1)
    assert seen.abs().max() <= cap
    order = torch.argsort(logits)
    assert (seen[order].diff() >= 0).all()


def test_the_other_arguments_of_the_softmax_are_handed_on():
    remedy = parse_remedy("logit_soft_cap=5")
    logits = torch.randn(2, 4, 4, dtype=torch.float32)
    assert remedy.attention_softmax(F.softmax, logits, -1, dtype=torch.float64).dtype == torch.float64
    assert remedy.attention_softmax(torch.softmax, logits, -1, torch.float64).dtype == torch.float64


def test_traces_without_a_graph_break_and_agrees():
    tensors = qkv()
    compiled = torch.compile(lambda *t: capped(7.0, *t, is_causal=True), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), capped(7.0, *tensors, is_causal=True), rtol=1e-12, atol=1e-12)
