"""What every layer of the room must stand: autocast, half precision, empty batches, the compiler, second derivatives,
and training by several processes."""

import copy
import inspect

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import poise.nn


def unified(kind=poise.nn.UnifiedNorm):
    return kind(6, 3, warmup_iters=2, r_start=0)


# How a layer is made, and its input of so many examples: "rows" of 6 features, "steps" of them in time, or "tokens".
LAYERS = {
    "DiagonalLinear": (lambda: poise.nn.DiagonalLinear(6), "rows"),
    "EmbeddingGradientShrink": (lambda: poise.nn.EmbeddingGradientShrink(0.3), "rows"),
    "EmbeddingLayerNorm": (lambda: poise.nn.EmbeddingLayerNorm(9, 6), "tokens"),
    "LayerNormGRU": (lambda: poise.nn.LayerNormGRU(6, 4), "steps"),
    "LayerNormGRUCell": (lambda: poise.nn.LayerNormGRUCell(6, 4), "rows"),
    "LayerNormLSTM": (lambda: poise.nn.LayerNormLSTM(6, 3, bidirectional=True), "steps"),
    "LayerNormLSTMCell": (lambda: poise.nn.LayerNormLSTMCell(6, 4), "rows"),
    "LayerNormRNN": (lambda: poise.nn.LayerNormRNN(6, 4), "steps"),
    "LayerNormRNNCell": (lambda: poise.nn.LayerNormRNNCell(6, 4), "rows"),
    "QKNorm": (lambda: poise.nn.QKNorm(6), "rows"),
    "ReferenceUnifiedNorm": (lambda: unified(poise.nn.ReferenceUnifiedNorm), "rows"),
    "SDDLinear": (lambda: poise.nn.SDDLinear(6, 4, groups=2), "rows"),
    "ScaledEmbedding": (lambda: poise.nn.ScaledEmbedding(9, 6), "tokens"),
    "ScaledResidual": (lambda: poise.nn.ScaledResidual(nn.Linear(6, 6), 0.3, learnable=True), "rows"),
    "StableResNetMLP": (lambda: poise.nn.StableResNetMLP(6, 8, 3, 2, activation=torch.tanh), "rows"),
    "UnifiedNorm": (unified, "rows"),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name):
    torch.manual_seed(0)
    return LAYERS[name][0]()


def example(name, count=8):
    generator = torch.Generator().manual_seed(1)
    kind = LAYERS[name][1]
    if kind == "tokens":
        return torch.randint(9, (count, 3), generator=generator)
    return torch.randn((5, count, 6) if kind == "steps" else (count, 6), generator=generator)


def call(layer, x):
    """The layer's first output, or both of the norm of queries and keys."""
    if isinstance(layer, poise.nn.QKNorm):
        return torch.cat(layer(x, 2 * x), -1)
    out = layer(x)
    return out[0] if isinstance(out, tuple) else out


def test_no_layer_is_left_out():
    exported = {name for name in poise.nn.__all__ if inspect.isclass(getattr(poise.nn, name))}
    assert {name for name in exported if issubclass(getattr(poise.nn, name), nn.Module)} == set(LAYERS)


@every_layer
def test_on_the_meta_device_it_has_shapes_and_gets_its_state_later(name):
    real, x = make(name), example(name)
    with torch.device("meta"):
        layer = make(name)
        assert call(layer, x.to("meta")).shape == call(copy.deepcopy(real), x).shape
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(real.state_dict())
    torch.testing.assert_close(call(layer, x), call(real, x))


@every_layer
def test_autocast_is_near_and_leaves_gradients_as_parameters_are(name):
    layer, x = make(name), example(name)
    expected = call(copy.deepcopy(layer), x)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(layer, x)
    torch.testing.assert_close(out.float(), expected, atol=0.06, rtol=0.06)
    if out.requires_grad:
        out.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@every_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halved_it_is_near_and_keeps_the_type(name, dtype):
    layer, x = make(name), example(name)
    expected = call(copy.deepcopy(layer), x)
    layer = layer.to(dtype)
    out = call(layer, x.to(dtype) if x.is_floating_point() else x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)
    if out.requires_grad:
        out.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()


