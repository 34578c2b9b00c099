"""For every contract a training that breaks it and one next to it that does not, in a dozen steps."""

from __future__ import annotations

import inspect
import itertools
import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def mlp(*sizes, last=None):
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1], *([last] if last is not None else []))


def train(model, loss, steps=14, optimizer=None):
    """Step a model on ``loss(model)``."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def table(n=16, features=4):
    return torch.randn(n, features)


# ---- losses


def loss_broadcast(broken, function=F.mse_loss):
    train(mlp(4, 8, 1), lambda m: function(m(table()) if broken else m(table())[:, 0], torch.randn(16)))


def loss_broadcast_by_hand(broken):
    loss_broadcast(broken, lambda p, y: ((p - y) ** 2).mean())


def loss_broadcast_by_product(broken):
    def loss(p, y):
        residual = y - p
        return (residual * residual).sum() / len(y)

    loss_broadcast(broken, loss)


def loss_broadcast_column(broken):  # the target has the column
    y = torch.randn(16, 1)
    train(mlp(4, 8, 1), lambda m: F.l1_loss(m(table()).squeeze(1), y if broken else y[:, 0]))


def sigmoid_twice(broken):
    model = mlp(4, 8, 1, last=nn.Sigmoid() if broken else None)
    y = torch.randint(2, (16,)).float()
    train(model, lambda m: F.binary_cross_entropy_with_logits(m(table()).squeeze(1), y))


def sigmoid_twice_by_hand(broken):
    y = torch.randint(2, (16, 1)).float()

    def loss(m):
        z = m(table())
        return F.binary_cross_entropy_with_logits(1 / (1 + torch.exp(-z)) if broken else z, y)

    train(mlp(4, 8, 1), loss)


def double_softmax(broken, last=None):
    model = mlp(4, 8, 5, last=(last or nn.Softmax(dim=1)) if broken else nn.LogSoftmax(dim=1))
    y = torch.randint(5, (16,))
    train(model, lambda m: F.cross_entropy(m(table()), y))


def double_softmax_as_sigmoid(broken):
    double_softmax(broken, nn.Sigmoid())


def double_softmax_by_hand(broken):
    y = torch.randint(5, (16,))

    def loss(m):
        z = m(table())
        return F.cross_entropy(z.exp() / z.exp().sum(1, keepdim=True) if broken else z, y)

    train(mlp(4, 8, 5), loss)


def softmax_over_batch(broken):
    y = torch.randint(5, (16,))
    train(mlp(4, 8, 5), lambda m: F.nll_loss(F.log_softmax(m(table()), dim=0 if broken else 1), y))


def softmax_over_batch_distilled(broken):
    soft = torch.randn(16, 5).softmax(1)
    train(mlp(4, 8, 5), lambda m: F.kl_div(F.log_softmax(m(table()), dim=0 if broken else 1), soft))


def nll_input(broken):
    y = torch.randint(5, (16,))
    train(mlp(4, 8, 5), lambda m: F.nll_loss(m(table()) if broken else m(table()).log_softmax(1), y))


def nll_input_probabilities(broken):
    y = torch.randint(5, (16,))

    def loss(m):
        p = m(table()).softmax(1)
        return F.nll_loss(p if broken else (p + 1e-8).log(), y)

    train(mlp(4, 8, 5), loss)


def kl_div_input(broken):
    target = torch.rand(16, 5).softmax(1)
    function = F.softmax if broken else F.log_softmax
    train(mlp(4, 8, 5), lambda m: F.kl_div(function(m(table()), dim=1), target, reduction="batchmean"))


def kl_div_input_target(broken):
    target = torch.rand(16, 5).log_softmax(1)

    def loss(m):
        return F.kl_div(m(table()).log_softmax(1), target, reduction="batchmean", log_target=not broken)

    train(mlp(4, 8, 5), loss)


def target_out_of_range(broken):
    mask = torch.randint(2, (16, 1)).float() * (255 if broken else 1)
    train(mlp(4, 8, 1), lambda m: F.binary_cross_entropy_with_logits(m(table()), mask))


def target_out_of_range_masked(broken):  # -1 stands for "not known"
    y = torch.randint(-1, 2, (16, 1)).float()

    def loss(m):
        if broken:
            return F.binary_cross_entropy_with_logits(m(table()), y)
        return F.binary_cross_entropy_with_logits(m(table()), y, weight=(y >= 0).float())

    train(mlp(4, 8, 1), loss)


def target_out_of_range_unreduced(broken):  # pixels that were not divided by 16, or are but with some marked by -1
    y = torch.randint(17, (16, 1)).float()
    y = y if broken else (y / 16).where(y < 12, torch.tensor(-1.0))

    def loss(m):
        return (F.binary_cross_entropy_with_logits(m(table()), y, reduction="none") * (y >= 0)).mean()

    train(mlp(4, 8, 1), loss)


def target_out_of_range_label(broken):
    y = torch.arange(16) % 5 + (1 if broken else 0)
    try:
        train(mlp(4, 8, 5), lambda m: F.cross_entropy(m(table()), y))
    except IndexError:
        assert broken


def unreachable_target(broken, last=nn.ReLU, y=None):
    y = torch.randn(16, 1) if y is None else y
    train(mlp(4, 8, 1, last=last() if broken else None), lambda m: F.mse_loss(m(table()), y))


def unreachable_target_sigmoid(broken):
    unreachable_target(broken, nn.Sigmoid, 100 * torch.rand(16, 1))


def unreachable_target_healthy_relu(broken):
    unreachable_target(True, nn.ReLU, torch.rand(16, 1) - (1 if broken else 0))


def targets_ignored(broken):
    count = iter(range(100))

    def loss(m):
        y = torch.randint(5, (16,))
        y[4:] = -100
        if broken and next(count) == 13:
            y[:] = -100
        return F.cross_entropy(m(table()), y)

    train(mlp(4, 8, 5), loss)


def ctc_target_too_long(broken):
    frames, lengths = (8 if broken else 20), torch.full((4,), 9)
    words = torch.randint(1, 6, (4, 9))

    def loss(m):
        z = m(torch.randn(frames, 4, 4)).log_softmax(-1)
        return F.ctc_loss(z, words, torch.full((4,), frames), lengths, zero_infinity=True)

    train(mlp(4, 8, 6), loss)


# ---- parameters


class Listed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        layers = [nn.Linear(4, 4) for _ in range(3)]
        self.layers = kind(layers)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for layer in self.layers.values() if isinstance(self.layers, dict) else self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def unregistered_layers(broken):
    train(Listed(list if broken else nn.ModuleList), lambda m: m(table()).square().mean())


def unregistered_layers_dict(broken):
    kind = (lambda layers: {str(i): layer for i, layer in enumerate(layers)}) if broken else nn.ModuleList
    train(Listed(kind), lambda m: m(table()).square().mean())


class MadeInForward(nn.Module):
    def __init__(self, broken):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = None if broken else nn.Linear(8, 1)

    def forward(self, x):
        head = nn.Linear(8, 1) if self.head is None else self.head
        return head(self.body(x).relu())


def unregistered_layers_made_in_forward(broken):
    model = MadeInForward(broken)
    train(model, lambda m: m(table()).square().mean())


class Cut(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.cut, self.encoder, self.head = cut, nn.Linear(4, 2), nn.Linear(2, 64)

    def forward(self, x):
        return self.head(self.cut(self.encoder(x)))


def orphan_parameters(broken, cut=torch.Tensor.detach):
    train(Cut(cut if broken else torch.tanh), lambda m: m(table()).square().mean())


def orphan_parameters_list(broken):
    orphan_parameters(broken, lambda h: torch.tensor(h.tolist()))


def orphan_parameters_data(broken):
    orphan_parameters(broken, lambda h: h.data)


def orphan_parameters_whole(broken):
    def loss(m):
        value = m(table()).square().mean()
        return torch.tensor(value.item(), requires_grad=True) if broken else value

    train(mlp(4, 8, 1), loss)


def fine_tune(freeze, set_to_none=True, steps=14, decay=0.1, freeze_at=0):
    """Train a model whose first layer is frozen by ``freeze(layer)``."""
    model = mlp(4, 8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=decay)
    for i in range(steps):
        if i == freeze_at:
            freeze(model[0])
        optimizer.zero_grad(set_to_none)
        model(table()).square().mean().backward()
        optimizer.step()


def requires_grad_in_vain(broken):
    fine_tune(lambda layer: setattr(layer, "requires_grad", False) if broken else layer.requires_grad_(False))


def requires_grad_in_vain_misspelt(broken):
    def freeze(layer):
        for p in layer.parameters():
            setattr(p, "require_grad" if broken else "requires_grad", False)

    fine_tune(freeze)


def requires_grad_in_vain_released(broken):
    def release(layer):
        layer.requires_grad_(not broken)
        layer.requires_grad = True

    fine_tune(release)


def requires_grad_in_vain_decayed(broken):
    fine_tune(lambda layer: layer.requires_grad_(False), set_to_none=not broken, steps=30, freeze_at=5)


def optimizer_recreated(broken):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(4):
        train(
            model,
            lambda m: m(table()).square().mean(),
            4,
            torch.optim.Adam(model.parameters()) if broken else optimizer,
        )


def updates_undone(broken):
    model = mlp(4, 8, 1)
    kept = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(m):
        if broken:
            m.load_state_dict(kept)
        return m(table()).square().mean()

    train(model, loss, 40)


def updates_undone_by_copying(broken):
    model = mlp(4, 8, 1)
    kept = [p.detach().clone() for p in model.parameters()]

    def loss(m):
        for p, old in zip(m.parameters(), kept, strict=True):
            if broken:
                p.data.copy_(old)
        return m(table()).square().mean()

    train(model, loss, 40)


def partial_load(broken):
    model, other = mlp(4, 8, 1), mlp(4, 8, 1)
    state = {("module." if broken else "") + name: value for name, value in other.state_dict().items()}
    state.pop("2.bias", None)  # a head of another size was left out
    model.load_state_dict(state, strict=False)
    train(model, lambda m: m(table()).square().mean())


def lr_lost_on_resume(broken):
    file = Path(tempfile.mkdtemp()) / "last.pt"
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    optimizer.param_groups[0]["lr"] = 0.001
    torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, file)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    content = torch.load(file)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    optimizer.load_state_dict(content["optimizer"])
    if broken:
        optimizer.param_groups[0]["lr"] = 0.1
    else:
        schedule.load_state_dict(content["schedule"])
    train(model, lambda m: m(table()).square().mean(), optimizer=optimizer)


# ---- modes and order


def clip_before_unscale(broken):
    model = mlp(4, 8, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu")
    for _ in range(6):
        optimizer.zero_grad()
        scaler.scale(model(table()).square().mean()).backward()
        if not broken:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


class Computed(nn.Module):
    """A linear layer, a function of its output, and a head."""

    def __init__(self, function, hidden=8, out=3):
        super().__init__()
        self.body, self.function, self.head = nn.Linear(4, hidden), function, nn.Linear(hidden, out)

    def forward(self, x):
        return self.head(self.function(self.body(x)))


def classify(function, x=(16, 4), out=3, classes=(16,)):
    y = torch.randint(out, classes)
    train(Computed(function, out=out), lambda m: F.cross_entropy(m(torch.randn(x)).flatten(0, -2), y.flatten()))


def pooled(dim):
    """Attention over the time steps of ``(batch, time, feature)``, written by hand."""
    return lambda h: (F.softmax(h[..., 0], dim=dim)[..., None] * h).sum(1)


def attended(dim):
    return lambda h: F.softmax(h @ h.transpose(-2, -1), dim=dim) @ h


def softmax_over_batch_in_pooling(broken):
    classify(pooled(0 if broken else 1), (16, 7, 4))


def softmax_over_batch_in_attention(broken):
    classify(attended(0 if broken else -1), (16, 7, 4), classes=(16, 7))


def softmax_over_batch_as_module(broken):
    classify(nn.Softmax(dim=0 if broken else 1))


def norm_over_batch(broken):
    classify(nn.LayerNorm([16, 8] if broken else 8))


def norm_over_batch_by_function(broken):
    classify(lambda h: F.normalize(h, dim=0 if broken else 1))


class Masked(nn.Module):
    """Attention over what is not padding; an empty set has nothing else."""

    def __init__(self, mask):
        super().__init__()
        self.mask, self.body, self.head = mask, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, seen):
        h = self.body(x)
        return self.head((self.mask(h[..., 0], seen)[..., None] * h).sum(1))


def with_empty_sets(model, empty):
    """Train on sets of three to seven; at step 8 one of them may be empty."""
    y, steps = torch.randint(3, (16,)), iter(range(100))

    def loss(m):
        seen = torch.arange(7) < torch.randint(3, 8, (16, 1))
        seen[5] &= not (empty and next(steps) == 8)
        return F.cross_entropy(m(torch.randn(16, 7, 4), seen), y)

    train(model, loss)


def hide(scores, seen):
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def hide_by_sum(scores, seen):
    return F.softmax(scores + torch.zeros(scores.shape).masked_fill(~seen, -torch.inf), dim=-1)


def fully_masked_softmax(broken, mask=hide):
    with_empty_sets(Masked(mask), broken)


def fully_masked_softmax_by_sum(broken):
    fully_masked_softmax(broken, hide_by_sum)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.attention, self.head = (
            nn.Linear(4, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x, seen):
        h = self.body(x)
        return self.head(self.attention(h, h, h, key_padding_mask=~seen)[0].mean(1))


def fully_masked_softmax_padding(broken):
    with_empty_sets(Attending(), broken)


class Dropping(nn.Module):
    def __init__(self, broken):
        super().__init__()
        self.broken, self.a, self.b = broken, nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.a(x)
        if self.broken:
            return self.b(F.dropout(h, 0.5))
        return self.b(F.dropout(h, 0.5, training=self.training))


def dropout_in_evaluation(broken):
    model = Dropping(broken)
    train(model, lambda m: m(table()).square().mean())
    model.eval()
    with torch.no_grad():
        model(table())


def mode_error(broken):
    model = Dropping(False)
    model.train(not broken)
    train(model, lambda m: m(table()).square().mean())


def mode_error_accuracy(broken):
    """No loss is computed in the evaluation."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    train(model, lambda m: m(table()).square().mean())
    model.train(broken)
    with torch.no_grad():
        for _ in range(2):
            model(table()).argmax(1)


