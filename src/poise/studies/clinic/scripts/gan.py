"""A generative adversarial network that learns a ring of eight Gaussians."""

import math
import sys

import torch
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)


def real_batch(size):
    angle = 2 * math.pi * torch.randint(8, (size,)) / 8
    return torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(size, 2)


generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
discriminator = nn.Sequential(
    nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
)
optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
batch_size = 64
ones, zeros = torch.ones(batch_size, 1), torch.zeros(batch_size, 1)

for step in range(700):
    real, fake = real_batch(batch_size), generator(torch.randn(batch_size, 8))

    loss_d = criterion(discriminator(real), 0.9 * ones) + criterion(discriminator(fake.detach()), zeros)
    optimizer_d.zero_grad()
    loss_d.backward()
    optimizer_d.step()

    loss_g = criterion(discriminator(fake), ones)
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()

    if step % 100 == 0:
        print(f"step {step}: discriminator {loss_d.item():.4f}, generator {loss_g.item():.4f}")

with torch.no_grad():
    radius = generator(torch.randn(1000, 8)).norm(dim=1)
print(f"score: {-(radius - 1).abs().mean().item():.4f}")
