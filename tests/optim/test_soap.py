"""SOAP against the paper's equations in float64, and against what must hold of its trajectories."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from poise.optim import SOAP, kronecker_basis, soap_step
from poise.optim.refresh_schedule import staggered_phases
from poise.optim.tensor_layout import merged_shape, tensor_layout

MATRICES = ((6, 4), (5,), (3, 3), (4, 6), (6, 4), ())


def gradients(shapes, steps, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes] for _ in range(steps)]


def weights(shapes, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def train(optimizer, params, grads):
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()


def values(params):
    return [p.detach().clone() for p in params]


class Oracle:
    """One parameter, one axis after another, by tensordot; the momentum stays in the original space."""

    def __init__(self, w, **options):
        defaults = {
            "lr": 3e-3, "betas": (0.95, 0.95), "beta": 0.95, "eps": 1e-8, "decay": 0.01, "f": 10, "limit": 10_000,
            "vectors": False, "one_sided": False, "factored": False, "normalize": False, "correct": True,
        }  # fmt: skip
        self.o = defaults | options
        self.w, self.m, self.v, self.t = w.clone(), torch.zeros_like(w), torch.zeros_like(w), 0
        self.axes = [n <= self.o["limit"] and (w.dim() > 1 or self.o["vectors"]) for n in w.shape]
        if self.o["one_sided"] and w.dim() == 2:
            self.axes = [w.shape[0] <= w.shape[1], w.shape[0] > w.shape[1]]
        self.P = [torch.zeros(n, n, dtype=w.dtype) for n in w.shape]
        self.Q = None

    def turn(self, x, back=False):
        for i, use in enumerate(self.axes):
            if use:
                x = torch.tensordot(x, self.Q[i], ([i], [1 if back else 0])).movedim(-1, i)
        return x

    def collect(self, g):
        for i in range(g.dim()):
            others = [j for j in range(g.dim()) if j != i]
            self.P[i] = self.o["beta"] * self.P[i] + (1 - self.o["beta"]) * torch.tensordot(g, g, (others, others))

    def step(self, g):
        o = self.o
        if self.Q is None:
            self.collect(g)
            self.Q = [torch.linalg.eigh(P)[1].flip(1) for P in self.P]
            return
        self.t += 1
        b1, b2 = o["betas"]
        rotated = self.turn(g)
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * rotated**2
        v = self.v
        if o["factored"] and v.dim() == 2:  # sums of an average are averages of the sums
            v = torch.outer(v.sum(1), v.sum(0)) / v.sum()
        u = self.turn(self.turn(self.m) / (v.sqrt() + o["eps"]), back=True)
        if o["normalize"]:
            u = u / (1e-30 + u.square().mean().sqrt())
        rate = o["lr"] * (math.sqrt(1 - b2**self.t) / (1 - b1**self.t) if o["correct"] else 1)
        self.w = (self.w - rate * u) * (1 - o["lr"] * o["decay"])
        self.collect(g)
        if self.t % o["f"] == 0:
            for i, use in enumerate(self.axes):
                if use:
                    e = torch.diag(self.Q[i].T @ self.P[i] @ self.Q[i])
                    order = e.argsort(descending=True)
                    self.v = self.v.index_select(i, order)
                    self.Q[i] = torch.linalg.qr(self.P[i] @ self.Q[i][:, order])[0]


VARIANTS = [
    ({}, {}),
    ({"precondition_frequency": 1}, {"f": 1}),
    (
        {"precondition_frequency": 3, "shampoo_beta": 0.7, "betas": (0.9, 0.99)},
        {"f": 3, "beta": 0.7, "betas": (0.9, 0.99)},
    ),
    ({"one_sided": True, "precondition_frequency": 2}, {"one_sided": True, "f": 2}),
    ({"factored": True, "precondition_frequency": 2}, {"factored": True, "f": 2}),
    ({"factored": True, "one_sided": True}, {"factored": True, "one_sided": True}),
    ({"normalize_grads": True, "correct_bias": False}, {"normalize": True, "correct": False}),
    ({"max_precond_dim": 5, "weight_decay": 0.0}, {"limit": 5, "decay": 0.0}),
    ({"precondition_1d": True, "eps": 1e-3}, {"vectors": True, "eps": 1e-3}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "oracle"), VARIANTS, ids=[str(v[0]) for v in VARIANTS])
def test_equals_a_float64_oracle(ours, oracle):
    shapes = (*MATRICES, (2, 3, 4))
    params, grads = weights(shapes), gradients(shapes, 25)
    oracles = [Oracle(p.detach(), **oracle) for p in params]
    optimizer = SOAP(params, null_space="reference", **ours)
    train(optimizer, params, grads[:1])
    for o, p, g in zip(oracles, params, grads[0], strict=True):
        o.step(g)
        for i, basis in enumerate(optimizer.basis(p)):
            if basis is not None:
                founded = basis.T @ o.P[i] @ basis
                torch.testing.assert_close(founded, torch.diag(torch.linalg.eigvalsh(o.P[i]).flip(0)))
                o.Q[i] = basis.clone()  # a first Gram matrix of low rank leaves vectors to rounding
    train(optimizer, params, grads[1:])
    for step in grads[1:]:
        for o, g in zip(oracles, step, strict=True):
            o.step(g)
    torch.testing.assert_close(values(params), [o.w for o in oracles], rtol=0, atol=1e-11)


def orthogonal(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_gradient_founds_bases_and_moves_nothing(dtype):
    params = weights(MATRICES, dtype=dtype)
    start = values(params)
    optimizer = SOAP(params)
    train(optimizer, params, gradients(MATRICES, 1, dtype=dtype))
    assert all(torch.equal(a, b) for a, b in zip(start, values(params), strict=True))
    assert all(optimizer.state[p]["step"] == 0 for p in params)
    assert [q.shape for q in optimizer.basis(params[0])] == [(6, 6), (4, 4)]
    assert optimizer.basis(params[1]) == [None]


def test_a_gradient_that_comes_late_is_skipped_for_its_own_parameter():
    shapes = ((4, 3), (3, 4))
    params, grads = weights(shapes), gradients(shapes, 8)
    alone = weights(shapes)[1]
    late = [[a, None] for a, _ in grads[:3]] + grads[3:]
    train(SOAP(params), params, late)
    train(SOAP([alone]), [alone], [[b] for _, b in grads[3:]])
    assert torch.equal(params[1], alone)


def test_without_skipping_the_first_gradient_moves_by_the_rate_in_its_own_basis():
    (p,) = weights(((4, 4),))
    start = p.detach().clone()
    optimizer = SOAP([p], lr=0.1, weight_decay=0.0, eps=0.0, skip_first=False)
    ((g,),) = gradients(((4, 4),), 1)
    train(optimizer, [p], [[g]])
    # G = A S B' becomes diagonal in its bases, and Adam's first step is the sign of that: the move is lr A B'.
    left, _, right = torch.linalg.svd(g)
    rotated = left.T @ (start - p.detach()) @ right.T / 0.1
    torch.testing.assert_close(rotated.diagonal(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(optimizer.state[p]["gram_0"], 0.05 * g @ g.T)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2)])
def test_without_axes_it_is_adam_on_all_gradients_but_the_first(shape):
    ours, theirs, grads = weights((shape,)), weights((shape,)), gradients((shape,), 12)
    train(SOAP(ours, lr=0.01, weight_decay=0.0, eps=0.0, max_precond_dim=1), ours, grads)
    train(torch.optim.Adam(theirs, lr=0.01, betas=(0.95, 0.95), eps=0.0), theirs, grads[1:])
    torch.testing.assert_close(values(ours), values(theirs))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.sampled_from(["together", "staggered"]),
    st.sampled_from(["lift", "reference"]),
)
def test_rotating_the_problem_rotates_the_trajectory(seed, frequency, refresh, null_space):
    generator = torch.Generator().manual_seed(seed)
    u, v = orthogonal(5, generator), orthogonal(5, generator)
    (w,), grads = weights(((5, 5),), seed), gradients(((5, 5),), 15, seed)
    # Full rank, with eigenvalues apart: eigenvectors are then the problem's own.
    grads[0][0].copy_(orthogonal(5, generator) * torch.arange(1, 6) @ orthogonal(5, generator))
    (turned,) = (nn.Parameter(u @ w.detach() @ v.T),)
    options = {"weight_decay": 0.0, "precondition_frequency": frequency, "refresh": refresh, "null_space": null_space}
    train(SOAP([w], **options), [w], grads)
    train(SOAP([turned], **options), [turned], [[u @ g @ v.T] for (g,) in grads])
    torch.testing.assert_close(turned.detach(), u @ w.detach() @ v.T, rtol=0, atol=1e-10)


def test_lifted_runs_agree_in_float64_although_rounding_differs():
    x = torch.randn(10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x[:, :1].sin()

    def trained(order, null_space):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        optimizer = SOAP(model.parameters(), lr=0.01, precondition_frequency=5, null_space=null_space)
        for _ in range(60):
            optimizer.zero_grad()
            (model(x[order]) - y[order]).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().ravel() for p in model.parameters()])

    orders = torch.arange(10), torch.arange(10).flip(0)  # the sums over the batch differ by rounding
    parted = {kind: (trained(orders[0], kind) - trained(orders[1], kind)).abs().max() for kind in ("lift", "reference")}
    assert parted["lift"] < 1e-6
    assert parted["reference"] > 1e-3


def test_the_first_move_has_every_rotated_entry_of_size_lr():
    (p,), grads = weights(((5, 3),)), gradients(((5, 3),), 2)
    start = p.detach().clone()
    optimizer = SOAP([p], lr=0.01, eps=0.0, weight_decay=0.0)
    train(optimizer, [p], grads)
    bases = optimizer.basis(p)
    moved = kronecker_basis.rotate(start - p.detach(), bases)
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01))
    assert torch.linalg.norm(start - p.detach()).item() == pytest.approx(0.01 * math.sqrt(15))


@pytest.mark.slow
@pytest.mark.parametrize("null_space", ["lift", "reference"])
def test_bases_stay_orthogonal_over_a_thousand_steps(null_space):
    shapes = ((20, 6),)
    params = weights(shapes, dtype=torch.float32)
    optimizer = SOAP(params, precondition_frequency=1, null_space=null_space)
    train(optimizer, params, gradients(shapes, 1000, dtype=torch.float32))
    for p in params:
        for q in optimizer.basis(p):
            torch.testing.assert_close(q.double().T @ q.double(), torch.eye(len(q)).double(), rtol=0, atol=2e-6)


def test_idealised_shampoo_is_adafactor_in_its_eigenbasis():
    stack = torch.stack([g for (g,) in gradients(((5, 4),), 30)])
    left, right = (stack @ stack.mT).mean(0), (stack.mT @ stack).mean(0)
    (el, ql), (er, qr) = torch.linalg.eigh(left), torch.linalg.eigh(right)
    g = stack[0]
    shampoo = (ql * el**-0.5) @ ql.T @ g @ (qr * er**-0.5) @ qr.T * left.trace().sqrt()
    second = (ql.T @ stack @ qr).square().mean(0)
    torch.testing.assert_close(second.sum(1), el, rtol=1e-12, atol=1e-12)
    # The same through the factored optimizer: without averaging (beta2 = 0 keeps the last square only) its root is
    # Adafactor's, so the state's own sums stand in for the expectation.
    state = {"exp_avg_sq_row": second.sum(1).clone(), "exp_avg_sq_col": second.sum(0).clone()}
    root = soap_step._factored_root(state, torch.zeros_like(g), 1.0)
    ours = kronecker_basis.rotate_back(kronecker_basis.rotate(g, [ql, qr]) / root, [ql, qr])
    torch.testing.assert_close(ours, shampoo, rtol=1e-12, atol=1e-12)


def test_a_constant_gradient_becomes_diagonal_and_its_spectrum_is_the_squared_singular_values():
    ((g,),) = gradients(((5, 4),), 1)
    (p,) = weights(((5, 4),))
    optimizer = SOAP([p], precondition_frequency=1)
    train(optimizer, [p], [[g]] * 60)
    rotated = kronecker_basis.rotate(g, optimizer.basis(p))
    singular = torch.linalg.svdvals(g)
    torch.testing.assert_close(rotated.abs()[:4], torch.diag(singular), rtol=1e-6, atol=1e-6)
    share = 1 - 0.95**60
    torch.testing.assert_close(optimizer.spectrum(p)[1], share * singular**2, rtol=1e-6, atol=1e-9)
    assert optimizer.spectrum(p)[0][-1].abs() < 1e-9


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31))
def test_signs_of_eigenvectors_do_not_matter(seed):
    shapes = ((6, 4), (2, 3, 4))
    params, twins, grads = weights(shapes), weights(shapes), gradients(shapes, 20, seed)
    optimizer, flipped = SOAP(params, precondition_frequency=4), SOAP(twins, precondition_frequency=4)
    train(optimizer, params, grads[:5])
    train(flipped, twins, grads[:5])
    generator = torch.Generator().manual_seed(seed)
    for p in twins:
        state = flipped.state[p]
        for axis in range(p.dim()):
            signs = torch.randint(0, 2, (p.shape[axis],), generator=generator, dtype=torch.float64) * 2 - 1
            state[f"basis_{axis}"] *= signs
            state["exp_avg"] *= signs.reshape([-1 if i == axis else 1 for i in range(p.dim())])  # it is rotated too
    train(optimizer, params, grads[5:])
    train(flipped, twins, grads[5:])
    torch.testing.assert_close(values(params), values(twins), rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"one_sided": True}, {"factored": True}, {"merge_dims": True}])
def test_stacks_and_single_matrices_give_the_same(options, monkeypatch):
    shapes = ((4, 6),) * 3 + ((6, 4),) * 2 + ((2, 3, 4),) * 2 + ((7,), (7,), (3,))
    ours, singly, grads = weights(shapes), weights(shapes), gradients(shapes, 12)
    train(SOAP(ours, precondition_frequency=3, **options), ours, grads)
    monkeypatch.setattr(soap_step, "_STACKED_ON_CPU", 1)
    train(SOAP(singly, precondition_frequency=3, **options), singly, grads)
    torch.testing.assert_close(values(ours), values(singly), rtol=0, atol=1e-6)


def test_gram_matrices_longer_than_a_panel_are_whole():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 7, generator=generator, dtype=torch.float64)
    for axis, size in ((0, 300), (1, 7)):
        gram = torch.eye(size, dtype=torch.float64).repeat(2, 1, 1)
        kronecker_basis.accumulate_gram(gram, x, axis, 0.75)
        unfolded = x if axis == 0 else x.mT
        expected = 0.75 * torch.eye(size) + 0.25 * unfolded @ unfolded.mT
        torch.testing.assert_close(kronecker_basis.symmetric(gram), expected)


def test_lifting_keeps_the_null_space_and_finds_the_rest():
    generator = torch.Generator().manual_seed(0)
    q = orthogonal(6, generator)
    gram = (q[:, :2] * torch.tensor([3.0, 1.0])) @ q[:, :2].T
    basis = q.clone()
    basis[:, :2] = q[:, :2] @ torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]]).double()
    for _ in range(60):
        basis, _ = kronecker_basis.power_iteration(gram, basis, "lift", 1e-8)
    overlap = (q.T @ basis).abs()  # columns of the null space may change places; their moments go with them
    torch.testing.assert_close(overlap[:2, :2], torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(overlap.amax(0), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-8)


def test_lifting_decides_the_first_basis_of_a_null_space():
    (p,), (q,), ((g,), (h,)) = weights(((8, 2),)), weights(((8, 2),)), gradients(((8, 2),), 2)
    ours, other = SOAP([p]), SOAP([q])
    train(ours, [p], [[g]])
    train(other, [q], [[g + 1e-14 * h]])
    torch.testing.assert_close(ours.basis(p)[0].abs(), other.basis(q)[0].abs(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        ours.basis(p)[0] @ ours.spectrum(p)[0].diag() @ ours.basis(p)[0].T, 0.05 * g @ g.T, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("options", [{}, {"max_precond_dim": 1}, {"one_sided": True}])
def test_memory_layout_of_gradients_and_state_does_not_matter(options):
    shapes = ((4, 6), (2, 3, 4, 2))
    ours, strided, grads = weights(shapes), weights(shapes), gradients(shapes, 12)
    a, b = SOAP(ours, precondition_frequency=3, **options), SOAP(strided, precondition_frequency=3, **options)
    train(a, ours, grads)
    for i, step in enumerate(grads):
        for p, g in zip(strided, step, strict=True):
            p.grad = g.mT.contiguous().mT if p.dim() == 2 else g.to(memory_format=torch.channels_last)
        b.step()
        if i == 5:
            state = copy.deepcopy(b.state_dict())
            state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].mT.contiguous().mT
            b.load_state_dict(state)
    torch.testing.assert_close(values(ours), values(strided), rtol=0, atol=1e-6)


def test_factored_matrices_without_bases_stand_beside_vectors():
    shapes = ((6, 4), (5,), (3, 3))
    params, grads = weights(shapes), gradients(shapes, 8)
    oracles = [Oracle(p.detach(), factored=True, limit=1) for p in params]
    train(SOAP(params, factored=True, max_precond_dim=1), params, grads)
    for step in grads:
        for o, g in zip(oracles, step, strict=True):
            o.step(g)
    torch.testing.assert_close(values(params), [o.w for o in oracles], rtol=0, atol=1e-11)


# --- layouts and schedules ---------------------------------------------------------------------------------------


def test_merging_multiplies_neighbours_up_to_the_limit():
    assert merged_shape((4, 3, 2, 2), 4) == (4, 3, 4)
    assert merged_shape((4, 3, 2, 2), 12) == (12, 4)
    assert merged_shape((1, 1), 5) == (1,)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 200))
def test_merging_keeps_the_elements_and_the_limit(shape, limit):
    merged = merged_shape(shape, limit)
    assert math.prod(merged) == math.prod(shape)
    assert all(n <= limit or n in shape for n in merged)


def test_a_convolution_is_trained_as_its_matrix():
    shape, matrix = (4, 3, 2, 2), (12, 4)
    (kernel,), grads = weights((shape,)), gradients((shape,), 25)
    flat = nn.Parameter(kernel.detach().reshape(matrix))
    train(SOAP([kernel], max_precond_dim=12, merge_dims=True), [kernel], grads)
    train(SOAP([flat], max_precond_dim=12), [flat], [[g.reshape(matrix)] for (g,) in grads])
    assert torch.equal(kernel.detach().reshape(matrix), flat.detach())


def test_channels_last_kernels_are_merged_as_channels_first_ones():
    (first,), grads = weights(((4, 3, 2, 2),)), gradients(((4, 3, 2, 2),), 25)
    last = nn.Parameter(first.detach().permute(0, 2, 3, 1).contiguous())
    options = {"max_precond_dim": 12, "merge_dims": True}
    train(SOAP([first], **options), [first], grads)
    train(SOAP([last], data_format="channels_last", **options), [last], [[g.permute(0, 2, 3, 1)] for (g,) in grads])
    torch.testing.assert_close(last.detach(), first.detach().permute(0, 2, 3, 1), rtol=0, atol=1e-10)


def test_one_sided_rotates_the_shorter_axis_of_matrices_only():
    assert tensor_layout((6, 4), 100, one_sided=True).axes == (1,)
    assert tensor_layout((4, 6), 100, one_sided=True).axes == (0,)
    assert tensor_layout((1, 6), 100, one_sided=True).axes == ()
    assert tensor_layout((2, 3, 4), 100, one_sided=True).axes == (0, 1, 2)


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 12))
def test_staggering_leaves_no_step_with_much_more_than_its_share(costs, period):
    phases = staggered_phases(tuple(costs), period)
    load = [sum(c for c, phase in zip(costs, phases, strict=True) if phase == i) for i in range(period)]
    assert sum(load) == sum(costs)
    assert max(load) <= sum(costs) / period + max(costs, default=0)


def test_staggered_refreshes_each_basis_once_a_period_on_different_steps():
    shapes = ((4, 5), (3, 6), (7,))
    params = weights(shapes)
    optimizer = SOAP(params, precondition_frequency=4, refresh="staggered")
    grads = gradients(shapes, 9)
    train(optimizer, params, grads[:1])
    changed = []
    for step in grads[1:]:
        before = [q.clone() for p in params[:2] for q in optimizer.basis(p)]
        train(optimizer, params, [step])
        after = [q for p in params[:2] for q in optimizer.basis(p)]
        changed.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert [sum(step) for step in changed] == [1] * 8
    assert torch.tensor(changed).sum(0).tolist() == [2] * 4


# --- what users of torch rely on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"factored": True, "refresh": "staggered"}])
def test_resumed_training_is_uninterrupted_training(dtype, options):
    params, grads = weights(MATRICES, dtype=dtype), gradients(MATRICES, 45, dtype=dtype)
    optimizer = SOAP(params, lr=0.01, **options)
    train(optimizer, params, grads[:25])
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), values(params)), file)
    train(optimizer, params, grads[25:])
    file.seek(0)
    state, saved = torch.load(file)
    again = [nn.Parameter(w) for w in saved]
    resumed = SOAP(again, lr=1.0)
    resumed.load_state_dict(state)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    assert {v.dtype for s in resumed.state.values() for k, v in s.items() if k != "step"} == {work}
    train(resumed, again, grads[25:])
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_hooks_on_loading_are_heard():
    params = weights(MATRICES)
    optimizer = SOAP(params)
    train(optimizer, params, gradients(MATRICES, 3))
    other = SOAP(weights(MATRICES))

    def zeroed(_, state):
        state = copy.deepcopy(state)
        state["state"][0]["exp_avg"].zero_()
        return state

    other.register_load_state_dict_pre_hook(zeroed)
    other.load_state_dict(optimizer.state_dict())
    assert not other.state[other.param_groups[0]["params"][0]]["exp_avg"].any()
    assert optimizer.state[params[0]]["exp_avg"].any()


def test_a_basis_saved_in_low_precision_is_made_orthogonal():
    params = weights(((8, 8),), dtype=torch.float32)
    optimizer = SOAP(params)
    train(optimizer, params, gradients(((8, 8),), 2, dtype=torch.float32))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["basis_0"] = state["state"][0]["basis_0"].bfloat16()
    optimizer.load_state_dict(state)
    assert kronecker_basis.departure_from_orthogonality(optimizer.basis(params[0])[0]) < 1e-5


def test_low_precision_parameters_follow_the_float32_trajectory():
    shapes = ((6, 4), (5,))
    exact, low = weights(shapes, dtype=torch.float32), weights(shapes, dtype=torch.bfloat16)
    grads = gradients(shapes, 20, dtype=torch.bfloat16)
    train(SOAP(exact, lr=0.02), exact, [[g.float() for g in step] for step in grads])
    train(SOAP(low, lr=0.02), low, grads)
    for a, b in zip(exact, low, strict=True):
        torch.testing.assert_close(a.detach(), b.detach().float(), rtol=0.05, atol=0.05)


def test_parameters_of_several_precisions_share_a_group():
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    mixed = [weights(((3, 3),), dtype=d)[0] for d in dtypes] + [weights(((3,),), dtype=d)[0] for d in dtypes]
    alone = [nn.Parameter(p.detach().clone()) for p in mixed]
    grads = [[g.to(p.dtype) for g, p in zip(s, mixed, strict=True)] for s in gradients([p.shape for p in mixed], 6)]
    train(SOAP(mixed), mixed, grads)
    for i, p in enumerate(alone):
        train(SOAP([p]), [p], [[step[i]] for step in grads])
        assert torch.equal(p, mixed[i])


def test_groups_may_be_edited_and_added_while_training():
    shapes = ((4, 4), (3, 5))
    params, grads = weights(shapes), gradients(shapes, 12)
    oracle = Oracle(params[0].detach(), f=3)
    optimizer = SOAP(params[:1], precondition_frequency=3, null_space="reference")
    train(optimizer, params[:1], [step[:1] for step in grads[:5]])
    optimizer.param_groups[0].update(lr=0.02, betas=(0.8, 0.9), shampoo_beta=0.7, precondition_frequency=2)
    optimizer.add_param_group({"params": params[1:], "lr": 0.0})
    start = params[1].detach().clone()
    train(optimizer, params, grads[5:])
    for i, (g, _) in enumerate(grads):
        if i == 5:
            oracle.o |= {"lr": 0.02, "betas": (0.8, 0.9), "beta": 0.7, "f": 2}
        oracle.step(g)
    torch.testing.assert_close(params[0].detach(), oracle.w, rtol=0, atol=1e-11)
    assert torch.equal(params[1], start)
    assert optimizer.state[params[1]]["step"] == 6


def test_scheduler_sets_the_rate_of_move_and_decay():
    (p,), grads = weights(((4, 4),)), gradients(((4, 4),), 6)
    oracle = Oracle(p.detach(), decay=0.5)
    optimizer = SOAP([p], lr=0.1, weight_decay=0.5, null_space="reference")
    scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
    for t, (g,) in enumerate(grads):
        oracle.o["lr"] = 0.1 / (1 + t)
        oracle.step(g)
        train(optimizer, [p], [[g]])
        scheduler.step()
    torch.testing.assert_close(p.detach(), oracle.w, rtol=0, atol=1e-11)


def test_a_tensor_as_rate_is_read_every_step():
    a, b, grads = weights(MATRICES), weights(MATRICES), gradients(MATRICES, 6)
    rate = torch.tensor(0.01, dtype=torch.float64)
    with_tensor, with_float = SOAP(a, lr=rate), SOAP(b, lr=0.01)
    train(with_tensor, a, grads[:3])
    train(with_float, b, grads[:3])
    rate.fill_(0.5)
    with_float.param_groups[0]["lr"] = 0.5
    train(with_tensor, a, grads[3:])
    train(with_float, b, grads[3:])
    torch.testing.assert_close(values(a), values(b))


def test_closure_and_maximize():
    (p,) = weights(((3, 3),))
    optimizer = SOAP([p], lr=0.3, weight_decay=0.0, maximize=True)

    def closure():
        optimizer.zero_grad()
        loss = -p.square().sum()
        loss.backward()
        return loss

    before = p.detach().clone()
    losses = [optimizer.step(closure).item() for _ in range(40)]
    assert losses[0] == losses[1] == pytest.approx(-before.square().sum().item())
    assert losses[-1] > 0.2 * losses[0]


def test_maximize_leaves_gradients_alone():
    (p,), ((g,), (h,)) = weights(((3, 3),)), gradients(((3, 3),), 2)
    optimizer = SOAP([p], maximize=True)
    train(optimizer, [p], [[g], [h]])
    assert torch.equal(p.grad, h)


def test_grad_scaler_skips_an_overflow_and_otherwise_changes_nothing():
    plain, scaled = weights(((4, 4),), dtype=torch.float32), weights(((4, 4),), dtype=torch.float32)
    a, b = SOAP(plain), SOAP(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i, (g,) in enumerate(gradients(((4, 4),), 6, dtype=torch.float32)):
        b.zero_grad()
        scaler.scale((scaled[0] * g).sum() * (torch.inf if i == 3 else 1)).backward()
        scaler.step(b)
        scaler.update()
        if i != 3:
            train(a, plain, [[g]])
    assert scaler.get_scale() == 2.0**9
    torch.testing.assert_close(values(plain), values(scaled))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"factored": True, "skip_first": False}])
def test_compiled_step_is_the_eager_step_whatever_the_schedule(options):
    torch._dynamo.reset()
    shapes = ((6, 4), (5,))
    a, b, grads = weights(shapes), weights(shapes), gradients(shapes, 6)
    eager, compiled = (SOAP(p, precondition_frequency=2, **options) for p in (a, b))
    graphs = []

    def backend(graph, _):
        graphs.append(sum(node.op == "call_function" or node.op == "call_method" for node in graph.graph.nodes))
        return graph.forward

    step = torch.compile(compiled.step, backend=backend)
    for t, row in enumerate(grads):
        eager.param_groups[0]["lr"] = compiled.param_groups[0]["lr"] = 0.01 / (1 + t)
        train(eager, a, [row])
        for p, g in zip(b, row, strict=True):
            p.grad = g.clone()
        step()
        if t == 1:
            traced = list(graphs)
    assert traced[-1] > 20  # products, moments and Gram matrices are in it
    assert graphs == traced  # and never traced again, though the rate changes and bases are refreshed
    torch.testing.assert_close(values(a), values(b), rtol=0, atol=1e-14)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(dict(eager.state[p]), dict(compiled.state[q]), rtol=1e-12, atol=1e-14)


def test_a_zero_gradient_moves_nothing_but_decay():
    params = weights(MATRICES)
    start = values(params)
    optimizer = SOAP(params, lr=0.1, weight_decay=0.5, factored=True)
    train(optimizer, params, [[torch.zeros_like(p) for p in params]] * 12)
    torch.testing.assert_close(values(params), [w * 0.95**11 for w in start])


def test_parameters_without_gradient_or_elements_are_left_alone():
    a, b = weights(((3, 3), (2, 2)))
    empty = nn.Parameter(torch.zeros(0, 3))
    optimizer = SOAP([a, b, empty])
    a.grad, empty.grad = torch.ones_like(a), torch.zeros(0, 3)
    optimizer.step()
    assert set(optimizer.state) == {a}
    assert optimizer.basis(b) == optimizer.spectrum(b) == []


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    shapes = ((3, 3), (2, 2))
    params = weights(shapes, dtype=torch.float32)
    optimizer = SOAP(params)
    grads = gradients(shapes, 4, dtype=torch.float32)
    train(optimizer, params, grads[:2])
    before, state = values(params), copy.deepcopy(optimizer.state_dict()["state"])
    grads[2][1][0, 0] = value  # in float32 the square of 1e30 is infinite
    with pytest.raises(RuntimeError, match=r"number 1 of its group \(shape \(2, 2\)\) has no finite norm"):
        train(optimizer, params, [grads[2]])
    optimizer.param_groups[0]["nonfinite"] = "skip"
    train(optimizer, params, [grads[2]])
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)
    train(optimizer, params, [grads[3]])
    assert all(p.isfinite().all() and not torch.equal(a, p) for a, p in zip(before, params, strict=True))


def test_sparse_gradients_are_refused_before_anything_changes():
    linear, embedding = nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True)
    optimizer = SOAP([("weight", linear.weight), ("table", embedding.weight)])
    (linear(embedding(torch.tensor([1]))).sum()).backward()
    with pytest.raises(RuntimeError, match=r"neither sparse nor complex gradients, that of parameter 'table'"):
        optimizer.step()
    assert not optimizer.state


def test_complex_gradients_are_refused():
    p = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="is complex"):
        SOAP([p]).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be 0 or more, got -1.0"),
        ({"lr": math.nan}, "lr must be"),
        ({"betas": (1.0, 0.9)}, "betas must be"),
        ({"betas": (0.9, -0.1)}, "betas must be"),
        ({"shampoo_beta": 1.0}, "shampoo_beta must be"),
        ({"eps": -1e-8}, "eps must be"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"precondition_frequency": 0}, "precondition_frequency must be an integer"),
        ({"precondition_frequency": 2.5}, "precondition_frequency must be an integer"),
        ({"max_precond_dim": 0}, "max_precond_dim must be"),
        ({"null_space": "drop"}, "null_space must be one of"),
        ({"data_format": "NCHW"}, "data_format must be one of"),
        ({"refresh": "never"}, "refresh must be one of"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SOAP(weights(((2, 2),)), **options)
    with pytest.raises(ValueError, match=message):
        SOAP([{"params": weights(((2, 2),)), **options}])


def test_a_state_of_another_shape_or_layout_is_refused_before_anything_changes():
    (p,) = weights(((4, 6),))
    optimizer = SOAP([p])
    train(optimizer, [p], gradients(((4, 6),), 3))
    other = SOAP(weights(((4, 5),)), lr=0.5)
    with pytest.raises(ValueError, match=r"number 0 of its group \(shape \(4, 5\)\)"):
        other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.5
    assert not other.state
    for edit in ({"merge_dims": True}, {"one_sided": True}, {"factored": True}, {"max_precond_dim": 5}):
        changed = copy.deepcopy(optimizer)
        changed.param_groups[0].update(edit)
        q = changed.param_groups[0]["params"][0]
        q.grad = torch.ones_like(q)
        with pytest.raises(ValueError, match="cannot change once a parameter has state"):
            changed.step()


# --- data parallel -----------------------------------------------------------------------------------------------


def data_parallel_worker(rank, path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(small_network())
    weights = train_on_share(model, slice(rank, None, 2))
    if rank == 1:
        torch.save(weights, f"{path}/weights.pt")
    dist.destroy_process_group()


def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def train_on_share(model, share):
    optimizer = SOAP(model.parameters(), lr=0.05, precondition_frequency=2, refresh="staggered")
    for (x,) in gradients(((16, 5),), 8, seed=7):
        optimizer.zero_grad()
        model(x[share]).square().mean().backward()
        optimizer.step()
    return values(model.parameters())


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(data_parallel_worker, (str(tmp_path),), nprocs=2)
    alone = train_on_share(small_network(), slice(None))
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), alone, rtol=0, atol=1e-6)