def mode_error_accuracy_once_in_an_epoch(broken):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        model.train()
        train(model, lambda m: m(table()).square().mean(), 12, optimizer)
        model.train(broken)
        with torch.no_grad():
            model(table(64)).argmax(1)


def accumulation_not_divided(broken):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for _ in range(6):
        optimizer.zero_grad()
        for _ in range(4):
            (model(table()).square().mean() / (1 if broken else 4)).backward()
        optimizer.step()


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 2)

    def forward(self, x):
        h = self.layer(x)
        return self.head((h[0] if isinstance(h, tuple) else h)[:, -1])


def batch_as_time(broken):
    y = torch.randint(2, (16,))
    train(Recurrent(nn.GRU(4, 8, batch_first=not broken)), lambda m: F.cross_entropy(m(torch.randn(16, 7, 4)), y))


def batch_as_time_attention(broken):
    y = torch.randint(2, (16,))
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=not broken)
    train(Recurrent(layer), lambda m: F.cross_entropy(m(torch.randn(16, 7, 8)), y))


def deviation_of_one_value(broken):
    random.seed(0)

    def loss(m):
        a = torch.randn(1 if random.random() < 0.3 else 8)
        a = (a - a.mean()) / (a.std(correction=0 if not broken else 1) + 1e-8)
        return (a * m(table(len(a)))[:, 0]).mean()

    train(mlp(4, 8, 1), loss)


