import copy
import functools
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.curvature import (
    GGN,
    NTK,
    EmpiricalFisher,
    FlatParameters,
    Hessian,
    LossFunction,
    Supervised,
    flatten,
    unflatten,
)
from poise.nn.mlp import mlp

EXACT = ["retained", "linearize", "rebuild", "forward_over_reverse"]
MODES = [*EXACT, "finite_difference"]


def double_mlp(widths=(6, 5, 3), seed=0):
    torch.manual_seed(seed)
    return mlp(widths).double()


def classes(n=20, d=6, k=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, k, (n,), generator=generator)


def numbers(n=20, d=6, k=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, k, generator=generator, dtype=torch.float64)


def ragged(batch, sizes=(3, 12, 5)):
    return list(zip(*(part.split(list(sizes)) for part in batch), strict=True))


def at(model, theta):
    """The model as a function of its flat parameters."""
    named = dict(model.named_parameters())
    parts = dict(zip(named, unflatten(theta, list(named.values())), strict=True))
    return lambda *args, **kwargs: torch.func.functional_call(model, parts, args, kwargs)


def theta_of(model):
    return flatten([p.detach() for p in model.parameters()])


def dense_hessian(model, loss):
    """loss(model as a function) -> scalar, differentiated twice."""
    return torch.func.hessian(lambda theta: loss(at(model, theta)))(theta_of(model))


def test_hessian_of_linear_regression_is_2xx_over_n():
    x, _ = numbers()
    y = torch.randn(20, 1, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    expected = 2 * x.T @ x / 20
    torch.testing.assert_close(Hessian(model, nn.MSELoss(), (x, y)).to_dense(), expected)
    torch.testing.assert_close(GGN(model, nn.MSELoss(), (x, y)).to_dense(), expected)


def test_hessian_of_binary_logistic_regression():
    x, y = numbers(k=1)
    y = (y > 0).double()
    model = nn.Linear(6, 1, bias=False).double()
    s = torch.sigmoid(model(x)).detach()[:, 0]
    expected = x.T @ torch.diag(s * (1 - s)) @ x / 20
    torch.testing.assert_close(Hessian(model, nn.BCEWithLogitsLoss(), (x, y)).to_dense(), expected)
    torch.testing.assert_close(GGN(model, nn.BCEWithLogitsLoss(), (x, y)).to_dense(), expected)


def test_softmax_regression_at_zero_is_a_kronecker_product():
    x, y = classes()
    model = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    centred = (torch.eye(3) - 1 / 3).double() / 3
    expected = torch.kron(centred, x.T @ x / 20)
    torch.testing.assert_close(Hessian(model, nn.CrossEntropyLoss(), (x, y)).to_dense(), expected)


def test_softmax_ggn_is_the_hessian_of_a_linear_model():
    x, y = classes()
    model = nn.Linear(6, 3).double()
    hessian = Hessian(model, nn.CrossEntropyLoss(), (x, y)).to_dense()
    torch.testing.assert_close(GGN(model, nn.CrossEntropyLoss(), (x, y)).to_dense(), hessian)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("split", [False, True])
def test_every_mode_is_the_dense_hessian_also_on_ragged_batches(mode, split):
    model, batch = double_mlp(), classes()
    expected = dense_hessian(model, lambda f: F.cross_entropy(f(batch[0]), batch[1]))
    operator = Hessian(model, nn.CrossEntropyLoss(), ragged(batch) if split else batch, mode=mode)
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-12, atol=1e-12)
    assert operator.n_matvec == operator.shape[0]


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-8), (torch.float32, 5e-3)])
def test_finite_differences_are_near_the_dense_hessian(dtype, accuracy):
    model, (x, y) = double_mlp(), classes()
    expected = dense_hessian(model, lambda f: F.cross_entropy(f(x), y))
    operator = Hessian(
        copy.deepcopy(model).to(dtype), nn.CrossEntropyLoss(), ragged((x.to(dtype), y)), mode="finite_difference"
    )
    error = (operator.to_dense().double() - expected).abs().max()
    assert error < accuracy * expected.abs().max()
    assert operator.matvec(torch.zeros(operator.shape[1], dtype=dtype)).abs().max() == 0


