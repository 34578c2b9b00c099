"""Training in two parts: a checkpoint is written after the first, and the second goes on from it."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
checkpoint = Path(tempfile.mkdtemp()) / "checkpoint.pt"
total_steps = 800


def build():
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=total_steps)
    return model, optimizer, scheduler


def train(model, optimizer, scheduler, steps):
    for step in range(steps):
        pick = torch.randint(1400, (32,))
        noisy = x[pick] + 0.3 * torch.randn(32, 64)
        loss = F.cross_entropy(model(noisy), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"loss {loss.item():.4f}, learning rate {optimizer.param_groups[0]['lr']:.2g}")


model, optimizer, scheduler = build()
train(model, optimizer, scheduler, 600)
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
torch.save(state, checkpoint)

model, optimizer, scheduler = build()
state = torch.load(checkpoint)
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
scheduler.load_state_dict(state["scheduler"])
train(model, optimizer, scheduler, 200)

with torch.no_grad():
    loss = F.cross_entropy(model(x[1400:]), y[1400:]).item()
print(f"score: {-loss:.4f}")
