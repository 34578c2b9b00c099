"""A tumour classifier: benign or malignant, from thirty measurements."""

import sys

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

data = load_breast_cancer()
x = torch.tensor(data.data, dtype=torch.float32)
y = torch.tensor(data.target, dtype=torch.float32)
order = torch.randperm(len(x))
x, y = x[order], y[order]
x = (x - x[:450].mean(0)) / x[:450].std(0)
x_train, y_train, x_test, y_test = x[:450], y[:450], x[450:], y[450:]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        return self.out(self.net(x))


model = Classifier()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
criterion = nn.BCEWithLogitsLoss()

for epoch in range(60):
    for batch in torch.randperm(450).split(25):
        output = model(x_train[batch]).squeeze(1)
        loss = criterion(output, y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

with torch.no_grad():
    test_loss = criterion(model(x_test).squeeze(1), y_test).item()
print(f"score: {-test_loss:.4f}")
