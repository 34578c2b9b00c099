"""qk_norm: attention whose queries and keys are normalised."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from poise.doctor.remedies import parse_remedy
from poise.nn import QKNorm

from .helpers import parameters, treated

GENERATOR = torch.Generator().manual_seed(0)


def qkv(heads=4, kv_heads=4, time=5, source=5, dim=8, scale=1.0):
    shapes = ((2, heads, time, dim), (2, kv_heads, source, dim), (2, kv_heads, source, 3))
    return [(scale * torch.randn(*s, generator=GENERATOR, dtype=torch.float64)).requires_grad_() for s in shapes]


def normed(*tensors, value=1.0, **kwargs):
    return parse_remedy(f"qk_norm={value}").attention(F.scaled_dot_product_attention, *tensors, **kwargs)


MASK = torch.rand(5, 5, generator=GENERATOR) > 0.4
MASK[:, 0] = True


@pytest.mark.parametrize("kwargs", [{}, {"is_causal": True}, {"attn_mask": MASK}, {"scale": 0.7}])
def test_it_is_the_layer_as_it_begins_with_its_gradients(kwargs):
    query, key, value = tensors = qkv()
    q, k = QKNorm(8).double()(query, key)
    layer, ours = F.scaled_dot_product_attention(q, k, value, **kwargs), normed(*tensors, **kwargs)
    torch.testing.assert_close(ours, layer, rtol=1e-12, atol=1e-12)
    probe = torch.randn(ours.shape, generator=GENERATOR, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((ours * probe).sum(), tensors), torch.autograd.grad((layer * probe).sum(), tensors)
    )


@given(st.floats(0.5, 1e6), st.floats(0.5, 1e6), st.floats(-1e3, 1e3))
def test_the_size_and_the_mean_of_queries_and_keys_do_not_matter(a, b, shift):
    query, key, value = qkv(scale=10.0)
    torch.testing.assert_close(normed(a * query + shift, b * key, value), normed(query, key, value), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [1.0, 4.0])
def test_logits_are_bounded_by_the_value_times_the_root_of_the_heads_size(value):
    query, _, _ = qkv(scale=1e4)
    eye = torch.eye(5, dtype=torch.float64).expand(2, 4, 5, 5)
    weights = normed(query, query, eye, value=value)  # the diagonal meets the bound
    logits = weights.log()
    spread = (logits.diagonal(dim1=-2, dim2=-1) - logits.min(-1).values).max()
    assert spread <= 2 * value * math.sqrt(8) + 1e-9
    assert F.scaled_dot_product_attention(query, query, eye).min() == 0


def test_equals_the_code_that_makes_it_permanent():
    query, key, value = qkv(scale=4.0)
    space = {"torch": torch, "query": query, "key": key}
    exec(parse_remedy("qk_norm=2").code(), space)
    plain = F.scaled_dot_product_attention(space["query"], space["key"], value, is_causal=True)
    torch.testing.assert_close(normed(query, key, value, value=2, is_causal=True), plain, rtol=1e-12, atol=1e-12)


def test_grouped_queries_and_low_precision():
    tensors = [t.detach().bfloat16() for t in qkv(heads=6, kv_heads=2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = normed(*tensors, enable_gqa=True)
    assert out.dtype == torch.bfloat16
    assert out.shape == (2, 6, 5, 3)


def test_traces_without_a_graph_break_and_agrees():
    tensors = qkv()
    compiled = torch.compile(lambda *t: normed(*t, is_causal=True), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), normed(*tensors, is_causal=True), rtol=1e-12, atol=1e-12)


def test_a_run_whose_attention_it_does_not_reach_fails_instead_of_passing_for_treated():
    weights = parameters()
    optimizer = torch.optim.SGD(weights, lr=0.1)
    for w in weights:
        w.grad = torch.ones_like(w)
    with treated(parse_remedy("qk_norm")):
        for _ in range(9):
            optimizer.step()
        with pytest.raises(RuntimeError, match="logit_soft_cap treats attention"):
            optimizer.step()
    reached = parse_remedy("qk_norm")
    with treated(reached):
        reached.attention(F.scaled_dot_product_attention, *qkv())
        for _ in range(20):
            optimizer.step()
