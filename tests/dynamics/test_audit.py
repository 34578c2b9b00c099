import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from poise.curvature import Hessian, Supervised, as_objective
from poise.dynamics import audit, critical_lr, edge
from poise.dynamics.edge_of_stability.largest_stable_lr import largest_stable_lr
from poise.dynamics.edge_of_stability.local_point import local_point
from poise.dynamics.sgd_noise.example_sample import two_samples
from poise.dynamics.training_audit.effort import affordable_effort
from poise.report import Report


def regression(n=24, columns=3, noise=0.0):
    """Linear regression without noise, at its solution: Hessian 2 X^T X / n."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, columns, generator=generator, dtype=torch.float64)
    model = nn.Linear(columns, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.ones(1, columns))
    y = model(x).detach() + noise * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    sharpness = float(torch.linalg.eigvalsh(2 * x.T @ x / n)[-1])
    return model, (x, y), sharpness


def sgd(model, lr, **settings):
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


def rows(report, title):
    (table,) = [b for b in report.blocks if b.kind == "table" and b.title == title]
    return {row[0]: row[1:] for row in table.rows}


def causes(report):
    return [finding.cause for finding in report.findings]


def text(report, title):
    return next(b.markdown for b in report.blocks if b.kind == "text" and b.title == title)


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_linear_regression_in_closed_form(share):
    model, data, sharpness = regression()
    report = audit(model, nn.MSELoss(), data, sgd(model, share * 2 / sharpness), batch_size=24)
    measured = rows(report, "Sharpness and edge")
    assert measured["Sharpness of the loss"][0] == pytest.approx(sharpness, rel=1e-6)
    assert measured["Fraction of the edge"][0] == pytest.approx(share, rel=1e-6)
    assert measured["Fraction of the edge"][1] <= share * (1 + 1e-9)
    assert measured["Fraction of the edge"][2] >= share * (1 - 1e-9)
    limits = rows(report, "Largest stable learning rates")
    assert limits["This SGD, full batches"][0] == pytest.approx(2 / sharpness, rel=1e-6)
    assert limits["Gradient descent, full batches"][0] == pytest.approx(2 / sharpness, rel=1e-6)
    verdict, found = {
        0.5: ("below the edge", []),
        1.0: ("at the edge", ["at_edge_of_stability"]),
        1.5: ("above the edge", ["above_edge_of_stability"]),
    }[share]
    assert report.verdict == verdict
    assert causes(report) == found


def test_noise_lowers_the_limit_to_the_exact_one():
    model, data, sharpness = regression()
    exact = critical_lr(model, nn.MSELoss(), data, batch_size=2, sampling="without")
    report = audit(model, nn.MSELoss(), data, sgd(model, 0.9 * exact), batch_size=2)
    assert rows(report, "Largest stable learning rates")["SGD, batches of 2"]
    table = next(b for b in report.blocks if b.kind == "table" and b.title == "Largest stable learning rates")
    assert table.rows[2][1] == pytest.approx(exact, rel=1e-5)
    assert exact < 2 / sharpness
    assert "noise lowers it to" in report.summary
    assert "exact, in mean square" in report.summary
    assert causes(report) == []
    between = (exact * 2 / sharpness) ** 0.5
    report = audit(model, nn.MSELoss(), data, sgd(model, between), batch_size=2)
    assert causes(report) == ["unstable_with_batch_noise"]
    assert "are stable" in report.findings[0].summary
    assert report.verdict == "below the edge, unstable with batch noise"
    assert f"batches of 2, noise lowers it to {exact:.4g}" in report.summary


def test_it_says_which_batch_is_the_smallest():
    model, data, _ = regression()
    exact = critical_lr(model, nn.MSELoss(), data, batch_size=4, sampling="without")
    report = audit(model, nn.MSELoss(), data, sgd(model, exact * (1 - 1e-6)), batch_size=24)
    assert "The smallest stable batch size at this learning rate is 4." in text(report, "Batch-noise stability")


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({"momentum": 0.9}, 1.9), ({"momentum": 0.5, "nesterov": True}, 1.5 / 2.0)],
)
def test_momentum_moves_the_limit(settings, factor):
    model, data, sharpness = regression()
    report = audit(model, nn.MSELoss(), data, sgd(model, 0.01, **settings), batch_size=24)
    limit = rows(report, "Largest stable learning rates")["This SGD, full batches"][0]
    assert limit == pytest.approx(factor * 2 / sharpness, rel=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_largest_stable_lr_puts_the_optimizer_on_its_edge(kind):
    settings = {"weight_decay": 0.3, "lr": 0.1}
    optimizer = kind([{"params": [nn.Parameter(torch.ones(2))]}], **settings)
    lr = largest_stable_lr(optimizer, 7.0)
    assert edge(kind([nn.Parameter(torch.ones(2))], **{**settings, "lr": lr})) == pytest.approx(7.0)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_no_curvature_bears_any_lr():
    assert largest_stable_lr(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), 0.0) == math.inf


def test_adam_is_judged_by_the_preconditioned_curvature():
    model, (x, y), _ = regression(noise=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    state = optimizer.state[model.weight]
    scale = (1 - 0.9**5) * ((state["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8)
    root = scale.flatten().rsqrt()
    seen = float(torch.linalg.eigvalsh(root[:, None] * (2 * x.T @ x / len(x)) * root)[-1])
    report = audit(model, nn.MSELoss(), (x, y), optimizer, batch_size=24)
    assert rows(report, "Sharpness and edge")["Sharpness preconditioned by Adam"][0] == pytest.approx(seen, rel=1e-6)
    assert rows(report, "Sharpness and edge")["Fraction of the edge"][0] == pytest.approx(seen * 0.01 / 38, rel=1e-6)
    assert "frozen preconditioner" in text(report, "Where this analysis does not apply")
    assert "For SGD without momentum" not in report.summary  # a batch holds all examples


def test_the_model_and_the_optimizer_are_left_alone():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    data = torch.randn(12, 4), torch.randint(2, (12,))
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    random_state = torch.get_rng_state()
    report = audit(model, nn.CrossEntropyLoss(), data, optimizer, batch_size=4)
    after = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    # BatchNorm in train mode mixes examples: no noise analysis, and it says why.
    assert text(report, "Batch-noise stability").startswith("Not available:")


def test_dict_batches_and_loaders_agree_with_a_pair():
    model, (x, y), _ = regression()
    optimizer = sgd(model, 0.1)
    pair = audit(model, nn.MSELoss(), (x, y), optimizer, batch_size=4)
    supervised = Supervised(nn.MSELoss(), inputs=lambda batch: batch["x"], targets="y")
    mapping = audit(model, supervised, {"x": x, "y": y}, optimizer, batch_size=4)
    ragged = list(zip(x.split(7), y.split(7), strict=True))
    loader = audit(model, nn.MSELoss(), ragged, optimizer, batch_size=4)
    assert mapping.to_dict() == pair.to_dict()
    for title in ("Sharpness and edge", "Largest stable learning rates"):
        for name, (value, *_) in rows(pair, title).items():
            assert rows(loader, title)[name][0] == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_a_function_of_model_and_batch_is_audited_without_noise():
    model, data, sharpness = regression()

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    report = audit(model, loss_fn, data, sgd(model, 0.1), batch_size=4)
    assert rows(report, "Sharpness and edge")["Sharpness of the loss"][0] == pytest.approx(sharpness, rel=1e-6)
    assert "outputs and the loss apart" in text(report, "Batch-noise stability")
    assert "not known" in report.summary


def test_it_says_where_it_does_not_apply():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    data = torch.randn(16, 4), torch.randn(16, 1)
    limits = text(
        audit(model, nn.MSELoss(), data, sgd(model, 0.01), batch_size=4), "Where this analysis does not apply"
    )
    for words in (
        "Not at rest",
        "Not an interpolating minimum",
        "bends where Relu switches",
        "Mean square against a typical run",
    ):
        assert words in limits
    smooth, data, _ = regression()
    limits = text(
        audit(smooth, nn.MSELoss(), data, sgd(smooth, 0.01), batch_size=24), "Where this analysis does not apply"
    )
    for words in ("At rest", "It fits", "Smooth"):
        assert words in limits
    assert "Mean square" not in limits


def test_a_saddle_without_upward_curvature_has_no_limit():
    model = nn.Linear(2, 1, bias=False)

    def hill(model, batch):
        return -model(batch).square().mean()

    report = audit(model, hill, torch.eye(2), sgd(model, 0.1), batch_size=2)
    assert report.summary.startswith("No direction is curved upwards")
    assert report.verdict == "below the edge"


def test_frozen_parameters_and_those_of_no_optimizer_do_not_count():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double()
    data = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    top = torch.linalg.eigvalsh(Hessian(model, nn.MSELoss(), data, ["1"]).to_dense())[-1]
    report = audit(model, nn.MSELoss(), data, sgd(model[1], 0.1), batch_size=8)
    assert report.meta["parameters"] == 4
    assert rows(report, "Sharpness and edge")["Sharpness of the loss"][0] == pytest.approx(float(top), rel=1e-6)


def medium():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 3))
    data = [(torch.randn(100, 20), torch.randint(3, (100,))) for _ in range(5)]
    return model, data


def test_a_sample_is_said_to_be_one_and_gives_the_same_twice():
    model, data = medium()
    first, second = (
        audit(model, nn.CrossEntropyLoss(), data, sgd(model, 0.1), batch_size=10, examples=128, seed=4).to_dict()
        for _ in range(2)
    )
    assert first == second
    report = Report.from_dict(first)
    assert report.meta["examples_used"] == 128
    assert "128 of 500 examples were used" in text(report, "What was measured")
    assert "are bounds" in text(report, "What was measured")
    assert "other examples" in rows(report, "Sharpness and edge")["Sharpness of the loss"][3]


def test_little_time_makes_the_audit_smaller():
    model, data = medium()
    objective = as_objective(nn.CrossEntropyLoss())
    efforts = [
        affordable_effort(model, objective, data, None, seconds, None, torch.Generator().manual_seed(0))
        for seconds in (1e-6, 1e6)
    ]
    assert [effort.examples for effort in efforts] == [64, 500]
    assert efforts[0].products < efforts[1].products
    report = audit(model, nn.CrossEntropyLoss(), data, sgd(model, 0.1), batch_size=10, seconds=1e-6)
    assert report.meta["examples_used"] == 64


def test_samples_are_disjoint_and_complete():
    batches = [(torch.arange(a, b)[:, None].float(), torch.zeros(b - a, 1)) for a, b in [(0, 70), (70, 75), (75, 120)]]
    objective = as_objective(nn.MSELoss())
    first, second = two_samples(objective, batches, 50, torch.Generator().manual_seed(0))
    seen = [np.concatenate([x.flatten().numpy() for x, _ in part]) for part in (first, second)]
    assert [len(part) for part in seen] == [50, 50]
    assert len(np.unique(np.concatenate(seen))) == 100
    everything, nothing = two_samples(objective, batches, 120, torch.Generator().manual_seed(0))
    assert (len(everything), nothing) == (3, [])


def test_local_point_of_a_parabola():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(3.0)
    data = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    point = local_point(model, nn.MSELoss(), data)  # w^2 at w = 3
    assert (point.loss, point.grad_norm, point.kinks) == (9.0, 6.0, ())
    assert point.gain(2.0) == 9.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": []}, "at least one batch"),
        ({"data": (torch.zeros(0, 3), torch.zeros(0, 1))}, "batch 0 is empty"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to"),
        ({"batch_size": 25}, "batch_size must be a whole number from 1 to the number of examples 24, got 25"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"examples": 0}, "examples must be from 1"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)}, "optimizer must hold parameters"),
    ],
)
def test_bad_input(change, message):
    model, data, _ = regression()
    arguments = {"data": data, "optimizer": sgd(model, 0.1), "batch_size": 4, **change}
    with pytest.raises(ValueError, match=message):
        audit(model, nn.MSELoss(), **arguments)


def test_bad_optimizers():
    model, data, _ = regression()
    with pytest.raises(TypeError, match="optimizer must be a torch"):
        audit(model, nn.MSELoss(), data, "sgd", 4)
    with pytest.raises(TypeError, match="LBFGS"):
        audit(model, nn.MSELoss(), data, torch.optim.LBFGS(model.parameters()), 4)
    with pytest.raises(ValueError, match="after its first step"):
        audit(model, nn.MSELoss(), data, torch.optim.Adam(model.parameters()), 4)


def test_chance_in_the_forward_pass_is_refused():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    data = torch.randn(8, 3), torch.randn(8, 1)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        audit(model, nn.MSELoss(), data, sgd(model, 0.1), 4)
