"""A plain recurrent network that reads a digit pixel after pixel, four at a time."""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
torch.manual_seed(seed)
np.random.seed(seed)

digits = load_digits()
sequences = torch.from_numpy(digits.data.astype(np.float32) / 16 - 0.3).view(-1, 16, 4)
labels = torch.from_numpy(digits.target)
order = np.random.permutation(len(labels))
train, test = order[:1400], order[1400:]
loader = DataLoader(TensorDataset(sequences[train], labels[train]), batch_size=50, shuffle=True)


class RNN(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.rnn = nn.RNN(4, hidden, batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)
        self.out = nn.Linear(hidden, 10)

    def forward(self, x):
        states, _ = self.rnn(x)
        return self.out(states[:, -1])


model = RNN()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

for epoch in range(18):
    running = 0.0
    for inputs, targets in loader:
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        running += loss.item()
    with torch.no_grad():
        accuracy = (model(sequences[test]).argmax(-1) == labels[test]).float().mean().item()
    print(f"epoch {epoch}: loss {running / len(loader):.4f}, accuracy {accuracy:.4f}")

print(f"score: {accuracy:.4f}")
