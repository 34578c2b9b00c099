"""Small runs of the kinds that people ask about: the root is named first, and the healthy twin stays silent."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poise


def watched(model, optimizer, train, tmp_path):
    """Return what is found, except what is only worth knowing."""
    with poise.watch(model, optimizer, tmp_path / "run", overhead=1.0) as run:
        train()
    return [finding for finding in run.findings if finding.severity != "info"]


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def mlp(*sizes, activation=nn.ReLU):
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- exact facts


@pytest.mark.parametrize("rows", [1, 4])
def test_the_statement_that_made_a_nan_outside_the_model_is_named(rows, tmp_path):
    model = mlp(6, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gains = torch.randn(16 * 4 + rows)

    def train():
        for batch in torch.arange(len(gains)).split(16):
            advantage = gains[batch]
            scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            loss = (model(torch.randn(len(batch), 6)).log_softmax(1)[:, 0] * scaled).mean()
            step(optimizer, loss)

    found = watched(model, optimizer, train, tmp_path)
    if rows > 1:
        assert found == []
    else:
        assert found[0].cause == "deviation_of_one_value"
        assert found[0].summary.startswith("std for scaled (test_in_the_wild.py:")


@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_eps_that_is_zero_in_half_precision_comes_before_what_follows_from_it(eps, tmp_path):
    x = torch.randn(256, 16).half()
    x[:, 0] = 0
    y = (x[:, 1] > 0).long()
    model = mlp(16, 32, 2).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps)

    def train():
        for _ in range(60):
            step(optimizer, F.cross_entropy(model(x).float(), y))

    found = watched(model, optimizer, train, tmp_path)
    assert [f.cause for f in found] == ([] if eps > 1e-7 else ["eps_underflow"])
    if found:
        assert found[0].severity == "error"
        assert found[0].remedies == ("adam_eps=1e-4",)


def test_weights_that_were_not_finite_are_no_fault_of_the_forward_pass(tmp_path):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train():
        for i in range(30):
            if i == 20:
                with torch.no_grad():
                    model[2].weight[0, 0] = math.nan
            step(optimizer, (model(torch.randn(16, 4)) - 1).square().mean())

    found = watched(model, optimizer, train, tmp_path)
    assert [f.cause for f in found] == ["backward_nonfinite"]
    assert found[0].where == ("2.weight",)
    assert "its update" in found[0].summary


@pytest.mark.parametrize("resets", ["G.zero_grad", "both"])
def test_a_module_resets_the_gradients_of_its_own_optimizer_only(resets, tmp_path):
    generator, critic = mlp(8, 16, 2), mlp(2, 16, 1)
    ours = torch.optim.Adam(generator.parameters(), lr=2e-4)
    theirs = torch.optim.Adam(critic.parameters(), lr=2e-4)
    one, zero = torch.ones(32, 1), torch.zeros(32, 1)

    def train():
        for _ in range(200):
            fake = generator(torch.randn(32, 8))
            if resets == "both":
                theirs.zero_grad()
            F.binary_cross_entropy_with_logits(critic(torch.randn(32, 2)), one).backward()
            F.binary_cross_entropy_with_logits(critic(fake.detach()), zero).backward()
            theirs.step()
            generator.zero_grad()
            F.binary_cross_entropy_with_logits(critic(fake), one).backward()
            ours.step()

    found = watched([generator, critic], [ours, theirs], train, tmp_path)
    assert [f.cause for f in found] == ([] if resets == "both" else ["missing_zero_grad"])
    if found:
        assert found[0].where == ("Adam 1",)  # the critic's steps first


# ---- the root


@pytest.mark.parametrize(("limit", "kind"), [(1e-4, "SGD"), (1e-4, "Adam"), (0.3, "SGD"), (100.0, "SGD")])
def test_a_limit_that_takes_nearly_all_of_every_gradient(limit, kind, tmp_path):
    x, truth = torch.randn(512, 16), torch.randn(16, 4)
    y = (x @ truth).argmax(1)
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if kind == "SGD" else torch.optim.Adam(model.parameters())

    def train():
        for _ in range(160):
            rows = torch.randint(512, (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()

    found = watched(model, optimizer, train, tmp_path)
    # Adam divides by the size of what is left, and at 0.3 the loss falls though all gradients are clipped.
    assert [f.cause for f in found] == (["clip_saturated"] if (limit, kind) == (1e-4, "SGD") else [])


@pytest.mark.parametrize("decay", [0.5, 5e-4])
def test_weight_decay_that_is_too_strong(decay, tmp_path):
    x, truth = torch.randn(512, 16), torch.randn(16, 4)
    y = (x @ truth).argmax(1)
    model = mlp(16, 32, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)

    def train():
        for _ in range(200):
            rows = torch.randint(512, (64,))
            step(optimizer, F.cross_entropy(model(x[rows]), y[rows]))

    found = watched(model, optimizer, train, tmp_path)
    assert [f.cause for f in found] == (["weight_decay_too_strong"] if decay > 0.1 else [])


@pytest.mark.parametrize("scale", [80_000.0, 1.0])
def test_targets_without_scale(scale, tmp_path):
    x = torch.randn(512, 10)
    y = (x[:, :1] + 3.0) * scale if scale > 1 else x[:, :1]
    model = mlp(10, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train():
        for _ in range(250):
            rows = torch.randint(512, (32,))
            step(optimizer, (model(x[rows]) - y[rows]).square().mean())

    found = watched(model, optimizer, train, tmp_path)
    assert [f.cause for f in found] == (["unscaled_targets"] if scale > 1 else [])


def test_a_rate_three_thousand_times_too_high_is_named_before_the_units_it_kills(tmp_path):
    truth = torch.randn(20, 4)
    model = mlp(20, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, i / 50))

    def train():
        for _ in range(120):
            x = torch.randn(16, 20)
            step(optimizer, F.cross_entropy(model(x), (x @ truth).argmax(1)))
            schedule.step()

    found = watched(model, optimizer, train, tmp_path)
    assert found[0].cause in ("lr_too_high", "lr_above_curvature")
    assert found[0].remedies[0].startswith("lr_scale")
    assert " 0 (" not in found[0].summary  # not the rate of another step


@pytest.mark.parametrize("kind", ["repeated", "repeated pair", "repeated and learned", "other targets"])
def test_a_batch_of_repeated_tokens(kind, tmp_path):
    """Text in which each token is followed by one of the next two; at step 100 a batch that is not."""
    model = nn.Sequential(nn.Embedding(32, 32), nn.Linear(32, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def train():
        for i in range(140):
            text = (torch.randint(32, (16, 1)) + torch.randint(1, 3, (16, 33)).cumsum(1)) % 32
            if kind == "repeated and learned":  # half of each batch is
                text[8:] = torch.randint(32, (8, 1))
            if i == 100 and kind in ("repeated", "repeated and learned"):
                text[:] = 7
            if i == 100 and kind == "repeated pair":
                text = (7 + torch.arange(33) % 2).expand(16, 33)
            x, y = text[:, :-1], text[:, 1:]
            if i == 100 and kind == "other targets":
                y = (y + 15) % 32
            step(optimizer, F.cross_entropy(model(x).flatten(0, 1), y.flatten()))

    found = watched(model, optimizer, train, tmp_path)
    assert [f.cause for f in found if f.cause == "repeated_tokens"] == ["repeated_tokens"] * (
        kind in ("repeated", "repeated pair")
    )
    if kind == "repeated":
        assert found[0].cause == "repeated_tokens"
        assert found[0].onset_step == 100


# ---- never silent


def test_a_loss_that_runs_away_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)

    def train():
        for _ in range(300):
            step(optimizer, -model(torch.randn(32, 4)).square().mean())  # the sign is wrong

    assert watched(model, optimizer, train, tmp_path) != []


def test_a_loss_that_stays_where_it_began_is_told_with_what_would_decide(tmp_path):
    model = mlp(10, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def train():
        for _ in range(150):
            step(optimizer, (model(torch.randn(64, 10)) - torch.randn(64, 1)).square().mean())

    (finding,) = watched(model, optimizer, train, tmp_path)
    assert finding.cause == "undetermined"
    assert "Likeliest:" in finding.summary
    assert "To decide:" in finding.summary


# ---- healthy


@pytest.mark.parametrize("seed", range(6))
def test_a_linear_regression_with_batches_of_four(seed, tmp_path):
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        for _ in range(60):
            step(optimizer, model(torch.randn(4, 3)).square().mean())

    assert watched(model, optimizer, train, tmp_path) == []


def test_a_solved_regression(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        for _ in range(200):
            x = torch.randn(64, 3)
            step(optimizer, (model(x) - x[:, :1]).square().mean())

    assert watched(model, optimizer, train, tmp_path) == []


def test_inputs_one_at_a_time_behind_dropout(tmp_path):
    model = nn.Sequential(nn.Linear(10, 64), nn.Dropout(0.6), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    truth = torch.randn(10, 1)

    def train():
        for _ in range(200):
            x = torch.randn(1, 10)
            step(optimizer, (model(x) - (x @ truth).abs()).square().mean())

    assert watched(model, optimizer, train, tmp_path) == []


def test_a_table_of_words_gets_small_gradients_by_right(tmp_path):
    words = 3000
    model = nn.Sequential(
        nn.Embedding(words, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, words)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    successor = torch.randperm(words)

    def train():
        for _ in range(120):
            word = (torch.rand(64) ** 4 * words).long()
            step(optimizer, F.cross_entropy(model(word), successor[word]))

    assert watched(model, optimizer, train, tmp_path) == []


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_a_policy_and_a_value_network_side_by_side(kind, tmp_path):
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.policy, self.value = mlp(4, 32, 32, 2, activation=nn.Tanh), mlp(4, 32, 32, 1, activation=nn.Tanh)
            nn.init.orthogonal_(self.policy[-1].weight, 0.01)

        def forward(self, x):
            return torch.distributions.Categorical(logits=self.policy(x)), self.value(x)[:, 0]

    agent = Agent()
    optimizer = kind(agent.parameters(), lr=7e-4, eps=1e-5)

    def train():
        for _ in range(150):
            x = torch.randn(64, 4)
            chosen, value = agent(x)
            action = chosen.sample()
            reward = 10.0 * ((x[:, 0] > 0).long() == action).float() + 5.0
            advantage = (reward - value).detach()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            loss = -(chosen.log_prob(action) * advantage).mean() + 0.5 * (reward - value).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()

    assert watched(agent, optimizer, train, tmp_path) == []


def test_longer_and_harder_sequences_are_no_divergence(tmp_path):
    model = mlp(10, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def train():
        for i in range(300):
            noise = 0.1 + 0.4 * (i // 100)  # harder twice
            x = torch.randn(64, 10)
            target = x[:, :1] * (1 + i // 100) + noise * torch.randn(64, 1)
            step(optimizer, (model(x) - target).square().mean())

    assert watched(model, optimizer, train, tmp_path) == []


def test_losses_of_heavy_tails(tmp_path):
    model = mlp(10, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    tails = torch.distributions.StudentT(2.0)

    def train():
        for _ in range(300):
            x = torch.randn(64, 10)
            step(optimizer, (model(x) - x[:, :1] - 0.3 * tails.sample((64, 1))).square().mean())

    assert watched(model, optimizer, train, tmp_path) == []


def test_full_batches_of_gradient_descent(tmp_path):
    x = torch.randn(200, 10)
    y = torch.tanh(x[:, :1]) + 0.1 * torch.randn(200, 1)
    model = mlp(10, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        for _ in range(300):
            step(optimizer, (model(x) - y).square().mean())

    assert watched(model, optimizer, train, tmp_path) == []
