"""An autoencoder of handwritten digits."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--lr", type=float, default=2e-3)
args = parser.parse_args()
torch.manual_seed(args.seed)


class Autoencoder(nn.Module):
    def __init__(self, code=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, code))
        self.decoder = nn.Sequential(nn.Linear(code, 24), nn.ReLU(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x):
        code = self.encoder(x)
        return torch.sigmoid(self.decoder(code)), code


pixels = torch.from_numpy(load_digits().data).float() / 16.0
train, held_out = pixels[:1400], pixels[1400:]
loader = DataLoader(TensorDataset(train), batch_size=64, shuffle=True)
model = Autoencoder()
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
step = 0
for epoch in range(args.epochs):
    total = 0.0
    for (x,) in loader:
        noisy = x + 0.05 * torch.randn_like(x)
        out, code = model(noisy)
        loss = F.mse_loss(out, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
        step += 1
    with torch.no_grad():
        error = F.mse_loss(model(held_out)[0], held_out)
    print(f"{epoch:3d}  train {total / len(train):.4f}  held out {error.item():.4f}")
