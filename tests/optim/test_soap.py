"""SOAP against the paper's equations in float64, and against what must hold of its trajectories."""

import math

import pytest
import torch
from torch import nn

from poise.optim import SOAP

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
    ({"precondition_frequency": 3, "shampoo_beta": 0.7, "betas": (0.9, 0.99)}, {"f": 3, "beta": 0.7, "betas": (0.9, 0.99)}),
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
