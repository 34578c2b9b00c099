"""A deep residual perceptron for handwritten digits, AdamW with warm-up and cosine."""

import math
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images / 8 - 1, dtype=torch.float32)
y = torch.tensor(labels)
order = torch.randperm(len(x))
train, test = order[:1400], order[1400:]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


depth, width, steps, warmup = 8, 48, 500, 50
blocks = [Block(width) for _ in range(depth)]
model = nn.Sequential(nn.Linear(64, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 10))
for block in blocks:
    block.down.weight.data /= math.sqrt(2 * depth)

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)


def schedule(step):
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
criterion = nn.CrossEntropyLoss(label_smoothing=0.05)

for step in range(steps):
    pick = train[torch.randint(len(train), (64,))]
    inputs, targets = x[pick], y[pick]
    loss = criterion(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 100 == 99:
        print(f"step {step + 1}: loss {loss.item():.4f}")

model.eval()
with torch.no_grad():
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
print(f"score: {accuracy:.4f}")
