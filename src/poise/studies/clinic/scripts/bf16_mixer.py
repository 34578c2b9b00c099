"""An MLP-mixer for digits under bfloat16 autocast, with gradients accumulated over micro-batches."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

digits = load_digits()
rows = torch.tensor(digits.images, dtype=torch.float32) / 8 - 1
labels = torch.tensor(digits.target)


class Mixer(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.tokens = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.channels = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.embed(x)
        for token, channel, norm in zip(self.tokens, self.channels, self.norms, strict=True):
            y = norm(x)
            y = F.gelu(token(y.transpose(1, 2))).transpose(1, 2)
            x = x + F.gelu(channel(y))
        return self.head(x.mean(1))


model = Mixer()
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
micro_batches = 4

for step in range(250):
    optimizer.zero_grad()
    for _ in range(micro_batches):
        pick = torch.randint(1400, (16,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(rows[pick])
        loss = F.cross_entropy(logits.float(), labels[pick]) / micro_batches
        loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {micro_batches * loss.item():.4f}")

with torch.no_grad():
    accuracy = (model(rows[1400:]).argmax(1) == labels[1400:]).float().mean().item()
print(f"score: {accuracy:.4f}")
