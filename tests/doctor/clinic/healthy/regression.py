"""Regression on the diabetes table."""

import argparse

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--lr", type=float, default=0.02)
args = parser.parse_args()
torch.manual_seed(args.seed)

X, y = load_diabetes(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=args.seed)
scale_x, scale_y = StandardScaler().fit(X_train), StandardScaler().fit(y_train[:, None])


def tensors(features, target):
    features, target = scale_x.transform(features), scale_y.transform(target[:, None])
    return torch.tensor(features, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)


x_test, t_test = tensors(X_test, y_test)
loader = DataLoader(TensorDataset(*tensors(X_train, y_train)), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-3)
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
step = 0
for epoch in range(args.epochs):
    model.train()
    for x, t in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), t)
        loss.backward()
        optimizer.step()
        step += 1
    model.eval()
    with torch.no_grad():
        test_loss = criterion(model(x_test), t_test).item()
    plateau.step(test_loss)
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1}: train {loss.item():.3f}, test {test_loss:.3f}")
