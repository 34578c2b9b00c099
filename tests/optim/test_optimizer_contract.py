"""What every optimizer of this package must do as torch's own do, for those that act on the radial direction."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from poise.optim import SAM, SGDP, SOAP, AdamP, IndependentAdamW, NormalizeWeights, OrthoGrad

MAKERS = {
    "adamp": lambda p, lr=0.01: AdamP(p, lr, weight_decay=0.1, nesterov=True),
    "sgdp": lambda p, lr=0.01: SGDP(p, lr, momentum=0.9, weight_decay=0.1),
    "ortho_grad": lambda p, lr=0.01: OrthoGrad(AdamW(p, lr)),
    "sam": lambda p, lr=0.01: SAM(SGD(p, lr, momentum=0.9)),
    "sam schedule": lambda p, lr=0.01: SAM(AdamW(p, lr), rho=lambda t: 0.01 * t, normalize=False, adaptive=True),
    "normalize_weights": lambda p, lr=0.01: NormalizeWeights(AdamW(p, lr), list(p)[:1]),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    return model.to(dtype)


def closure_of(model, optimizer, step, scale=lambda loss: loss):
    generator = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    x = torch.randn(12, 6, generator=generator).to(dtype)
    y = torch.randint(3, (12,), generator=generator)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scale(loss).backward()
        return loss

    return closure


def train(model, optimizer, steps, scheduler=None):
    losses = []
    for step in steps:
        losses.append(optimizer.step(closure_of(model, optimizer, step)).item())
        if scheduler is not None:
            scheduler.step()
    return losses


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(make, dtype, tmp_path):
    model = network(dtype)
    optimizer = make(list(model.parameters()))
    scheduler = CosineAnnealingLR(optimizer, 12)
    train(model, optimizer, range(4), scheduler)
    torch.save([optimizer.state_dict(), scheduler.state_dict(), model.state_dict()], tmp_path / "checkpoint.pt")
    train(model, optimizer, range(4, 8), scheduler)

    again = network(dtype, seed=1)
    resumed = make(list(again.parameters()), lr=0.5)
    schedule = CosineAnnealingLR(resumed, 12)
    states = torch.load(tmp_path / "checkpoint.pt")
    for part, state in zip((resumed, schedule, again), states, strict=True):
        part.load_state_dict(state)
    train(again, resumed, range(4, 8), schedule)
    assert same(weights(model), weights(again))


@every
def test_a_scheduler_acts_before_and_after_a_checkpoint_is_loaded(make):
    model = network()
    optimizer = make(list(model.parameters()))
    scheduler = LambdaLR(optimizer, lambda t: 1.0 if t < 2 else 0.0)
    train(model, optimizer, range(2), scheduler)
    moved = weights(model)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(1), scheduler)
    for before, after in zip(moved, weights(model), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-7)  # at learning rate 0
    scheduler.lr_lambdas = [lambda t: 1.0]
    scheduler.step()
    train(model, optimizer, range(1))
    assert not any(torch.equal(a, b) for a, b in zip(moved, weights(model), strict=True))


@every
def test_param_groups_can_be_edited_and_added_while_running(make):
    model = network()
    extra = nn.Parameter(torch.ones(3))
    optimizer = make(list(model.parameters()))
    train(model, optimizer, range(2))
    optimizer.param_groups[0]["lr"] = 0.0
    before = weights(model)
    train(model, optimizer, range(1))
    for a, b in zip(before, weights(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # torch's bias correction
    optimizer.add_param_group({"params": [extra], "lr": 0.1})

    def closure():
        optimizer.zero_grad()
        loss = extra.square().sum()
        loss.backward()
        return loss

    start = extra.detach().clone()
    optimizer.step(closure)
    assert len(optimizer.param_groups) == 2
    if not isinstance(optimizer, OrthoGrad):  # this gradient is parallel to its weight
        assert (extra < start).all()


@every
def test_step_hooks_fire_once_and_a_copy_trains_on_alike(make):
    model = network()
    optimizer = make(list(model.parameters()))
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("own"))
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("global"))
    try:
        train(model, optimizer, range(3))
    finally:
        handle.remove()
    assert sorted(seen) == ["global"] * 3 + ["own"] * 3
    twin, copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(3))
    train(twin, copied, range(3))
    assert same(weights(model), weights(twin))


@every
def test_the_loss_falls_and_is_the_value_of_step(make):
    model = network()
    optimizer = make(list(model.parameters()))
    losses = [optimizer.step(closure_of(model, optimizer, 0)).item() for _ in range(40)]
    assert losses[0] == pytest.approx(F.cross_entropy(network()(*_batch()[:1]), _batch()[1]).item())
    assert losses[-1] < losses[0] - 0.1


def _batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)


@every
def test_gradient_scaling_changes_nothing_but_skips_overflow(make):
    plain, scaled = network(), network()
    a, b = make(list(plain.parameters())), make(list(scaled.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(closure):
        if isinstance(b, SAM):
            b.step(closure, scaler)
        else:
            closure()
            scaler.step(b)
        scaler.update()

    for t in range(3):
        a.step(closure_of(plain, a, t))
        step(closure_of(scaled, b, t, scaler.scale))
    torch.testing.assert_close(weights(plain), weights(scaled), rtol=1e-5, atol=1e-6)

    before, scale = weights(scaled), scaler.get_scale()
    step(closure_of(scaled, b, 3, lambda loss: scaler.scale(loss) * float("inf")))
    assert same(before, weights(scaled))
    assert scaler.get_scale() == scale / 2
    step(closure_of(scaled, b, 3, scaler.scale))
    assert not same(before, weights(scaled))


@every
def test_sparse_gradients_and_complex_parameters_are_refused_before_anything_changes(make):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make(list(table.parameters()))
    start = table.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"dense gradients|sparse gradients"):
        optimizer.step(closure)
    assert torch.equal(table.weight, start)
    with pytest.raises(TypeError, match="params must be real"):
        make([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="params must be real"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


@every
def test_maximize_climbs_as_descent_does_on_the_negative(make):
    down, up = network(torch.float64), network(torch.float64)
    a, b = make(list(down.parameters())), make(list(up.parameters()))
    for group in b.param_groups:
        group["maximize"] = True
    for t in range(3):
        a.step(closure_of(down, a, t))
        b.step(closure_of(up, b, t, lambda loss: -loss))
    torch.testing.assert_close(weights(down), weights(up), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        *MAKERS.values(),
        lambda p: AdamP(p, foreach=True),
        lambda p: SOAP(p, precondition_frequency=1),
        lambda p: SOAP(p, nonfinite="skip", skip_first=False),
        IndependentAdamW,
    ],
)
def test_it_steps_on_the_meta_device_as_torchs_do(make):
    model = network().to("meta")
    optimizer = make(list(model.parameters()))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.empty(12, 6, device="meta")).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        (AdamP, {"foreach": True}),
        (AdamP, {"foreach": False}),
        (AdamP, {"fused": True}),
        (IndependentAdamW, {"foreach": True}),
    ],
)
def test_a_compiled_step_of_every_kernel_is_the_eager_step(kind, kernel):
    torch._dynamo.reset()
    eager, compiled = network(torch.float64), network(torch.float64)
    a, b = (kind(list(m.parameters()), lr=0.01, **kernel) for m in (eager, compiled))
    step = torch.compile(b.step, backend="eager")
    for t in range(3):
        closure_of(eager, a, t)()
        closure_of(compiled, b, t)()
        a.step()
        step()
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-5)  # torch's bias correction


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamp", "sgdp", "ortho_grad", "normalize_weights"])
def test_a_compiled_step_is_the_eager_step(name):
    eager, compiled = network(), network()
    a, b = (MAKERS[name](list(m.parameters())) for m in (eager, compiled))
    step = torch.compile(b.step, backend="eager")
    for t in range(2):
        closure_of(eager, a, t)()
        closure_of(compiled, b, t)()
        a.step()
        step()
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-5)  # torch's bias correction


SCRIPT = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from test_optimizer_contract import MAKERS, network, weights
dist.init_process_group("gloo")
rank, out = dist.get_rank(), {}
for name, make in MAKERS.items():
    model = network(torch.float64)
    parallel = DistributedDataParallel(model)
    optimizer = make(list(model.parameters()))
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(12, 6, generator=generator).double()[6 * rank : 6 * rank + 6]
        y = torch.randint(3, (12,), generator=generator)[6 * rank : 6 * rank + 6]
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(parallel(x), y)
            loss.backward()
            return loss
        optimizer.step(closure)
    out[name] = weights(model)
torch.save(out, f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "train.py"]
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [*command, here, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, make in MAKERS.items():
        model = network(torch.float64)
        optimizer = make(list(model.parameters()))
        train(model, optimizer, range(4))
        assert same(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], weights(model), rtol=1e-9, atol=1e-12)