@pytest.mark.parametrize("mode", ["retained", "rebuild"])
@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64), label_smoothing=0.3),
        F.cross_entropy,
        Supervised(lambda outputs, targets: F.cross_entropy(outputs, targets)),
    ],
    ids=["ce", "weighted", "function", "other"],
)
def test_ggn_is_jacobian_curvature_jacobian(mode, criterion):
    model, (x, y) = double_mlp(), classes()
    loss = getattr(criterion, "criterion", None)
    value = loss.mean if loss else criterion
    jacobian = torch.func.jacrev(lambda theta: at(model, theta)(x).flatten())(theta_of(model))
    curvature = torch.func.hessian(lambda o: value(o.view(20, 3), y))(model(x).detach().flatten())
    expected = jacobian.T @ curvature @ jacobian
    for data in ((x, y), ragged((x, y))):
        operator = GGN(model, criterion, data, mode=mode)
        torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-11, atol=1e-12)


def test_targets_that_do_not_count_and_soft_targets():
    model, (x, y) = double_mlp(), classes()
    ignored = y.clone()
    ignored[::3] = -100
    soft = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for targets in (ignored, soft):
        jacobian = torch.func.jacrev(lambda theta: at(model, theta)(x).flatten())(theta_of(model))
        curvature = torch.func.hessian(lambda o, t=targets: F.cross_entropy(o.view(20, 3), t, label_smoothing=0.1))(
            model(x).detach().flatten()
        )
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        for data in ((x, targets), ragged((x, targets))):
            found = GGN(model, criterion, data).to_dense()
            torch.testing.assert_close(found, jacobian.T @ curvature @ jacobian, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(
            Hessian(model, criterion, ragged((x, targets))).to_dense(),
            Hessian(model, criterion, (x, targets)).to_dense(),
            rtol=1e-12,
            atol=1e-13,
        )


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.SmoothL1Loss()], ids=["ce", "mse", "other"]
)
@pytest.mark.parametrize("mode", ["retained", "rebuild"])
def test_empirical_fisher_is_the_second_moment_of_the_examples_gradients(criterion, mode):
    model = double_mlp()
    x, y = classes() if isinstance(criterion, nn.CrossEntropyLoss) else numbers()
    gradients = []
    for i in range(20):
        loss = criterion(model(x[i : i + 1]), y[i : i + 1])
        gradients.append(flatten(torch.autograd.grad(loss, list(model.parameters()))))
    g = torch.stack(gradients)
    for data in ((x, y), ragged((x, y))):
        operator = EmpiricalFisher(model, criterion, data, mode=mode)
        torch.testing.assert_close(operator.to_dense(), g.T @ g / 20, rtol=1e-11, atol=1e-13)
        assert operator.per_example


def test_empirical_fisher_of_a_loss_of_model_and_batch_takes_batches():
    model, batch = double_mlp(), classes()
    batches = ragged(batch)
    expected = 0
    for x, y in batches:
        g = flatten(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))
        expected = expected + len(x) / 20 * torch.outer(g, g)
    operator = EmpiricalFisher(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batches)
    torch.testing.assert_close(operator.to_dense(), expected, rtol=1e-11, atol=1e-13)
    assert not operator.per_example


