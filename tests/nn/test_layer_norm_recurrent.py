import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from poise.nn import (
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LayerNormRNN,
    LayerNormRNNCell,
)
from poise.nn.layer_norm_cells import RecurrentCell

STACKS = [LayerNormLSTM, LayerNormGRU, LayerNormRNN]
PAIRS = [(LayerNormLSTM, nn.LSTM), (LayerNormGRU, nn.GRU), (LayerNormRNN, nn.RNN)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrambled(module, seed=5):
    """Every parameter random, so that no gain of one and no bias of zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.double()


def norm(z, gain, bias, eps=1e-5):
    centered = z - z.mean(-1, keepdim=True)
    return gain * centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() + bias


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def test_lstm_cell_is_the_published_one():
    cell = scrambled(LayerNormLSTMCell(3, 4))
    x, h, c = randn(5, 3), randn(5, 4, seed=1), randn(5, 4, seed=2)
    a = norm(h @ cell.weight_hh.T, cell.gain_hh, 0) + norm(x @ cell.weight_ih.T, cell.gain_ih, cell.bias)
    i, f, g, o = a[:, :4], a[:, 4:8], a[:, 8:12], a[:, 12:]
    c_next = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h_next = o.sigmoid() * norm(c_next, cell.gain_c, cell.bias_c).tanh()
    ours = cell(x, (h, c))
    torch.testing.assert_close(ours[0], h_next)
    torch.testing.assert_close(ours[1], c_next)


def test_lstm_cell_with_plain_gates_normalises_the_cell_state_only():
    cell = scrambled(LayerNormLSTMCell(3, 4, normalize_gates=False))
    x, h, c = randn(5, 3), randn(5, 4, seed=1), randn(5, 4, seed=2)
    i, f, g, o = (x @ cell.weight_ih.T + h @ cell.weight_hh.T + cell.bias).chunk(4, -1)
    c_next = f.sigmoid() * c + i.sigmoid() * g.tanh()
    torch.testing.assert_close(cell(x, (h, c))[0], o.sigmoid() * norm(c_next, cell.gain_c, cell.bias_c).tanh())


def test_gru_cell_is_the_published_one():
    cell = scrambled(LayerNormGRUCell(3, 4))
    x, h = randn(5, 3), randn(5, 4, seed=1)
    gi, gh, b = cell.gain_ih, cell.gain_hh, cell.bias
    wx, wh = x @ cell.weight_ih.T, h @ cell.weight_hh.T
    rz = norm(wx[:, :8], gi[:8], b[:8]) + norm(wh[:, :8], gh[:8], 0)
    r, z = rz[:, :4].sigmoid(), rz[:, 4:].sigmoid()
    n = (norm(wx[:, 8:], gi[8:], b[8:]) + r * norm(wh[:, 8:], gh[8:], cell.bias_hn)).tanh()
    torch.testing.assert_close(cell(x, h), (1 - z) * h + z * n)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_rnn_cell_is_the_published_one(name):
    cell = scrambled(LayerNormRNNCell(3, 4, nonlinearity=name))
    x, h = randn(5, 3), randn(5, 4, seed=1)
    a = norm(x @ cell.weight_ih.T + h @ cell.weight_hh.T, cell.gain, cell.bias)
    torch.testing.assert_close(cell(x, h), getattr(torch, name)(a))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_stack_is_its_cells_one_after_the_other(stack, batch_first):
    rnn = scrambled(stack(3, 4, num_layers=2, bidirectional=True, batch_first=batch_first))
    x = randn(7, 5, 3)
    rows = x
    finals = []
    for layer in range(2):
        outputs = []
        for direction in range(2):
            cell = rnn.cells[2 * layer + direction]
            state = None
            seen = []
            for t in range(7) if direction == 0 else range(6, -1, -1):
                state = cell(rows[t], state)
                seen.append(parts(state)[0])
            finals.append(parts(state))
            outputs.append(torch.stack(seen if direction == 0 else seen[::-1]))
        rows = torch.cat(outputs, -1)
    output, final = rnn(x.transpose(0, 1) if batch_first else x)
    torch.testing.assert_close(output.transpose(0, 1) if batch_first else output, rows)
    for ours, expected in zip(parts(final), zip(*finals, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(expected))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences_equal_each_sequence_alone(stack, enforce_sorted):
    rnn = scrambled(stack(3, 4, num_layers=2, bidirectional=True))
    lengths = [6, 4, 4, 1] if enforce_sorted else [4, 1, 6, 4]
    x = randn(6, 4, 3)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    start = tuple(randn(4, 4, 4, seed=s) for s in range(2 if stack is LayerNormLSTM else 1))
    output, final = rnn(packed, start if len(start) > 1 else start[0])
    padded, found = pad_packed_sequence(output)
    assert found.tolist() == lengths
    for i, length in enumerate(lengths):
        own = tuple(s[:, i : i + 1].contiguous() for s in start)
        alone, last = rnn(x[:length, i : i + 1], own if len(own) > 1 else own[0])
        torch.testing.assert_close(padded[:length, i], alone[:, 0])
        for ours, expected in zip(parts(final), parts(last), strict=True):
            torch.testing.assert_close(ours[:, i], expected[:, 0])


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_calls_and_returns_as_torch(ours, theirs):
    a, b = ours(3, 4, 2, bidirectional=True), theirs(3, 4, 2, bidirectional=True)
    for x in (torch.randn(5, 2, 3), torch.randn(5, 3)):
        (out_a, state_a), (out_b, state_b) = a(x), b(x)
        assert out_a.shape == out_b.shape
        assert [s.shape for s in parts(state_a)] == [s.shape for s in parts(state_b)]
        again, _ = a(x, state_a)
        assert again.shape == out_b.shape


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_weights_of_torch_are_taken_over(ours, theirs):
    source = theirs(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.2).eval()
    made = ours.from_torch(source)
    assert not made.training
    assert made.batch_first
    assert made.dropout == 0.2
    weight, expected = made.cells[3].weight_hh, source.weight_hh_l1_reverse
    if ours is LayerNormGRU:
        r, z, n = expected.chunk(3)
        expected = torch.cat([r, -z, n])
    torch.testing.assert_close(weight, expected)
    if ours is not LayerNormGRU:
        torch.testing.assert_close(made.cells[0].bias, source.bias_ih_l0 + source.bias_hh_l0)
    round_trip = ours(3, 4, 2, bidirectional=True, batch_first=True)
    round_trip.load_state_dict(made.state_dict())
    torch.testing.assert_close(round_trip.eval()(torch.ones(1, 5, 3))[0], made(torch.ones(1, 5, 3))[0])


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_without_norms_converted_weights_compute_what_torch_computes(ours, theirs, monkeypatch):
    def identity(cell, x, gain, bias=None):
        return x if bias is None else x + bias

    monkeypatch.setattr(RecurrentCell, "_norm", identity)
    for options in ({}, {"bias": False}, {"num_layers": 2, "bidirectional": True}):
        source = theirs(3, 4, **options).double()
        made = ours.from_torch(source)
        x = randn(6, 2, 3)
        torch.testing.assert_close(made(x)[0], source(x)[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("stack", STACKS)
def test_scale_of_the_weights_does_not_matter(stack):
    rnn = stack(3, 8, eps=1e-12).double()
    x = randn(6, 2, 3)
    before, _ = rnn(x)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if "weight" in name:
                parameter *= 3.0
    torch.testing.assert_close(rnn(x)[0], before, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("stack", STACKS)
def test_second_derivatives(stack):
    rnn = scrambled(stack(2, 3))
    x = randn(3, 1, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: rnn(z)[0], (x,), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_compiles_whole_and_runs_in_half_precision(stack):
    rnn = stack(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], rnn(x)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = rnn(x)
        out.float().sum().backward()
    assert torch.isfinite(out.float()).all()
    half, _ = copy.deepcopy(rnn).to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("batch_first", [False, True])
def test_empty_batch_gives_an_empty_output_as_torch_does(batch_first):
    x = torch.randn(0, 5, 3) if batch_first else torch.randn(5, 0, 3)
    results = [kind(3, 4, 2, batch_first=batch_first)(x) for kind in (LayerNormLSTM, nn.LSTM)]
    (ours, (h, c)), (theirs, (their_h, their_c)) = results
    assert (ours.shape, h.shape, c.shape) == (theirs.shape, their_h.shape, their_c.shape)
    with pytest.raises(ValueError, match="at least one time step"):
        LayerNormLSTM(3, 4, batch_first=batch_first)(x.transpose(0, 1))


def test_forget_bias_and_dropout():
    cell = LayerNormLSTMCell(3, 4, forget_bias=2.0)
    assert cell.bias.view(4, 4).mean(1).tolist() == [0, 2, 0, 0]
    rnn = LayerNormLSTM(3, 4, 2, dropout=1.0)
    x = torch.randn(5, 2, 3)
    first = rnn(x)[0]
    torch.testing.assert_close(first, rnn(torch.randn(5, 2, 3))[0])  # nothing of the first layer passes
    rnn.eval()
    assert not torch.equal(rnn(x)[0], first)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_layers must be"):
        LayerNormLSTM(3, 4, num_layers=0)
    with pytest.raises(ValueError, match="dropout must lie"):
        LayerNormGRU(3, 4, dropout=2)
    with pytest.raises(ValueError, match="input_size must be at least 1, got 0"):
        LayerNormRNN(0, 4)
    for stack in STACKS:
        with pytest.raises(ValueError, match="hidden_size must be at least 2"):
            stack(3, 1)
    with pytest.raises(ValueError, match="eps must be positive"):
        LayerNormRNNCell(3, 4, eps=0)
    with pytest.raises(ValueError, match="nonlinearity must be"):
        LayerNormRNNCell(3, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="input must have 3 features, got 2"):
        LayerNormLSTM(3, 4)(torch.randn(5, 2, 2))
    with pytest.raises(ValueError, match=r"hx must be 2 tensor\(s\) of shape \(1, 2, 4\)"):
        LayerNormLSTM(3, 4)(torch.randn(5, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"input must have shape \(batch, 3\)"):
        LayerNormLSTMCell(3, 4)(torch.randn(2, 2))
    with pytest.raises(TypeError, match=r"must be an nn.LSTM without projection, got GRU"):
        LayerNormLSTM.from_torch(nn.GRU(3, 4))
    with pytest.raises(TypeError, match="without projection"):
        LayerNormLSTM.from_torch(nn.LSTM(3, 4, proj_size=2))
