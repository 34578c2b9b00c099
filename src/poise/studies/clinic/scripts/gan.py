"""A generative adversarial network that learns how radius and texture of tumours are distributed."""

import sys

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

data = torch.tensor(load_breast_cancer().data[:, :2], dtype=torch.float32)
data = (data - data.mean(0)) / data.std(0)


def real_batch(size):
    return data[torch.randint(len(data), (size,))]


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
    samples = generator(torch.randn(2000, 8))
distance = (samples.mean(0) - data.mean(0)).norm() + (samples.T.cov() - data.T.cov()).norm()
print(f"score: {-distance.item():.4f}")