@pytest.mark.parametrize("kind", [Hessian, GGN, EmpiricalFisher])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_products_are_linear_symmetric_and_indifferent_to_the_order_of_batches(kind, seed, a, b):
    model, batch = double_mlp((4, 3, 2), seed), classes(n=9, d=4, k=2, seed=seed)
    batches = ragged(batch, (2, 3, 4))
    operator = kind(model, nn.CrossEntropyLoss(), batches)
    turned = kind(model, nn.CrossEntropyLoss(), batches[::-1])
    u, v = torch.randn(2, operator.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    au, av = operator.matvec(u), operator.matvec(v)
    assert math.isclose(u @ av, v @ au, rel_tol=1e-9, abs_tol=1e-11)
    torch.testing.assert_close(operator.matvec(a * u + b * v), a * au + b * av, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(turned.matvec(u), au, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(operator.matmat(torch.stack([u, v], 1)), torch.stack([au, av], 1))
    if kind is not Hessian:
        assert v @ av >= -1e-12


def test_scaling_the_loss_scales_the_hessian_and_doubling_the_data_does_nothing():
    model, (x, y) = double_mlp(), classes()
    hessian = Hessian(model, nn.CrossEntropyLoss(), (x, y)).to_dense()
    tripled = Hessian(model, lambda model, batch: 3 * F.cross_entropy(model(batch[0]), batch[1]), (x, y)).to_dense()
    twice = Hessian(model, nn.CrossEntropyLoss(), [(x, y), (torch.cat([x, x]), torch.cat([y, y]))]).to_dense()
    torch.testing.assert_close(tripled, 3 * hessian)
    torch.testing.assert_close(twice, hessian)


@pytest.mark.parametrize("mode", MODES)
def test_frozen_parameters_are_left_out_and_unused_ones_have_zero_rows(mode):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.frozen, self.unused = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(torch.tanh(self.used(x)))

    torch.manual_seed(0)
    model, (x, y) = Partly().double(), classes()
    kinds = [lambda: Hessian(model, nn.CrossEntropyLoss(), (x, y), mode=mode)]
    if mode in ("retained", "rebuild"):
        kinds += [lambda k=k: k(model, nn.CrossEntropyLoss(), (x, y), mode=mode) for k in (GGN, EmpiricalFisher)]
    for build in kinds:
        operator = build()
        assert operator.flat.names == ("used.weight", "used.bias", "unused.weight", "unused.bias")
        dense = operator.to_dense()
        assert dense[35:].abs().max() == 0
        assert dense[:, 35:].abs().max() == 0
        assert dense[:35, :35].abs().max() > 0
        assert all(p.grad is None for p in model.parameters())


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    model = nn.Linear(3, 1).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    for mode in EXACT:
        operator = Hessian(model, lambda model, batch: model(batch).mean(), x, mode=mode)
        assert operator.to_dense().abs().max() == 0


@pytest.mark.parametrize("kind", [Hessian, GGN, EmpiricalFisher])
def test_submatrices_are_those_of_the_whole(kind):
    model, batch = double_mlp(), classes()
    operator = kind(model, nn.CrossEntropyLoss(), batch)
    rows = operator.flat.slices()
    part = operator.submatrix(["2"])
    torch.testing.assert_close(part.to_dense(), operator.to_dense()[35:, 35:])
    assert part.flat.names == ("2.weight", "2.bias")
    bias = operator.submatrix(["0.bias"])
    torch.testing.assert_close(bias.to_dense(), operator.to_dense()[rows["0.bias"], rows["0.bias"]])


def test_tied_weights_lie_in_the_vector_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.decode(torch.tanh(self.encode(x)))

    model, (x, y) = Tied().double(), numbers(d=4, k=4)
    expected = dense_hessian(model, lambda f: F.mse_loss(f(x), y))
    assert expected.shape == (16, 16)
    for mode in ("retained", "rebuild", "forward_over_reverse"):
        torch.testing.assert_close(Hessian(model, nn.MSELoss(), (x, y), mode=mode).to_dense(), expected)


class Transformer(nn.Module):
    """Takes keyword arguments and returns an object with logits, as Hugging Face models do."""

    def __init__(self, vocabulary=7, width=8):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        h = self.embedding(input_ids)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return {"logits": self.head(self.norm(h + mixed))}


def tokens(n=5, length=6, seed=0):
    ids = torch.randint(0, 7, (n, length + 1), generator=torch.Generator().manual_seed(seed))
    labels = ids[:, 1:].clone()
    labels[0, 2:] = -100
    return {"input_ids": ids[:, :-1], "labels": labels}


next_token = Supervised(
    nn.CrossEntropyLoss(), targets=lambda b: b["labels"].flatten(), inputs=["input_ids"],
    outputs=lambda returned: returned["logits"].flatten(0, 1),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:the fused attention kernel")
@pytest.mark.parametrize("mode", ["retained", "rebuild", "forward_over_reverse"])
def test_transformer_with_mappings_as_batches(mode):
    torch.manual_seed(0)
    model, batch = Transformer().double(), tokens()
    pieces = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]

    def loss(f):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = f(input_ids=batch["input_ids"])["logits"]
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    theta = theta_of(model)
    v = torch.randn(len(theta), dtype=torch.float64)
    _, expected = torch.func.jvp(torch.func.grad(lambda t: loss(at(model, t))), (theta,), (v,))
    for data in (batch, pieces):
        torch.testing.assert_close(Hessian(model, next_token, data, mode=mode).matvec(v), expected)


@pytest.mark.filterwarnings("ignore:the fused attention kernel")
def test_ggn_and_fisher_of_a_transformer():
    torch.manual_seed(0)
    model, batch = Transformer().double(), tokens()
    pieces = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]
    v = torch.randn(len(theta_of(model)), dtype=torch.float64)
    for kind in (GGN, EmpiricalFisher):
        whole = kind(model, next_token, batch, mode="retained")
        for data, mode in ((pieces, "retained"), (pieces, "rebuild"), (batch, "rebuild")):
            torch.testing.assert_close(kind(model, next_token, data, mode=mode).matvec(v), whole.matvec(v))

    def logits(theta):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return at(model, theta)(input_ids=batch["input_ids"])["logits"].flatten(0, 1)

    outputs, along = torch.func.jvp(logits, (theta_of(model),), (v,))
    _, curved = torch.func.jvp(
        torch.func.grad(lambda o: F.cross_entropy(o, batch["labels"].flatten())), (outputs,), (along,)
    )
    _, pull = torch.func.vjp(logits, theta_of(model))
    torch.testing.assert_close(GGN(model, next_token, batch).matvec(v), pull(curved)[0])


@pytest.mark.parametrize("mode", ["retained", "rebuild", pytest.param("linearize", marks=pytest.mark.slow)])
def test_convolutions_with_batch_norm(mode):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64)
    y = torch.randint(0, 4, (12,))
    model(x)  # running statistics other than those of the start
    for training in (False, True):
        model.train(training)
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        v = torch.randn(len(theta_of(model)), dtype=torch.float64)

        def loss(theta, buffers=buffers):
            named = dict(model.named_parameters())
            parts = dict(zip(named, unflatten(theta, list(named.values())), strict=True))
            state = parts | {n: b.clone() for n, b in buffers.items()}
            return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

        gradient = torch.autograd.functional.hvp(loss, theta_of(model), v)[1]
        data = (x, y) if training else ragged((x, y), (5, 7))
        operator = Hessian(model, nn.CrossEntropyLoss(), data, mode=mode)
        torch.testing.assert_close(operator.matvec(v), gradient, rtol=1e-8, atol=1e-10)
        for name, b in model.named_buffers():
            assert torch.equal(b, buffers[name])
        assert model.training is training


def test_auto_goes_by_the_bytes():
    model, batch = double_mlp(), classes()
    assert Hessian(model, nn.CrossEntropyLoss(), batch).mode == "retained"
    assert Hessian(model, nn.CrossEntropyLoss(), batch, max_bytes=100).mode == "rebuild"
    assert GGN(model, nn.CrossEntropyLoss(), batch, max_bytes=100).mode == "rebuild"


def test_bytes_of_the_graph_grow_with_the_data_and_leave_the_parameters_out():
    model = mlp((6, 1000, 3)).double()
    small, large = classes(n=2), classes(n=200)
    loss = nn.CrossEntropyLoss()
    hidden = 200 * 1000 * 8  # what tanh keeps of 200 examples
    assert Hessian(model, loss, small, max_bytes=hidden).mode == "retained"
    assert Hessian(model, loss, ragged(large, (2, 198)), max_bytes=hidden).mode == "rebuild"


def test_flat_vectors_round_trip():
    model = double_mlp()
    flat = FlatParameters(model)
    vector = flat.vector()
    assert torch.equal(flat.join(flat.split(vector)), vector)
    assert torch.equal(flatten(unflatten(vector, flat.tensors)), vector)
    slices = flat.slices()
    for name, p in model.named_parameters():
        assert torch.equal(vector[slices[name]], p.detach().flatten())
    with pytest.raises(ValueError, match="must have shape"):
        unflatten(vector[1:], flat.tensors)


def test_a_loss_function_may_count_its_own_examples():
    model, (x, y) = double_mlp(), classes()

    class Graph:
        def __init__(self, x, y):
            self.x, self.y = x, y

    loss = LossFunction(lambda model, g: F.cross_entropy(model(g.x), g.y), n_examples=lambda g: len(g.x))
    operator = Hessian(model, loss, [Graph(x[:4], y[:4]), Graph(x[4:], y[4:])])
    torch.testing.assert_close(operator.to_dense(), Hessian(model, nn.CrossEntropyLoss(), (x, y)).to_dense())


def test_autocast_is_that_of_the_construction():
    torch.manual_seed(0)
    model = mlp((6, 8, 3))
    x, y = classes()
    x = x.float()
    exact = Hessian(model, nn.CrossEntropyLoss(), (x, y)).to_dense()
    for mode in ("retained", "rebuild"):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            operator = Hessian(model, nn.CrossEntropyLoss(), (x, y), mode=mode)
        low = operator.to_dense()
        assert low.dtype == torch.float32
        assert not torch.equal(low, exact)
        assert (low - exact).norm() < 0.05 * exact.norm()
    plain = GGN(model, nn.CrossEntropyLoss(), (x, y)).to_dense()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = GGN(model, nn.CrossEntropyLoss(), (x, y)).to_dense()
    assert 0 < (low - plain).norm() < 0.05 * plain.norm()


def test_compiled_models_are_measured_as_the_module_inside():
    model, batch = double_mlp(), classes()
    compiled = torch.compile(model, backend="eager")
    operator = Hessian(compiled, nn.CrossEntropyLoss(), batch)
    assert operator.flat.names == tuple(n for n, _ in model.named_parameters())
    torch.testing.assert_close(operator.to_dense(), Hessian(model, nn.CrossEntropyLoss(), batch).to_dense())


def test_with_data_follows_the_parameters():
    model, batch = double_mlp(), classes()
    operator = Hessian(model, nn.CrossEntropyLoss(), batch)
    before = operator.to_dense()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    other = classes(seed=5)
    after = operator.with_data(other)
    assert after.n_matvec == 0
    torch.testing.assert_close(after.to_dense(), Hessian(model, nn.CrossEntropyLoss(), other).to_dense())
    assert (after.to_dense() - before).abs().max() > 0.01
    with pytest.raises(RuntimeError, match="parameters changed"):
        operator.to_dense()


OPERATORS_OF_A_MODEL = {
    "Hessian, retained": lambda model, loss, data: Hessian(model, loss, data, mode="retained"),
    "Hessian, rebuild": lambda model, loss, data: Hessian(model, loss, data, mode="rebuild"),
    "GGN": GGN,
    "EmpiricalFisher": EmpiricalFisher,
    "NTK": lambda model, loss, data: NTK(model, data, loss),
}


@pytest.mark.parametrize("kind", OPERATORS_OF_A_MODEL)
def test_a_graph_is_freed_with_its_operator(kind):
    """Without waiting for the garbage collector, which may never look at gigabytes of tensors."""
    gc.collect()
    gc.disable()
    try:
        op = OPERATORS_OF_A_MODEL[kind](double_mlp(), nn.CrossEntropyLoss(), classes())
        op.matvec(torch.ones(op.shape[1], dtype=op.dtype))
        alive = weakref.ref(op)
        del op
        assert alive() is None
    finally:
        gc.enable()


CROSS_ENTROPIES = {
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "ignored targets": nn.CrossEntropyLoss(ignore_index=1),
    "all": nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), ignore_index=1, label_smoothing=0.2),
}


