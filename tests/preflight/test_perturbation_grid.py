import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from poise.preflight import perturbation_grid
from poise.preflight.perturbation_audit.recipe import Perturbation, Recipe, final_loss, scale_weights

G = torch.Generator().manual_seed(0)
INPUTS = torch.randn(96, 4, generator=G)
DATA = TensorDataset(INPUTS, INPUTS[:, :3].argmax(1))


def loader():
    return DataLoader(DATA, 16, shuffle=True)


def net():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def recipe(make_model=net, steps=12, warmup=4, lr=1e-2, clip=1.0, optimizer=torch.optim.AdamW):
    return Recipe(make_model, loader, F.cross_entropy, optimizer, lr, steps, warmup, clip)


def row(report, condition):
    return next(row for row in report.blocks[0].rows if row[0] == condition)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", Perturbation()),
        ("lr*5", Perturbation(lr=5)),
        ("init*0.1, no_warmup", Perturbation(init=0.1, warmup=False)),
        ("lr*2e-1,init*3", Perturbation(lr=0.2, init=3)),
    ],
)
def test_conditions_are_read(text, expected):
    assert Perturbation.parse(text) == expected


def test_a_run_is_the_loop_that_it_says():
    losses = recipe().train("lr*3, init*0.5", seed=7)
    torch.manual_seed(7)
    model = net()
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.data *= 0.5
    optimizer = torch.optim.AdamW(model.parameters(), 1.0)
    torch.manual_seed(7)
    batches = [*loader(), *loader()]
    for step, (x, y) in enumerate(batches):
        shape = step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 8))
        optimizer.param_groups[0]["lr"] = 3e-2 * shape
        loss = F.cross_entropy(model(x), y)
        assert loss.item() == pytest.approx(losses[step], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert len(losses) == len(batches) == 12


def test_same_seed_same_run_and_the_callers_state_is_untouched():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (recipe().train("base", seed) for seed in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_a_seed_do_not_depend_on_the_model():
    seen = {}

    class Spy(nn.Linear):
        def forward(self, x):
            seen.setdefault(self.out_features, []).append(x.clone())
            return super().forward(x)[:, :3]

    for width in (3, 9):
        recipe(partial(Spy, 4, width)).train("base", 0)
    assert all(torch.equal(a, b) for a, b in zip(seen[3], seen[9], strict=True))


def test_only_matrices_are_scaled_and_shared_ones_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    frozen = nn.Linear(4, 4).requires_grad_(False)
    model.append(frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scale_weights(model, 0.1)
    for name, p in model.named_parameters():
        factor = 0.1 if p.ndim == 2 and p.requires_grad else 1
        torch.testing.assert_close(p.detach(), factor * before[name])


def point():
    made = nn.Linear(2, 1, bias=False)
    nn.init.ones_(made.weight)
    return made


def parabola(model, batch):
    return model.weight.square().sum() / 2


def test_what_survives_and_what_does_not():
    # Gradient descent on a parabola of curvature 1 is stable below lr 2.
    report = perturbation_grid(
        point,
        lambda: [0] * 20,
        parabola,
        ("base", "lr*2", "lr*20", "init*0.1", "lr*0.001"),
        seeds=2,
        optimizer=torch.optim.SGD,
        lr=0.5,
        warmup=0,
        clip=None,
    )
    assert [row(report, c)[-1] for c in report.meta["conditions"]] == [
        "trains",
        "trains",
        "fails on 2 of 2 seeds",
        "trains",
        "fails on 2 of 2 seeds",
    ]
    assert report.verdict == "fails under lr*20, lr*0.001"
    # A higher rate and a smaller start come nearer to the minimum at zero.
    assert report.summary.endswith("lr*2, init*0.1 trains. Lower than the base on every seed: lr*2, init*0.1.")
    assert {f.severity for f in report.findings} == {"warning"}
    assert len(report.findings) == 2


def test_a_run_that_diverges_is_a_gap_in_the_table_and_fails():
    report = perturbation_grid(
        point,
        lambda: [0] * 20,
        parabola,
        ("base", "lr*1e30"),
        seeds=2,
        optimizer=torch.optim.SGD,
        lr=0.5,
        clip=None,
    )
    assert row(report, "lr*1e30")[1:4] == [None] * 3
    assert row(report, "lr*1e30")[-1] == "fails on 2 of 2 seeds"
    assert row(report, "base")[-1] == "trains"
    assert "Final losses" in report.to_html()


def test_a_base_that_does_not_learn_is_said_first():
    report = perturbation_grid(net, loader, conditions=("base", "lr*2"), seeds=1, lr=1e-12, steps=40)
    assert report.summary.startswith("The base itself fails")
    assert [f.severity for f in report.findings] == ["error", "warning"]


def test_final_loss_is_the_mean_of_the_last_quarter():
    assert final_loss(np.arange(80.0)) == np.arange(60, 80).mean()
    assert final_loss(np.array([3.0])) == 3
    assert math.isnan(final_loss(np.array([1.0, math.nan])))


def test_progress_and_steps():
    told = []
    perturbation_grid(
        net, loader, conditions=("base", "lr*2"), seeds=(3, 4), steps=7, n_jobs=1, progress=lambda *a: told.append(a)
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_default_conditions_and_dict_batches():
    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    batches = [{"x": x, "y": y} for x, y in DataLoader(DATA, 16)]
    report = perturbation_grid(net, lambda: batches, loss, seeds=1, lr=0.1, steps=30)
    assert report.meta["conditions"] == ["base", "lr*5", "init*0.1", "no_warmup"]
    assert report.verdict == "trains under all conditions"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ("base", "lr+5")}, "lr+5"),
        ({"conditions": ("base", "lr*-1")}, "positive factors"),
        ({"conditions": ("base", "lr*x")}, "positive factors"),
        ({"conditions": ("lr*5",)}, "include 'base'"),
        ({"conditions": ("base", "base")}, "distinct"),
        ({"conditions": "base"}, "sequence of texts"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"warmup": 9, "steps": 9}, "warmup"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_bad_input_is_named(settings, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        perturbation_grid(net, loader, **settings)


def test_a_loader_without_length_or_batches_is_refused():
    with pytest.raises(ValueError, match="has no length"):
        perturbation_grid(net, lambda: iter([]))
    with pytest.raises(ValueError, match="empty loader"):
        perturbation_grid(net, list, steps=3)
