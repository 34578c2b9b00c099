"""Contrastive learning: two noisy views of a digit should have similar embeddings."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
train = images[:1400]


def augment(batch):
    shift = torch.randint(-1, 2, (2,)).tolist()
    moved = torch.roll(batch, shift, dims=(1, 2))
    return moved * (0.8 + 0.4 * torch.rand(len(batch), 1, 1)) + 0.1 * torch.randn_like(batch)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.projector = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x):
        return F.normalize(self.projector(self.backbone(x)), dim=1)


def info_nce(a, b, temperature=0.2):
    similarity = a @ b.T / temperature
    labels = torch.arange(len(a))
    return (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.T, labels)) / 2


model = Encoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(600):
    batch = train[torch.randint(len(train), (64,))]
    first, second = model(augment(batch)), model(augment(batch))
    loss = info_nce(first, second)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    features = model.backbone(images).numpy()
if not (abs(features) < 1e30).all():
    sys.exit("score: nan")
neighbours = KNeighborsClassifier(5).fit(features[:1400], digits.target[:1400])
print(f"score: {neighbours.score(features[1400:], digits.target[1400:]):.4f}")