@pytest.mark.parametrize("mode", ["retained", "rebuild"])
@pytest.mark.parametrize("kind", CROSS_ENTROPIES)
def test_closed_forms_in_the_outputs_are_those_of_differentiating_twice(kind, mode):
    criterion, (x, y) = CROSS_ENTROPIES[kind], classes()
    model = double_mlp()
    expected = dense_hessian(model, lambda f: criterion(f(x), y))
    op = Hessian(model, criterion, ragged((x, y), (8, 12)), mode=mode)
    torch.testing.assert_close(op.to_dense(), expected, rtol=1e-9, atol=1e-11)


def test_a_loss_that_a_child_of_supervised_adds_to_is_differentiated_as_it_is():
    class Penalized(Supervised):
        def loss(self, model, batch):
            return super().loss(model, batch) + sum(p.pow(4).sum() for p in model.parameters())

    model, batch = double_mlp(), classes()
    plain = Hessian(model, nn.CrossEntropyLoss(), batch).to_dense()
    penalty = torch.diag(12 * theta_of(model).square())
    torch.testing.assert_close(Hessian(model, Penalized(nn.CrossEntropyLoss()), batch).to_dense(), plain + penalty)


def on_indicators(criterion):
    return Supervised(criterion, inputs=lambda b: b[0], targets=lambda b: F.one_hot(b[1], 3).double())


