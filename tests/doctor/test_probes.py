"""Each signal against its closed form or an independent computation in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.probes.logits import LogitProbe, entropy


def steps_of_one_parameter(optimizer_of, gradients, start=1.0, dtype=torch.float32, shape=(4, 4)):
    """Step a single parameter with prescribed gradients."""
    model = nn.Module()
    model.w = nn.Parameter(torch.full(shape, start, dtype=dtype))
    optimizer = optimizer_of([model.w])
    for g in gradients:
        optimizer.zero_grad()
        (model.w.float() * g).sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("k", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("beta2", [0.9, 0.999])
def test_adam_rms_of_a_gradient_that_jumps(k, beta2, watching):
    # v is 1 before; with v after the jump the ratio is k / sqrt(beta2 + (1 - beta2) k^2), bias correction aside.
    warm = 40
    gradients = [1.0] * warm + [k]
    with watching() as watched:
        steps_of_one_parameter(lambda p: torch.optim.Adam(p, lr=0.0, betas=(0.9, beta2)), gradients)
    correction = 1 - beta2 ** len(gradients)
    v = (beta2 * (1 - beta2**warm) + (1 - beta2) * k**2) / correction
    series = watched.record.by_layer("adam_rms")["w"]
    assert series.steps[-1] == warm
    assert series.values[-1] == pytest.approx(k / math.sqrt(v), rel=1e-3)


def test_adam_eps_shrink_and_bimodality_of_a_constant_gradient(watching):
    with watching() as watched:
        steps_of_one_parameter(lambda p: torch.optim.AdamW(p, eps=1e-3), [3e-3] * 20)
    shrink = watched.record.by_layer("adam_eps_shrink")["w"].values[-1]
    assert shrink == pytest.approx(3e-3 / (3e-3 + 1e-3), rel=1e-3)
    assert watched.record.by_layer("adam_bimodality")["w"].values[-1] == 1.0


def test_update_ratio_of_sgd_is_the_step_over_the_norm(watching):
    with watching() as watched:
        steps_of_one_parameter(lambda p: torch.optim.SGD(p, lr=0.1), [0.5], start=2.0)
    assert watched["update_ratio"].values[0] == pytest.approx(0.1 * 0.5 / 2.0, rel=1e-5)
    assert watched.record.by_layer("param_norm")["w"].values[0] == pytest.approx(2.0 * 4, rel=1e-6)
    assert watched["grad_norm"].values[0] == pytest.approx(0.5 * 4, rel=1e-6)


@pytest.mark.parametrize(("step", "lost"), [(2.0**-9, 1.0), (2.0**-7, 0.0)])
def test_updates_below_half_an_ulp_of_bfloat16_are_lost(step, lost, watching):
    # The numbers next to 1 in bfloat16 are 1 - 2^-8 and 1 + 2^-7.
    with watching() as watched:
        steps_of_one_parameter(lambda p: torch.optim.SGD(p, lr=1.0), [-step], dtype=torch.bfloat16)
    assert watched.record.by_layer("update_lost")["w"].values[0] == lost


class Attention(nn.Module):
    def __init__(self, manual):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.manual = manual

    def forward(self, q, k):
        if not self.manual:
            return F.scaled_dot_product_attention(q * self.scale, k, k, is_causal=True)
        logits = (q * self.scale) @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        mask = torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool()
        return logits.masked_fill(mask, -torch.inf).softmax(-1) @ k


@pytest.mark.parametrize("manual", [False, True])
def test_attention_logits_and_entropy(manual, watching):
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    model = Attention(manual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching() as watched:
        for _ in range(2):
            model(q, k).sum().backward()
            optimizer.step()
    logits = (q[0].double() @ k[0].double().transpose(-2, -1)) / math.sqrt(8)
    visible = torch.ones(6, 6).tril().bool()
    expected = logits[:, visible].abs().max().item()
    assert watched.record.by_layer("attention_logit_max")["Attention"].values[-1] == pytest.approx(expected, rel=1e-5)
    p = logits.masked_fill(~visible, -torch.inf).softmax(-1)
    entropy = -(p * p.clamp_min(1e-300).log()).sum(-1)[:, 1:] / torch.arange(2, 7).log()
    measured = watched.record.by_layer("attention_entropy")["Attention"].values[-1]
    assert measured == pytest.approx(entropy.mean(-1).min().item(), rel=1e-5)


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_masked_entries_do_not_count(mask, watching):
    q = torch.zeros(1, 1, 4, 2)
    q[..., 0] = 1.0
    k = q.clone()
    k[:, :, 3] = 1000.0  # nobody may see the last key
    allowed = torch.tensor([True, True, True, False]).expand(4, 4)
    attn_mask = allowed if mask == "bool" else torch.zeros(4, 4).masked_fill(~allowed, -torch.inf)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return F.scaled_dot_product_attention(x, k, k, attn_mask=attn_mask).sum() * self.inner.weight.sum()

    owner = Model()
    with watching() as watched:
        owner(q).backward()
        optimizer.step()
    (series,) = watched.record.by_layer("attention_logit_max").values()
    assert series.values[-1] == pytest.approx(1 / math.sqrt(2), rel=1e-5)


def classify(loss, steps=6, classes=4, make_logits=None, targets=None):
    torch.manual_seed(0)
    model = nn.Linear(5, classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(steps):
        y = torch.randint(classes, (32,)) if targets is None else targets
        logits = model(torch.randn(32, 5))
        optimizer.zero_grad()
        loss(logits if make_logits is None else make_logits(logits), y).backward()
        optimizer.step()
    return model


def test_probabilities_given_as_logits_are_recognised(watching):
    with watching() as watched:
        classify(F.cross_entropy, make_logits=lambda z: z.softmax(-1))
    assert set(watched["logits_are_probabilities"].values) == {1.0}
    with watching() as watched:
        classify(F.cross_entropy, make_logits=lambda z: z.log_softmax(-1))
    assert set(watched["logits_are_probabilities"].values) == {0.0}


def test_label_entropy_and_ignored_share(watching):
    targets = torch.tensor([0] * 8 + [1] * 8 + [-100] * 16)
    with watching() as watched:
        classify(F.cross_entropy, targets=targets)
    assert watched["label_entropy"].values[-1] == pytest.approx(math.log(2) + 1 / 32, rel=1e-6)
    assert watched["label_ignored"].values[-1] == 0.5


def test_permuted_labels_keep_their_purity_and_lose_their_agreement(watching):
    model = nn.Linear(4, 4, bias=False)
    model.weight.data = torch.eye(4) * 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching() as watched:
        for step in range(40):
            classes = torch.randint(4, (16,))
            targets = classes if step < 20 else (classes + 1) % 4
            F.cross_entropy(model(torch.eye(4)[classes]), targets).backward()
            optimizer.step()
    assert watched["label_agreement"].until(19).values[-1] == 1.0
    agreement = watched["label_agreement"]
    assert agreement.values[agreement.steps >= 20][1] < 0.3  # soon: the weights will follow
    assert watched["label_agreement"].values[-1] < 0.1
    assert watched["label_purity"].values[-1] > 0.9


def test_predictions_do_not_seem_to_determine_labels_of_small_batches():
    seen = {}
    sink = SimpleNamespace(observe=lambda name, value: seen.update({name: float(value)}))
    probe, generator = LogitProbe(), torch.Generator().manual_seed(0)
    for _ in range(100):
        logits, labels = torch.randn(2, 10, generator=generator), torch.randint(10, (2,), generator=generator)
        probe.loss_inputs(sink, logits, labels, -100)
    assert seen["label_purity"] < 0.5


def test_dead_units(watching):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-1e3, -1e3, -1e3, 1e3]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching() as watched:
        model(torch.randn(100, 3)).sum().backward()
        optimizer.step()
    assert watched.record.by_layer("dead_units")["1"].values[0] == 0.75


def test_a_unit_that_some_input_wakes_is_not_dead(watching):
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -1e3, -1e3]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching() as watched:
        for i in range(150):  # one input at a time; only every third is positive
            model(torch.full((1, 1), 1.0 if i % 3 == 0 else -1.0)).sum().backward()
            optimizer.step()
    series = watched.record.by_layer("dead_units")["1"]
    assert (series.values[series.steps < 99] == 0).all()
    assert (series.values[series.steps >= 149] == 0.5).all()


def test_several_functional_relus_of_one_module_are_told_apart(watching):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return F.relu(-F.relu(x * self.w) - 1.0)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching() as watched:
        model(torch.ones(100, 2)).sum().backward()
        optimizer.step()
    layers = watched.record.by_layer("dead_units")
    assert {name: s.values[0] for name, s in layers.items()} == {"Net": 0.0, "Net.relu2": 1.0}


def test_scale_of_inputs(watching):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = torch.tensor([[0.0, 255.0], [100.0, 45.0]])
    with watching() as watched:
        for _ in range(2):
            model(batch).sum().backward()
            optimizer.step()
    assert watched["input_mean"].values[-1] == pytest.approx(100.0)
    assert watched["input_std"].values[-1] == pytest.approx(batch.double().std(correction=0).item(), rel=1e-6)
    assert watched["input_absmax"].values[-1] == 255.0
    assert watched["input_nonfinite"].values[-1] == 0.0


def test_gradients_that_are_not_reset_are_stale(watching):
    def train(reset):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(4):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            reset(model, optimizer)

    def in_place(model, _):
        for p in model.parameters():
            p.grad.data.zero_()

    def to_none(model, _):
        for p in model.parameters():
            p.grad = None

    def never(model, optimizer):
        pass

    for reset, stale in ((never, {1.0}), (in_place, {0.0}), (to_none, set()), (lambda m, o: o.zero_grad(), set())):
        with watching() as watched:
            train(reset)
        assert set(watched["stale_gradient"].values) == stale


def test_loss_of_accumulated_micro_batches_and_of_a_scaled_loss(watching):
    w = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.SGD([w], lr=0.0)
    with watching() as watched:
        (w * 3).backward()
        (w * 5).backward()
        optimizer.step()
    assert watched["loss"].values[0] == 8.0
    assert watched["backwards"].values[0] == 2
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watching() as watched:
        optimizer.zero_grad()
        scaler.scale(w * 3).backward()
        scaler.step(optimizer)
        scaler.update()
    assert watched["loss"].values[0] == 6.0
    assert watched["grad_norm"].values[0] == 3.0
    assert watched["amp_scale"].values[0] == 1024.0
    assert watched["amp_skipped"].values[0] == 0.0


def test_a_step_that_the_scaler_skips_is_a_step(watching):
    w = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with watching() as watched:
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(w * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watched["amp_skipped"].values.tolist() == [0.0, 1.0, 0.0]
    assert watched["amp_scale"].values.tolist() == [8.0, 8.0, 4.0]
    assert watched["lr"].steps.tolist() == [0, 1, 2]


def test_gradient_norm_is_the_one_before_clipping(watching):
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([w], lr=0.0)
    with watching() as watched:
        (w.square().sum() / 2).backward()
        nn.utils.clip_grad_norm_([w], 1.0)
        optimizer.step()
    assert watched["grad_norm"].values[0] == pytest.approx(5.0)
    assert watched["clip_max"].values[0] == 1.0
    (layer,) = watched.record.by_layer("grad_norm").values()
    assert layer.values[0] == pytest.approx(5.0, rel=1e-5)


def test_two_optimizers_have_two_timelines(watching):
    a, b = nn.Linear(2, 2), nn.Linear(2, 1)
    first, second = torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.Adam(b.parameters(), lr=0.2)
    with watching() as watched:
        for i in range(6):
            b(a(torch.ones(1, 2))).sum().backward()
            first.step()
            if i % 2:
                second.step()
    assert watched.record.timelines == ["", "opt1/"]
    assert watched["lr"].values.tolist() == [0.1] * 6
    assert watched.record.timeline("opt1/")["lr"].values.tolist() == [0.2] * 3


def test_closure_gradients_and_losses_are_those_of_the_step(watching):
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.LBFGS([w], max_iter=1, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum() / 2
        loss.backward()
        return loss

    with watching() as watched:
        optimizer.step(closure)
        optimizer.step(closure)
    assert watched["loss"].values[0] == 12.5
    assert watched["grad_norm"].values[0] == pytest.approx(5.0)


def test_an_optimizer_within_an_optimizer_is_one_step(watching):
    class Outer(torch.optim.Optimizer):
        def __init__(self, params, inner):
            self.inner = inner
            super().__init__(params, {})

        def step(self, closure=None):
            self.inner.step()

    w = nn.Parameter(torch.tensor(1.0))
    optimizer = Outer([w], torch.optim.SGD([w], lr=0.5))
    with watching() as watched:
        for _ in range(3):
            (w * 1.0).backward()
            optimizer.step()
    assert watched.record.timelines == [""]
    assert watched.record.last_step == 2


def test_names_of_a_wrapped_model_are_the_users(watching):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

        def forward(self, x):
            return self._orig_mod(x)

    model = Wrapper(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching() as watched:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert set(watched.record.by_layer("param_norm")) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}


def test_orphans_are_told_by_name(watching):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.forgotten, self.idle = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.forgotten(self.used(x))

    model = Net()
    old_head = nn.Linear(2, 3)
    parameters = [*model.used.parameters(), *model.idle.parameters(), *old_head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    shape = tuple(old_head.weight.shape)
    del old_head
    with watching() as watched:
        for _ in range(15):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    (event,) = watched.record.events("orphans")
    assert set(event.payload["unoptimized"]) == {"forgotten.weight", "forgotten.bias"}
    assert set(event.payload["no_gradient"]) == {"idle.weight", "idle.bias"}
    assert any(str(shape) in name for name in event.payload["replaced"])


def test_a_replaced_parameter_is_named_by_what_stands_in_its_place(watching):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(3, 5)
    with watching() as watched:
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    (event,) = watched.record.events("orphans")
    assert event.payload["replaced"] == ["1.weight (4, 3)", "1.bias (4,)"]
    assert event.payload["unoptimized"] == ["1.weight", "1.bias"]


def test_a_second_optimizer_tells_when_in_the_run_it_began(watching):
    model = nn.Linear(2, 1)
    with watching() as watched:
        for _ in range(2):
            optimizer = torch.optim.Adam(model.parameters())
            for _ in range(7):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
    assert [e.payload["run_step"] for e in watched.record.events("first_step")] == [0, 7]


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_entropy_of_few_draws_is_nearly_unbiased(classes):
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
    shares /= shares.sum()
    truth = -(shares * shares.log()).sum().item()
    draws = torch.multinomial(shares, 64 * 400, replacement=True, generator=generator).view(400, 64)
    counts = F.one_hot(draws, classes).sum(1).float()
    plain = torch.stack([torch.special.entr(c / c.sum()).sum() for c in counts]).mean().item()
    estimate = torch.stack([entropy(c) for c in counts]).mean().item()
    assert abs(estimate - truth) < 0.5 * (truth - plain)


def test_forward_order_of_the_parameters(watching):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(2, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.first(x))

    model = Backwards()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching() as watched:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    (event,) = watched.record.events("model")
    assert event.payload["order"] == ["first.weight", "first.bias", "last.weight", "last.bias"]


def test_checkpoints_are_noticed(watching, tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "nested": {"optim": optimizer.state_dict()}}, tmp_path / "c.pt")
    with watching() as watched:
        model.load_state_dict(torch.load(tmp_path / "c.pt")["model"])
        fresh = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        fresh.step()
    assert [e.payload["has_optimizer_state"] for e in watched.record.events("torch_load")] == [True]
    assert [e.payload["what"] for e in watched.record.events("load_state_dict")] == ["model"]
    (first,) = watched.record.events("first_step")
    assert first.payload["state_empty"]
    assert first.payload["adaptive"]


def test_evaluation_in_training_mode_is_noticed(watching):
    def train(modes):
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model.train()
            F.cross_entropy(model(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
            optimizer.step()
            model.train(modes)
            with torch.no_grad():
                F.cross_entropy(model(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1]))

    with watching() as watched:
        train(True)
    (event,) = watched.record.events("eval_in_train_mode")
    assert event.payload["modules"] == ["1"]
    with watching() as watched:
        train(False)
    assert watched.record.events("eval_in_train_mode") == []


def test_training_in_eval_mode_is_measured(watching):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching() as watched:
        for _ in range(3):
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
    assert set(watched["eval_mode"].values) == {1.0}


def test_softmax_collapse_begins_where_the_second_class_is_absorbed(watching):
    # 1 + x == 1 in float32 for x <= 2^-24, that is below a gap of 24 log 2 = 16.6355; in float64 at 53 log 2 = 36.7.
    rows = torch.tensor([[0.0, -16.63], [0.0, -16.64], [-16.64, 0.0], [0.0, -30.0]])
    for dtype, collapsed, free in ((torch.float32, 0.75, 0.5), (torch.float64, 0.0, 0.0)):
        with watching() as watched:
            classify(F.cross_entropy, 2, 2, lambda z, dtype=dtype: 0 * z.sum() + rows.to(dtype), torch.zeros(4).long())
        assert watched["softmax_collapse"].values[-1] == collapsed
        assert watched["zero_losses"].values[-1] == free  # the third row's loss is 16.64, not zero


def test_ignored_targets_have_no_zero_losses(watching):
    rows, targets = torch.tensor([[50.0, 0.0], [0.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 0, -100])
    with watching() as watched:
        classify(F.cross_entropy, 2, 2, lambda z: 0 * z.sum() + rows, targets)
    assert watched["zero_losses"].values[-1] == 0.5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_weight_before_a_norm_is_seen_to_be_scale_invariant(momentum, watching):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, eps=1e-12)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=momentum)
    norms, cosines = [], []
    with watching() as watched:
        for _ in range(8):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(32, 6).double()), torch.randint(3, (32,))).backward()
            norms.append(float(model[0].weight.detach().norm()))
            head = model[3].weight
            cosines.append(-F.cosine_similarity(head.detach().flatten(), head.grad.flatten(), dim=0).item())
            optimizer.step()
    shares = watched.record.by_layer("radial_alignment")
    assert shares["0.weight"].values.max() < 1e-6
    assert shares["3.weight"].values.min() > 1e-3
    (rate,) = watched.record.by_layer("effective_lr").items()
    assert rate[0] == "0.weight"
    assert list(rate[1].steps) == list(range(2, 8))
    assert rate[1].values == pytest.approx([0.3 / n**2 for n in norms[2:]], rel=1e-12)
    aligned = watched.record.by_layer("loss_scaling_alignment")
    assert list(aligned) == ["3.weight"]
    assert aligned["3.weight"].values == pytest.approx(cosines, rel=1e-6)  # recorded in float32


def test_the_effective_rate_of_adam_falls_with_the_norm_and_not_its_square(watching):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8, eps=1e-12), nn.Linear(8, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watching() as watched:
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(32, 6).double()), torch.randint(3, (32,))).backward()
            norm = float(model[0].weight.detach().norm())
            optimizer.step()
    assert watched.record.by_layer("effective_lr")["0.weight"].values[-1] == pytest.approx(0.01 / norm, rel=1e-12)
