"""Whatever compiles, traces, pickles, inspects or subclasses finds torch as it is without the watch."""

import copy
import inspect
import io
import pickle
import threading
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as bound_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

X = torch.linspace(-1, 1, 8).view(2, 4)


class Net(nn.Module):
    def __init__(self, activation=torch.relu):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.activation = nn.Linear(4, 8), nn.Linear(8, 4), activation

    def forward(self, x):
        return torch.softmax(self.b(F.relu(torch.relu(self.a(x)))), -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(4, 4)

    def forward(self, x):
        q = self.q(x).view(1, 1, 2, 4)
        return F.scaled_dot_product_attention(q, q, q).sum() + bound_attention(q, q, q).sum()


class Subclass(torch.Tensor):
    seen: list = []  # noqa: RUF012 - emptied by each case

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def script_module():
    return torch.jit.script(Net())(X)


def script_function_with_losses():
    @torch.jit.script
    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x, y) + F.mse_loss(x, torch.relu(x)) + F.softmax(x, -1).sum()

    return loss(X, torch.tensor([0, 1]))


def script_class_and_script_method():
    class Old(torch.jit.ScriptModule):
        @torch.jit.script_method
        def forward(self, x):
            return torch.relu(x)

    return Old()(X)


def trace():
    traced = torch.jit.trace(Net(), X)
    return traced(X), "relu" in str(traced.graph)


def export():
    program = torch.export.export(Attention(), (X,))
    return program.module()(X), [str(node.target) for node in program.graph.nodes]


def symbolic_trace():
    traced = torch.fx.symbolic_trace(Net())
    return traced(X), traced.code


def compile_whole_graph():
    torch._dynamo.reset()
    return torch.compile(Net(), fullgraph=True, backend="eager")(X)


def compile_a_loss():
    torch._dynamo.reset()
    return torch.compile(lambda x: F.cross_entropy(x, torch.tensor([0, 1])), fullgraph=True, backend="eager")(X)


def per_example_gradients():
    net = Net()
    parameters = dict(net.named_parameters())

    def loss(p, x):
        return F.mse_loss(torch.func.functional_call(net, p, (x[None],)), x[None])

    return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, X)["a.weight"]


def jacobian():
    return torch.func.jacrev(Net())(X), torch.func.jvp(Net(), (X,), (X,))[1]


def pickle_models():
    model = nn.ModuleList([Net(), Net(F.relu), nn.TransformerEncoderLayer(4, 1, 8, activation=F.gelu)])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert b"poise" not in file.getvalue()
    return loaded[0](X), loaded[1].activation is F.relu, loaded[0].activation(X)


FUNCTIONS = [
    F.cross_entropy, F.relu, torch.relu, torch.softmax, F.mse_loss, F.scaled_dot_product_attention, torch.Tensor.relu,
    nn.utils.clip_grad_norm_, torch.load,
]  # fmt: skip


def pickle_functions():
    return [pickle.loads(pickle.dumps(f)) is f for f in FUNCTIONS]


def deepcopies():
    model = Net()
    return copy.deepcopy(model)(X), len(copy.deepcopy(torch.optim.Adam(model.parameters())).param_groups)


def signatures():
    functions = [F.cross_entropy, F.relu, F.mse_loss, nn.utils.clip_grad_norm_, torch.load, nn.Module.zero_grad]
    return [(str(inspect.signature(f)), inspect.getsource(f), f.__name__, f.__module__) for f in functions]


def nested_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ragged = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])
    return ragged.softmax(-1).to_padded_tensor(0.0), torch.relu(ragged).to_padded_tensor(0.0)


def sparse_tensors():
    return torch.relu(X.to_sparse()).to_dense(), torch.sparse.softmax(X.to_sparse(), 1).to_dense()


def quantised_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(X, 0.1, 10, torch.quint8)
    return torch.relu(quantised).dequantize()


def subclass_tensors():
    Subclass.seen.clear()
    x = X.as_subclass(Subclass)
    out = torch.relu(x).softmax(-1), F.cross_entropy(x, torch.tensor([0, 1])), Net()(x)
    return [o.as_subclass(torch.Tensor) for o in out], list(Subclass.seen)


def function_modes():
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        out = Net()(X)
    return out, seen


def flops_are_counted_once():
    with FlopCounterMode(display=False) as counter:
        Attention()(X).backward()
    return counter.get_total_flops()


def fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return Net()(torch.ones(2, 4)).shape


def recorded_graph():
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda x: torch.relu(x).softmax(-1))(X).code


def meta_device():
    with torch.device("meta"):
        return Net()(torch.ones(2, 4)).shape


def checkpointed():
    net, x = Net(), X.clone().requires_grad_()
    for reentrant in (False, True):
        checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    return net.a.weight.grad, x.grad


def gradients_of_gradients():
    net = Net()
    first = torch.autograd.grad(net(X).square().sum(), list(net.parameters()), create_graph=True)
    sum(g.square().sum() for g in first).backward()
    return net.a.weight.grad


