"""A variational autoencoder of handwritten digits."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
loader = DataLoader(pixels[:1500], batch_size=50, shuffle=True)


class VAE(nn.Module):
    def __init__(self, latent=6):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU())
        self.mu = nn.Linear(96, latent)
        self.log_var = nn.Linear(96, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 96), nn.ReLU(), nn.Linear(96, 64))

    def forward(self, x):
        hidden = self.encoder(x)
        mu, log_var = self.mu(hidden), self.log_var(hidden)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return self.decoder(z), mu, log_var


def elbo_loss(logits, x, mu, log_var):
    reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    divergence = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1)
    return (reconstruction + divergence).mean()


model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for epoch in range(30):
    total = 0.0
    for x in loader:
        logits, mu, log_var = model(x)
        loss = elbo_loss(logits, x, mu, log_var)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1}: loss {total / 1500:.3f}")

with torch.no_grad():
    score = -elbo_loss(model(pixels[1500:])[0], pixels[1500:], *model(pixels[1500:])[1:]).item()
print(f"score: {score:.4f}")