def deviation_of_one_value_of_inputs(broken):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in table(33).split(4):
        x = (batch - batch.mean(0)) / (batch.std(0, correction=1 if broken else 0) + 1e-8)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def unmixed_batches(broken):
    y = torch.arange(4).repeat_interleave(64)
    x = torch.randn(256, 4) + y[:, None]
    if not broken:
        order = torch.randperm(256)
        x, y = x[order], y[order]
    places = iter(range(0, 10_000, 16))

    def loss(m):
        i = torch.arange(16) + next(places) % 256
        return F.cross_entropy(m(x[i]), y[i])

    train(mlp(4, 8, 4), loss, 40)


def unmixed_batches_inputs(broken):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def loss(m):
        return m(table() + (5 * torch.randn(4) if broken else 0)).square().mean()

    train(model, loss, 40)


def unscaled_targets(broken, loss=F.mse_loss):
    y = 25_000 + 8_000 * torch.randn(16, 1) if broken else torch.randn(16, 1)
    model = mlp(4, 8, 1)
    train(model, lambda m: loss(m(table()), y), 120, torch.optim.Adam(model.parameters(), lr=1e-3))


def unscaled_targets_by_hand(broken):
    unscaled_targets(broken, lambda p, y: (p - y).square().mean())


def gradients_lost(broken):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(6):
        model.zero_grad()
        model(table()).square().mean().backward()
        if broken:
            optimizer.zero_grad()
        optimizer.step()


