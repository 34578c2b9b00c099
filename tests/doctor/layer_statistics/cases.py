"""For every cause of the catalogue that is a statistic: a training that has it, its repair, and two that come near.

Each case is ``(cause, faulty, repaired, near, near)``; each training is a function that returns what ``poise.watch``
takes and a function that trains.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Normal

Training = Callable[[], tuple[Any, Any, Callable[[], None]]]

DIGITS = load_digits()
X, Y = torch.tensor(DIGITS.data, dtype=torch.float32) / 8 - 1, torch.tensor(DIGITS.target)
WORDS = 8


def mlp(*sizes, activation=nn.ReLU, last=None):
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1], *([last] if last is not None else []))


def digits(n):
    i = torch.randint(len(X), (n,))
    return X[i], Y[i]


def training(model, loss, steps, lr=2e-3, optimizer=torch.optim.Adam):
    """Return a training of ``model`` on ``loss()``."""
    optimizer = optimizer(model.parameters(), lr=lr) if isinstance(optimizer, type) else optimizer

    def train():
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    return model, optimizer, train


def classifier(model, steps=120, batch=64, **options):
    def loss():
        x, y = digits(batch)
        return F.cross_entropy(model(x), y)

    return training(model, loss, steps, **options)


# ---- activations


def bounded(activation=nn.Tanh, std=None, bias=None, steps=120, depth=3, lr=2e-3):
    model = mlp(64, *[96] * depth, 10, activation=activation)
    for layer in model:
        if isinstance(layer, nn.Linear):
            if std is not None:
                nn.init.normal_(layer.weight, std=std)
            if bias is not None:
                nn.init.constant_(layer.bias, bias)
    return classifier(model, steps, lr=lr)


def autoencoder():
    """The outputs are near 0 and 1, as they should be."""
    model = mlp(64, 64, 16, 64, activation=nn.GELU, last=nn.Sigmoid())
    black = (X > 0).float()
    return training(
        model, lambda: F.binary_cross_entropy(model(x := black[torch.randint(len(X), (64,))]), x), 250, lr=1e-2
    )


class Attention(nn.Module):
    def __init__(self, width, heads, scale=1.0):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.scale = heads, scale

    def forward(self, x):
        n, time, width = x.shape
        q, k, v = (z.reshape(n, time, self.heads, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        attended = F.scaled_dot_product_attention(self.scale * q, k, v)
        return self.out(attended.transpose(1, 2).reshape(n, time, width))


class Counter(nn.Module):
    """Attends once over 24 words, and returns a number for the last one."""

    def __init__(self, scale=1.0, outputs=1):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 32), nn.Parameter(0.3 * torch.randn(24, 32))
        self.norm, self.attention, self.head = nn.LayerNorm(32), Attention(32, 4, scale), nn.Linear(32, outputs)

    def forward(self, words):
        x = self.words(words) + self.places
        return self.head((x + self.attention(self.norm(x)))[:, -1])


def counting(scale):
    """How many of the words are the first? It takes all of them."""
    model = Counter(scale)

    def loss():
        words = torch.randint(WORDS, (64, 24))
        return F.mse_loss(model(words)[:, 0], ((words == 1).float().sum(1) - 3) / 1.6)

    return training(model, loss, 200, lr=3e-3)


def looking_up():
    """Which word is first? One token is all it takes, whatever the scale."""
    model = Counter(60.0, WORDS)

    def loss():
        words = torch.randint(WORDS, (64, 24))
        return F.cross_entropy(model(words), words[:, -1])

    return training(model, loss, 150, lr=1e-2)


class Residual(nn.Module):
    def __init__(self, width, normalised, scale):
        super().__init__()
        self.norm = nn.LayerNorm(width) if normalised else nn.Identity()
        self.branch, self.scale = mlp(width, width, width), scale
        for layer in self.branch[::2]:
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        return x + self.scale * self.branch(self.norm(x))


def residual(blocks, normalised=False, scale=1.0):
    stack = nn.Sequential(*[Residual(48, normalised, scale) for _ in range(blocks)])
    return classifier(nn.Sequential(nn.Linear(64, 48), stack, nn.Linear(48, 10)), 40, lr=1e-3)


# ---- gradients


class Block(nn.Module):
    def __init__(self, width, post):
        super().__init__()
        self.attention, self.mlp = Attention(width, 4), mlp(width, 2 * width, width)
        self.norm1, self.norm2, self.post = nn.LayerNorm(width), nn.LayerNorm(width), post

    def forward(self, x):
        if self.post:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, depth, post):
        super().__init__()
        self.patch, self.blocks = nn.Linear(8, 32), nn.ModuleList([Block(32, post) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))

    def forward(self, x):
        x = self.patch(x.reshape(len(x), 8, 8)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def transformer(post, depth=10, lr=1e-2):
    return classifier(Transformer(depth, post), 90, 32, lr=lr)


# ---- normalisation


def normalised(kind, batch):
    model = nn.Sequential(
        nn.Linear(64, 64), kind(64), nn.ReLU(), nn.Linear(64, 64), kind(64), nn.ReLU(), nn.Linear(64, 10)
    )
    return classifier(model, 200, batch)


def convolutional(batch):
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    return classifier(nn.Sequential(*model, nn.Flatten(), nn.Linear(576, 10)), 120, batch)


def short_last_batch():
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    sizes = itertools.cycle([32, 32, 32, 2])

    def loss():
        x, y = digits(next(sizes))
        return F.cross_entropy(model(x), y)

    return training(model, loss, 120)


def decayed_gains(decay):
    model = nn.Sequential(
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    gains = [p for layer in model if isinstance(layer, nn.LayerNorm) for p in layer.parameters()]
    rest = [p for layer in model if isinstance(layer, nn.Linear) for p in layer.parameters()]
    groups = [{"params": rest}, {"params": gains, "weight_decay": decay}]
    return classifier(model, 150, optimizer=torch.optim.AdamW(groups, lr=5e-3))


# ---- representations


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(64, 128, 16), mlp(8, 128, 64)

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        std = torch.exp(0.5 * log_variance)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return self.decoder(mean + std * torch.randn_like(std)), divergence


def autoencoding(weight=1.0, annealed=1):
    model = VAE()
    step = itertools.count()

    def loss():
        x = (digits(64)[0] + 1) / 2
        logits, divergence = model(x)
        likelihood = F.binary_cross_entropy_with_logits(logits, x.clamp(0, 1), reduction="sum") / len(x)
        return likelihood + weight * min(1.0, next(step) / annealed) * divergence

    return training(model, loss, 240)  # of which the first 20 samples reach step 157, however busy the machine


def metric_learning(positives_only):
    model = mlp(64, 128, 16)

    def loss():
        x, y = digits(128)
        z = F.normalize(model(x), dim=1)
        distance = (z[:64] - z[64:]).square().sum(1)
        same = (y[:64] == y[64:]).float()
        near = (same * distance).sum() / same.sum().clamp_min(1)
        apart = ((1 - same) * (1 - distance.clamp_min(1e-9).sqrt()).clamp_min(0) ** 2).mean()
        return near if positives_only else near + 5 * apart

    return training(model, loss, 200, lr=1e-3)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.predictor = mlp(64, 128, 32), mlp(32, 64, 32)


def simple_siamese():
    """Comes near to collapse early, and recovers."""
    model, cosine = Siamese(), nn.CosineSimilarity(dim=1)

    def loss():
        x = digits(64)[0]
        a, b = (model.encoder(x + 0.3 * torch.randn_like(x)) for _ in range(2))
        return -(cosine(model.predictor(a), b.detach()) + cosine(model.predictor(b), a.detach())).mean() / 2

    return training(model, loss, 250, lr=1e-3)


def contrastive():
    model = mlp(64, 128, 32)

    def loss():
        x = digits(64)[0]
        z = F.normalize(torch.cat([model(x + 0.3 * torch.randn_like(x)) for _ in range(2)]), dim=1)
        return F.cross_entropy(z @ z.T / 0.5 - 1e9 * torch.eye(128), torch.arange(128).roll(64))

    return training(model, loss, 150, lr=1e-3)


def ring(n):
    angle = 2 * math.pi * torch.randint(8, (n,)) / 8
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2)


def competing(rate, generators_rate, loss=F.binary_cross_entropy_with_logits, lead=0, steps=250):
    generator, discriminator = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1, activation=lambda: nn.LeakyReLU(0.2))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=generators_rate, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=rate, betas=(0.5, 0.999))
    one, zero = torch.ones(128, 1), torch.zeros(128, 1)

    def train():
        for step in range(steps):
            fake = generator(torch.randn(128, 8))
            optimizer_d.zero_grad()
            (loss(discriminator(ring(128)), one) + loss(discriminator(fake.detach()), zero)).backward()
            optimizer_d.step()
            optimizer_g.param_groups[0]["lr"] = generators_rate * (0.01 if step < lead else 1.0)
            optimizer_g.zero_grad()
            loss(discriminator(fake), one).backward()
            optimizer_g.step()

    return [generator, discriminator], [optimizer_g, optimizer_d], train


class Gaussian(nn.Module):
    def __init__(self, inputs=4, outputs=1):
        super().__init__()
        self.mean, self.log_std = mlp(inputs, 32, outputs, activation=nn.Tanh), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return Normal(self.mean(x), self.log_std.exp().expand(len(x), -1))


def likelihood(entropy=0.0, noise=0.1, scale=1.0):
    model, w = Gaussian(), torch.randn(4, 1)

    def loss():
        x = torch.randn(64, 4)
        made = model(x)
        y = scale * (torch.sin(x @ w) + noise * torch.randn(64, 1))
        return -made.log_prob(y).mean() - entropy * model.log_std.sum()

    return training(model, loss, 250, lr=3e-2 if entropy else 3e-3)


def policy():
    model = Gaussian(3, 2)

    def loss():
        x = torch.randn(64, 3)
        made = model(x)
        action = made.sample()
        reward = -(action - x[:, :2]).square().sum(1)
        advantage = (reward - reward.mean()) / reward.std()
        return -(made.log_prob(action).sum(1) * advantage).mean()

    return training(model, loss, 250, lr=5e-3)


CASES: dict[str, tuple[str, Training, Training, Training, Training]] = {
    "weights of standard deviation 1": (
        "saturation",
        lambda: bounded(std=1.0),
        bounded,
        lambda: bounded(steps=300, lr=5e-3),  # sure of what it has learned by the end
        autoencoder,
    ),
    "biases of 5": (
        "saturation",
        lambda: bounded(bias=5.0),
        lambda: bounded(bias=0.0),
        lambda: bounded(nn.Sigmoid, depth=1, steps=200),
        lambda: bounded(nn.ReLU6),  # half of its units are at 0, an end of its range
    ),
    "logits a hundred times too large": (
        "attention_entropy_collapse",
        lambda: counting(100.0),
        lambda: counting(1.0),
        lambda: counting(4.0),
        looking_up,
    ),
    "branches without a norm": (
        "residual_explosion",
        lambda: residual(20),
        lambda: residual(20, normalised=True),
        lambda: residual(20, scale=20**-0.5),
        lambda: residual(4),
    ),
    "post-norm without warm-up": (
        "postnorm_gradient_imbalance",
        lambda: transformer(post=True),
        lambda: transformer(post=False, lr=3e-3),
        lambda: transformer(post=True, depth=4, lr=1e-3),
        lambda: transformer(post=True, depth=2, lr=3e-3),
    ),
    "two examples a batch": (
        "small_batch_bn",
        lambda: normalised(nn.BatchNorm1d, 2),
        lambda: normalised(nn.LayerNorm, 2),
        lambda: convolutional(2),
        short_last_batch,
    ),
    "decay of gains": (
        "norm_gain_collapse",
        lambda: decayed_gains(100.0),
        lambda: decayed_gains(0.0),
        lambda: decayed_gains(1.0),
        lambda: decayed_gains(5.0),  # they shrink, and the rest makes up for it
    ),
    "a KL term that is too heavy": (
        "posterior_collapse",
        lambda: autoencoding(30.0),
        autoencoding,
        lambda: autoencoding(annealed=150),
        lambda: autoencoding(2.0),
    ),
    "positive pairs alone": (
        "representation_collapse",
        lambda: metric_learning(positives_only=True),
        lambda: metric_learning(positives_only=False),
        simple_siamese,
        contrastive,
    ),
    "a discriminator that learns too fast": (
        "discriminator_wins",
        lambda: competing(5e-3, 1e-5),
        lambda: competing(1e-3, 1e-3),
        lambda: competing(1e-3, 1e-3, F.mse_loss),
        lambda: competing(1e-3, 1e-3, lead=60),
    ),
    "a bonus for entropy that is too large": (
        "learned_std_runaway",
        lambda: likelihood(entropy=3.0),
        likelihood,
        lambda: likelihood(noise=0.0),
        policy,
    ),
}