@every_layer
def test_no_examples_give_no_outputs_and_gradients_of_zero(name):
    layer = make(name)
    empty, some = call(layer, example(name, 0)), call(layer, example(name))
    assert empty.shape == tuple(0 if size == 8 else size for size in some.shape)
    if empty.requires_grad:
        empty.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@every_layer
def test_first_and_second_derivatives(name):
    """By the parameters too; in evaluation, for the gradient of unified norm is an estimate in training."""
    layer, x = make(name).double().eval(), example(name, 3)
    names, values = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())
    inputs = [value.detach().clone().requires_grad_() for value in values]
    if x.is_floating_point():
        inputs.append(x.double().requires_grad_())

    def function(*args):
        whole = _Called(layer)
        state = {f"layer.{key}": value for key, value in zip(names, args, strict=False)}
        return functional_call(whole, state, (args[-1] if x.is_floating_point() else x,))

    if name != "EmbeddingGradientShrink":  # a gradient that is not the derivative is its point
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


class _Called(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return call(self.layer, x)


@pytest.mark.parametrize("name", ["UnifiedNorm", "ReferenceUnifiedNorm"])
def test_an_estimated_gradient_refuses_to_be_differentiated(name):
    x = example(name).requires_grad_()
    (grad,) = torch.autograd.grad(make(name)(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.slow
def test_compiled_whole_a_layer_is_as_it_was():
    # stacks, QKNorm, SDDLinear, UnifiedNorm, embeddings and ScaledResidual are compiled in tests of their own
    for name in ("DiagonalLinear", "LayerNormGRUCell", "LayerNormLSTMCell", "StableResNetMLP"):
        layer, x = make(name), example(name)
        other = copy.deepcopy(layer)
        compiled = torch.compile(_Called(other), fullgraph=True, backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(x), call(layer, x), msg=lambda message, name=name: f"{name}: {message}")


# --- two processes -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A layer behind a linear map (where it takes numbers), so that the gradient that it passes on is seen as well."""

    def __init__(self, name):
        super().__init__()
        self.layer = make(name)
        self.first = nn.Linear(6, 6) if LAYERS[name][1] != "tokens" else nn.Identity()

    def forward(self, x):
        return call(self.layer, self.first(x))


def steps(net, name, shard):
    """Four steps of SGD, each on new examples; batches are along the second dimension of sequences."""
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        x = example(name, 8)
        x = x[torch.randperm(len(x), generator=generator)]
        x = x.double() * (1 + torch.rand((), generator=generator)) if x.is_floating_point() else x
        part = x[:, shard] if LAYERS[name][1] == "steps" else x[shard]
        optimizer.zero_grad()
        net(part).sin().mean().backward()  # a loss of bounded slope: no layer may diverge
        optimizer.step()
    return net


def one_of_two(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    shard = slice(4 * rank, 4 * rank + 4)
    trained = {}
    for name in LAYERS:
        net = Net(name).double()
        if isinstance(net.layer, poise.nn.UnifiedNorm):
            net.layer.process_group = dist.group.WORLD
        trained[name] = steps(DistributedDataParallel(net), name, shard).module.state_dict()
    if rank == 0:
        torch.save(trained, f"{path}/trained.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_on_all_their_examples(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    trained = torch.load(tmp_path / "trained.pt")
    for name in LAYERS:
        alone = steps(Net(name).double(), name, slice(None)).state_dict()
        for key, value in alone.items():
            # two processes have losses of half the examples each: what is linear in the loss is twice as large
            factor = 2 if "gradient_" in key else 1
            torch.testing.assert_close(
                trained[name][key], factor * value, rtol=1e-4, atol=1e-6, msg=lambda m, at=(name, key): f"{at}: {m}"
            )