def retained_and_hooked_gradients():
    net, heard = Net(), []
    hidden = net.a(X)
    hidden.retain_grad()
    hidden.register_hook(lambda g: heard.append(g.clone()))
    net.b(hidden.tanh()).square().sum().backward()
    return hidden.grad, heard


def threads():
    def train(seed):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for step in range(6):
            optimizer.zero_grad()
            net(X * (seed + step)).square().mean().backward()
            optimizer.step()
        return net[0].weight.detach()

    # One after the other: the initial weights come from the global generator.
    with ThreadPoolExecutor(1) as one:
        return list(one.map(train, range(2)))


def a_wrong_call():
    try:
        Attention()(torch.ones(2, 5))
    except RuntimeError:
        return traceback.format_exc()


def locations_of_warnings():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        F.softmax(X)
        F.mse_loss(X, X[:1])
        nn.Sequential(nn.Softmax())(X)
        nn.utils.clip_grad_norm_([nn.Parameter(X)], 1.0)
        torch.optim.lr_scheduler.StepLR(torch.optim.SGD(Net().parameters(), lr=0.1), 1).step()
    return [(str(w.message)[:40], w.filename, w.lineno) for w in seen]


CASES = [
    script_module, script_function_with_losses, script_class_and_script_method, trace, export, symbolic_trace,
    compile_whole_graph, compile_a_loss, per_example_gradients, jacobian, pickle_models, pickle_functions, deepcopies,
    signatures, nested_tensors, sparse_tensors, quantised_tensors, subclass_tensors, function_modes,
    flops_are_counted_once, fake_tensors, recorded_graph, meta_device, checkpointed, gradients_of_gradients,
    retained_and_hooked_gradients, threads, a_wrong_call, locations_of_warnings,
]  # fmt: skip


class Host(nn.Module):
    """Runs a case within its forward pass."""

    def __init__(self, case):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.case, self.output = case, None

    def forward(self, x):
        self.output = self.case()
        return x * self.weight


def run_within(case):
    """Run ``case`` in the forward pass of the third step of a training."""
    host = Host(case)
    optimizer = torch.optim.SGD(host.parameters(), lr=0.0)
    for step in range(3):
        host.case = case if step == 2 else (lambda: None)
        host(torch.ones(1)).sum().backward()
        optimizer.step()
    return host.output


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("where", ["at the first step", "within a sampled forward pass"])
def test_torch_is_as_it_is_without_the_watch(case, where, watching):
    run = case if where == "at the first step" else (lambda: run_within(case))
    bare = run()
    with watching() as watched:
        seen = run()
    assert watched.tap.fault is None
    assert_same(bare, seen)


def hogwild(model, rank):
    torch.manual_seed(rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(X[:, :4]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_share_the_weights_train_them_and_are_not_recorded(method, watching):
    model = nn.Linear(4, 1)
    model.share_memory()
    before = model.weight.detach().clone()
    with watching() as watched:
        hogwild(model, 0)
        workers = [get_context(method).Process(target=hogwild, args=(model, i)) for i in (1, 2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert watched.tap.fault is None
    assert len(watched["loss"]) == 3
    assert not torch.equal(model.weight, before)


def test_a_second_thread_neither_stops_nor_enters_the_record(watching):
    def train(steps, scale):
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        for _ in range(steps):
            (net(X).mean() * 0 + scale).backward()
            optimizer.step()

    with watching() as watched:
        train(3, 1.0)
        other = threading.Thread(target=train, args=(50, 7.0))
        other.start()
        train(20, 1.0)
        other.join()
    assert watched.tap.fault is None
    assert watched.tap.counts["step"] == 23
    assert set(watched["loss"].values) == {1.0}


def test_attention_bound_to_a_name_of_its_own_is_seen(watching):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(4, 4)

        def forward(self, x):
            q = self.q(x).view(1, 1, 2, 4)
            return bound_attention(q, q, q)

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching() as watched:
        for _ in range(2):
            model(X).sum().backward()
            optimizer.step()
    assert set(watched.record.by_layer("attention_logit_max")) == {"Model"}
    assert bound_attention is F.scaled_dot_product_attention


def test_an_optimizer_step_that_raises_does_not_end_the_record(watching):
    class Sometimes(torch.optim.SGD):
        broken = False

        def step(self, closure=None):
            if self.broken:
                raise RuntimeError("no")
            return super().step(closure)

    model = nn.Linear(4, 1)
    optimizer = Sometimes(model.parameters(), lr=0.1)
    with watching() as watched:
        for step in range(6):
            optimizer.zero_grad()
            model(X).mean().backward()
            optimizer.broken = step == 2
            try:
                optimizer.step()
            except RuntimeError:
                continue
    assert watched.tap.fault is None
    assert len(watched["loss"]) == 5