SUMS = {
    "cross entropy": (nn.CrossEntropyLoss(reduction="sum"), lambda o, y: F.cross_entropy(o, y, reduction="sum")),
    "weighted, some ignored": (
        nn.CrossEntropyLoss(
            torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=1, label_smoothing=0.1, reduction="sum"
        ),
        lambda o, y: F.cross_entropy(
            o, y, torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=1, label_smoothing=0.1, reduction="sum"
        ),
    ),
    "functional": (
        functools.partial(F.cross_entropy, reduction="sum"), lambda o, y: F.cross_entropy(o, y, reduction="sum")
    ),
    "squared error": (
        on_indicators(nn.MSELoss(reduction="sum")),
        lambda o, y: (o - F.one_hot(y, 3)).square().sum(),
    ),
    "another": (
        on_indicators(nn.SmoothL1Loss(reduction="sum")),
        lambda o, y: F.smooth_l1_loss(o, F.one_hot(y, 3).double(), reduction="sum"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("sizes", [(8,), (5, 3)])
def test_a_sum_over_the_batch_has_the_curvature_of_the_sum(name, sizes):
    loss_fn, plain = SUMS[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    names, values = zip(*net.named_parameters(), strict=True)
    flat = torch.cat([v.detach().ravel() for v in values])

    def outputs(w, inputs):
        parts = [p.view_as(v) for p, v in zip(w.split([v.numel() for v in values]), values, strict=True)]
        return torch.func.functional_call(net, dict(zip(names, parts, strict=True)), (inputs,))

    hessians = [torch.func.hessian(lambda w, b=b: plain(outputs(w, b[0]), b[1]))(flat) for b in batches]
    torch.testing.assert_close(Hessian(net, loss_fn, batches).to_dense(), torch.stack(hessians).mean(0))
    ggns = []
    for inputs, targets in batches:
        jacobian = torch.func.jacrev(outputs)(flat, inputs).flatten(0, 1)
        inner = torch.func.hessian(lambda o, t=targets: plain(o, t))(outputs(flat, inputs)).reshape(len(jacobian), -1)
        ggns.append(jacobian.T @ inner @ jacobian)
    torch.testing.assert_close(GGN(net, loss_fn, batches).to_dense(), torch.stack(ggns).mean(0))
