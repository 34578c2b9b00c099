"""An LSTM that predicts the next character of a text that comes with Python."""

import sys
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

text = " ".join("".join(topics[name] for name in ("assignment", "atom-literals", "booleans", "class", "for")).split())
vocabulary = sorted(set(text))
ids = torch.tensor([vocabulary.index(c) for c in text])
split = int(0.9 * len(ids))
train, held_out = ids[:split], ids[split:]


class CharLSTM(nn.Module):
    def __init__(self, size, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(size, 24)
        self.lstm = nn.LSTM(24, hidden, batch_first=True)
        self.head = nn.Linear(hidden, size)

    def forward(self, ids):
        hidden, _ = self.lstm(self.embedding(ids))
        return self.head(hidden)


def batch(data, size=24, length=40):
    start = torch.randint(len(data) - length - 1, (size, 1))
    window = data[start + torch.arange(length + 1)]
    return window[:, :-1], window[:, 1:]


model = CharLSTM(len(vocabulary))
optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

for step in range(300):
    inputs, targets = batch(train)
    logits = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.4f}")

with torch.no_grad():
    inputs, targets = batch(held_out, size=64)
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
print(f"score: {-loss:.4f}")
