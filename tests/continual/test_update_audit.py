import copy
import math
from collections import UserList
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.continual import Task, audit_update, grow_head, rehearse
from poise.continual.update_audit import measure as measuring
from poise.continual.update_audit.facts import UNTREATED
from poise.continual.update_audit.report import recovery
from poise.continual.update_audit.rules.head_initialisation import RULE

from ..rules.cases import updates


def blobs(classes, seed, n=40):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat_interleave(n // len(classes))
    return 0.7 * torch.randn(len(y), 6, generator=generator) + 2 * F.one_hot(y, 6), y


OLD = Task(*blobs((0, 1, 2), 0), *blobs((0, 1, 2), 1), "old")
NEW = Task(*blobs((3, 4), 2), *blobs((3, 4), 3), "new")


def trained(rows=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(OLD.x), OLD.y).backward()
        optimizer.step()
    if rows > 3:
        grow_head(model, None, rows - 3)
    return model


def finetune(model, old, new, on_step, lr=0.5, steps=12):
    """A user's own loop, which knows nothing of old data."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for _ in range(steps):
        pick = torch.randint(len(new), (16,))
        optimizer.zero_grad()
        F.cross_entropy(model(new.x[pick]), new.y[pick]).backward()
        optimizer.step()
        scheduler.step()
        on_step()


def tables(report):
    return {block.title: block for block in report.blocks if hasattr(block, "rows")}


@pytest.fixture(scope="module")
def audited():
    model = trained()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    report = audit_update(model, old=OLD, new=NEW, update=finetune, remedies="all", seeds=2, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    return report


def test_a_loop_that_forgets_is_told_what_prevents_it(audited):
    assert audited.verdict == "breaks old data"
    rows = {row[0]: row for row in tables(audited)["Remedies"].rows}
    assert {UNTREATED, "smaller learning rate", "more weight for old data", "averaged weights served"} <= set(rows)
    assert "hidden layers of low rank" in rows
    assert rows["more weight for old data"][2] > rows[UNTREATED][2]
    text = str(audited.to_dict())
    assert "runs of the update (2 seeds" in text
    assert "Changes of the loss are not tried" in text
    assert "Scores during the update" in text
    assert audited.to_html()


def test_the_two_controls_are_always_in_the_table_and_the_rest_is_named():
    report = audit_update(
        trained(), old=OLD, new=NEW, update=finetune, remedies=["serve_average"], seeds=1, progress=False, every=4
    )
    rows = [row[0] for row in tables(report)["Remedies"].rows]
    assert rows == [UNTREATED, "smaller learning rate", "more weight for old data", "averaged weights served"]
    assert "rows of old classes frozen**: Not among" in str(report.to_dict())


def test_plain_rehearsal_is_the_default_and_a_small_drop_is_allowed():
    model = trained(3)
    more = Task(*blobs((0, 1, 2), 7), *blobs((0, 1, 2), 8))

    def gentle(model, old, new, on_step):
        rehearse(model, old, new, on_step, updates=5, lr=1e-5)

    report = audit_update(model, old=OLD, new=more, update=gentle, seeds=1, progress=False)
    assert report.verdict == "within the allowed drop"
    assert report.findings == []
    assert "no classes that the old data do not have" in str(report.to_dict())


def test_a_row_that_takes_over_an_old_class_is_found_before_the_first_update():
    """Features e1 and e2, W = I, a new row 2 e1: the accuracy falls from 1 to 0.5 at update 0."""
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, 0, 0]]))
    x, y = torch.eye(3)[:2].repeat(5, 1), torch.arange(2).repeat(5)
    third = torch.eye(3)[2:].repeat(6, 1), torch.full((6,), 2)

    def small(model, old, new, on_step):
        rehearse(model, old, new, on_step, updates=2, lr=1e-4)

    data = {"old": ((x, y), (x, y)), "new": (third, third)}
    report = audit_update(model, **data, update=small, seeds=1, progress=False)
    assert report.meta["old_before"] == 1
    assert report.findings[0].cause == "head_initialisation"
    assert "from 1 to 0.5 before the first update" in report.findings[0].summary
    rows = {row[0]: row for row in tables(report)["Remedies"].rows}
    assert rows["rows of new classes from their samples"][2] == 1
    assert report.summary.endswith("rows of new classes from their samples.")


def test_any_metric_that_is_a_function():
    def recall_of_class_1(outputs, targets):
        own = targets == 1
        return (outputs.argmax(1)[own] == 1).double().mean() if own.any() else 0.0

    report = audit_update(
        trained(), old=OLD, new=NEW, update=finetune, metric=recall_of_class_1, seeds=1, progress=False, every=6
    )
    assert report.meta["metric"] == "recall_of_class_1"
    assert "recall_of_class_1 on old data falls" in report.summary


def test_ctrl_c_reports_what_is_there(monkeypatch):
    real, calls = measuring._measured, []

    def interrupted(setting, treatment, seed, log):
        calls.append(treatment.label)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(setting, treatment, seed, log)

    monkeypatch.setattr(measuring, "_measured", interrupted)
    report = audit_update(trained(), old=OLD, new=NEW, update=finetune, seeds=3, progress=False)
    assert "was interrupted" in str(report.to_dict())
    assert len(tables(report)["Remedies"].rows) == 2


def test_a_remedy_that_the_loop_does_not_bear_is_named_with_its_error():
    def picky(model, old, new, on_step):
        assert isinstance(model[0], nn.Module)
        _ = model[0].weight.shape  # a low-rank layer has no weight of its own
        finetune(model, old, new, on_step)

    report = audit_update(trained(), old=OLD, new=NEW, update=picky, remedies="all", seeds=1, progress=False, every=6)
    assert "hidden layers of low rank**: The update failed with it: AttributeError" in str(report.to_dict())


def test_strengths_are_those_of_hooks_around_the_step():
    """Half the rate by the audit is half the rate in the loop."""
    model = trained()
    setting = measuring._setting(model, OLD, NEW, finetune, measuring.Metric, F.cross_entropy, None, 1, None, 0)
    setting.metric = lambda outputs, targets: outputs.argmax(-1) == targets
    treated = measuring._run(setting, measuring.LowerLR(0.5), 3)
    setting.update = lambda *args: finetune(*args, lr=0.25)
    native = measuring._run(setting, measuring.Treatment(), 3)
    np.testing.assert_allclose(treated.old, native.old)
    np.testing.assert_allclose(treated.new, native.new)


def test_facts_are_read_as_they_say():
    facts = updates(lifts=(0.29, 0.0, 0.0))
    assert facts.depth == pytest.approx(0.299)
    assert facts.keeps("rows")
    assert facts.cheapest() == "rows"
    assert recovery(facts, facts.untreated[0]) == 2
    stays = updates(minimum=0.9)
    assert recovery(stays, stays.untreated[0]) == 0
    falls = replace(facts.untreated[0], old=np.array([0.9, 0.9, 0.5]))
    assert recovery(facts, falls) == math.inf
    assert RULE.find(facts)[0].probability > 0.9  # by the experiment: the first update lowered nothing
    assert updates(lifts=(0.1, 0, 0)).cheapest() is None


def test_bad_input_is_named():
    model = trained()

    def audit(**changed):
        audit_update(
            **{"model": model, "old": OLD, "new": NEW, "update": finetune, "seeds": 1, "progress": False, **changed}
        )

    with pytest.raises(ValueError, match="linear output layer"):
        audit(model=nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1)))
    with pytest.raises(ValueError, match="old must have held-out data"):
        audit(old=(OLD.x, OLD.y))
    with pytest.raises(TypeError, match="new must be a Task or a pair"):
        audit(new=NEW.x)
    with pytest.raises(ValueError, match="must have training and held-out data"):
        audit(new=((NEW.x, NEW.y), UserList()))
    with pytest.raises(ValueError, match=r"0 to 2, as many as the head '2' has rows, got 0 to 4; widen it"):
        audit(model=trained(3))
    with pytest.raises(ValueError, match="left it as it was and returned another one"):
        audit(update=lambda model, old, new, on_step: copy.deepcopy(model))
    with pytest.raises(ValueError, match=r"must call on_step\(\)"):
        audit(update=lambda model, old, new, on_step: finetune(model, old, new, lambda: None))
    with pytest.raises(TypeError, match="update must be a function"):
        audit(update=3)
    with pytest.raises(TypeError, match="model must be a torch"):
        audit(model=lambda x: x)
    for remedies in ("some", ["lora"], []):
        with pytest.raises(ValueError, match="remedies must be"):
            audit(remedies=remedies)
    with pytest.raises(ValueError, match="seeds and every"):
        audit(seeds=0)
    with pytest.raises(ValueError, match="allowed_drop not negative"):
        audit(allowed_drop=-0.1)
    for wrong in ({"updates": 0}, {"old_weight": 1.5}):
        with pytest.raises(ValueError, match="old_weight in"):
            rehearse(model, OLD, NEW, lambda: None, **wrong)


def test_datasets_of_torch_are_taken():
    pair = torch.utils.data.TensorDataset(OLD.x, OLD.y), torch.utils.data.TensorDataset(OLD.x_test, OLD.y_test)
    report = audit_update(
        trained(), old=pair, new=NEW, update=finetune, remedies=["serve_average"], seeds=1, progress=False, every=12
    )
    assert report.verdict == "breaks old data"
