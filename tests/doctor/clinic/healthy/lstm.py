"""A character LSTM on the help texts of Python."""

import argparse
from pydoc_data.topics import topics

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--length", type=int, default=32)
parser.add_argument("--lr", type=float, default=4e-3)
args = parser.parse_args()
torch.manual_seed(args.seed)

text = "\n".join(topics[k] for k in sorted(topics))[:200_000]
chars = sorted(set(text))
index = {c: i for i, c in enumerate(chars)}
data = torch.tensor([index[c] for c in text])
split = int(0.9 * len(data))


class CharLSTM(nn.Module):
    def __init__(self, vocabulary, embedding=24, hidden=64):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, tokens):
        h, _ = self.lstm(self.embed(tokens))
        return self.out(self.drop(h))


def get_batch(part, size=16):
    starts = torch.randint(len(part) - args.length - 1, (size,))
    rows = torch.stack([part[s : s + args.length + 1] for s in starts])
    return rows[:, :-1], rows[:, 1:]


model = CharLSTM(len(chars))
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
criterion = nn.CrossEntropyLoss()
for step in range(args.steps):
    model.train()
    inputs, targets = get_batch(data[:split])
    logits = model(inputs)
    loss = criterion(logits.reshape(-1, len(chars)), targets.reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 50 == 49:
        model.eval()
        with torch.no_grad():
            inputs, targets = get_batch(data[split:], 32)
            validation = criterion(model(inputs).transpose(1, 2), targets)
        print(f"step {step + 1}  train {loss.item():.3f}  validation {validation.item():.3f}")