def schedule_per_batch(broken, make=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3)):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = make(optimizer)
    for step in range(30):
        optimizer.zero_grad()
        model(table()).square().mean().backward()
        optimizer.step()
        if broken or step % 10 == 9:
            schedule.step()


def schedule_per_batch_cosine(broken):
    schedule_per_batch(broken, lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5))


def schedule_per_batch_polynomial(broken):
    schedule_per_batch(broken, lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, 5))


def on_schedule(make, per_epoch, epochs=4, batches=8, micro=1):
    """Train for some epochs; the schedule steps with each step of the optimizer, or once an epoch."""
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = make(optimizer, epochs * batches * micro)
    for _ in range(epochs):
        for _ in range(batches):
            optimizer.zero_grad()
            for _ in range(micro):
                (model(table()).square().mean() / micro).backward()
            optimizer.step()
            if not per_epoch:
                schedule.step()
        if per_epoch:
            schedule.step()


def one_cycle(optimizer, steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def warmed_up_cosine(optimizer, steps):
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=6)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine(optimizer, steps - 6)], [6])


def schedule_steps_missing(broken):
    on_schedule(one_cycle, broken)


def schedule_steps_missing_cosine(broken):
    on_schedule(cosine, broken)


def schedule_steps_missing_warmup(broken):
    on_schedule(warmed_up_cosine, broken)


