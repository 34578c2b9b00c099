"""Regression of a disease's progression on ten measurements of 442 patients."""

import sys

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
torch.manual_seed(seed)

features, target = load_diabetes(return_X_y=True, scaled=False)
x_train, x_test, y_train, y_test = train_test_split(features, target, test_size=0.25, random_state=seed)
scaler, target_scaler = StandardScaler().fit(x_train), StandardScaler().fit(y_train[:, None])
x_train, x_test = (torch.tensor(scaler.transform(x), dtype=torch.float32) for x in (x_train, x_test))
y_train, y_test = (torch.tensor(target_scaler.transform(y[:, None]), dtype=torch.float32) for y in (y_train, y_test))

loader = DataLoader(TensorDataset(x_train, y_train), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

for epoch in range(40):
    model.train()
    for x, y in loader:
        prediction = model(x)
        loss = nn.functional.mse_loss(prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        test_loss = nn.functional.mse_loss(model(x_test), y_test).item()
    if epoch % 5 == 0:
        print(f"epoch {epoch}: loss {loss.item():.4f}, test {test_loss:.4f}")

print(f"score: {-test_loss:.4f}")
