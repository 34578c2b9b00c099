"""A convolutional network with batch norm for handwritten digits."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
torch.manual_seed(seed)

digits = load_digits()
split = train_test_split(digits.images[:, None] / 16.0, digits.target, test_size=0.2, random_state=seed)
x_train, x_test, y_train, y_test = (torch.tensor(part) for part in split)
x_train, x_test = (x_train.float() - 0.3) / 0.38, (x_test.float() - 0.3) / 0.38
loader = DataLoader(TensorDataset(x_train, y_train), batch_size=64, shuffle=True, drop_last=True)
test_loader = DataLoader(TensorDataset(x_test, y_test), batch_size=128)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(32 * 4, 10)

    def forward(self, x):
        x = self.features(x).flatten(1)
        x = F.dropout(x, 0.25, training=self.training)
        return self.classifier(x)


def evaluate(model):
    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            correct += (model(images).argmax(1) == labels).sum().item()
    model.train()
    return correct / len(y_test)


epochs = 14
model = CNN()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)

for epoch in range(epochs):
    total = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        output = model(images)
        loss = F.cross_entropy(output, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    scheduler.step()
    accuracy = evaluate(model)
    print(f"epoch {epoch}: loss {total / len(loader):.4f}, test accuracy {accuracy:.4f}")

print(f"score: {accuracy:.4f}")