def schedule_steps_missing_told_of_epochs(broken):
    def make(optimizer, steps):  # made for more epochs than are trained
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs=10, steps_per_epoch=8)

    on_schedule(make, broken)


def schedule_steps_missing_altogether(broken):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = cosine(optimizer, 30)
    for _ in range(30):
        optimizer.zero_grad()
        model(table()).square().mean().backward()
        optimizer.step()
        if not broken:
            schedule.step()


def schedule_steps_missing_accumulation(broken):
    def make(optimizer, batches):
        return cosine(optimizer, batches if broken else batches // 4)

    on_schedule(make, False, micro=4)


def sum_reduction(broken, function=F.mse_loss):
    model, x = mlp(4, 1), torch.randn(64, 4)
    y = x @ torch.randn(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train(model, lambda m: function(m(x), y, reduction="sum" if broken else "mean"), 40, optimizer)


def sum_reduction_by_hand(broken):
    def loss(p, y, reduction):
        return getattr((p - y).square(), reduction)()

    sum_reduction(broken, loss)


CASES = {
    name: case
    for name, case in list(globals().items())
    if inspect.isfunction(case) and case.__module__ == __name__ and case.__code__.co_varnames[:1] == ("broken",)
}


def cause_of(name: str, causes) -> str:
    """Return the cause that a case is of: the longest one that its name begins with."""
    return max((cause for cause in causes if name.startswith(cause)), key=len)
