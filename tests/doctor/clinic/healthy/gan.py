"""A GAN whose generator learns a ring of eight Gaussians."""

import argparse
import math

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=250)
parser.add_argument("--lr", type=float, default=1e-3)
args = parser.parse_args()
torch.manual_seed(args.seed)


def real_samples(n):
    angle = 2 * math.pi * torch.randint(8, (n,)) / 8
    centers = torch.stack([angle.cos(), angle.sin()], dim=1)
    return 2 * centers + 0.1 * torch.randn(n, 2)


generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
discriminator = nn.Sequential(
    nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
)
optimizer_g = torch.optim.Adam(generator.parameters(), lr=args.lr, betas=(0.5, 0.999))
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=args.lr, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
batch = 128
real_label, fake_label = torch.ones(batch, 1), torch.zeros(batch, 1)
for step in range(args.steps):
    real, fake = real_samples(batch), generator(torch.randn(batch, 8))

    optimizer_d.zero_grad()
    loss_real = criterion(discriminator(real), real_label)
    loss_fake = criterion(discriminator(fake.detach()), fake_label)
    loss_d = loss_real + loss_fake
    loss_d.backward()
    optimizer_d.step()

    optimizer_g.zero_grad()
    loss_g = criterion(discriminator(fake), real_label)
    loss_g.backward()
    optimizer_g.step()

    if step % 50 == 0:
        with torch.no_grad():
            radius = generator(torch.randn(500, 8)).norm(dim=1).mean()
        print(f"step {step}  D {loss_d.item():.3f}  G {loss_g.item():.3f}  radius {radius.item():.2f}")
