"""Distillation: a small student learns from the soft answers of a larger teacher."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)


def network(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def batches(epochs):
    for _ in range(epochs):
        yield from torch.randperm(1400).split(50)


teacher, student, temperature = network(128), network(24), 3.0
optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3, weight_decay=1e-4)
for pick in batches(12):
    loss = F.cross_entropy(teacher(x[pick]), y[pick])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
teacher.eval()

optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
for pick in batches(20):
    with torch.no_grad():
        soft = F.softmax(teacher(x[pick]) / temperature, dim=1)
    log_probabilities = F.log_softmax(student(x[pick]) / temperature, dim=1)
    loss = temperature**2 * F.kl_div(log_probabilities, soft, reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    accuracy = (student(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
print(f"last loss {loss.item():.4f}")
print(f"score: {accuracy:.4f}")
