"""A small convolutional network with batch norm on handwritten digits."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=0.05)
args = parser.parse_args()
torch.manual_seed(args.seed)


def conv_block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_block(1, 12), conv_block(12, 24), nn.MaxPool2d(2), conv_block(24, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


data = load_digits()
x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
x = (x - x.mean()) / x.std()
y = torch.tensor(data.target, dtype=torch.long)
train = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=args.batch_size, shuffle=True)
test = DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=100)

model = ConvNet()
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.1)

step = 0
for epoch in range(args.epochs):
    model.train()
    running = 0.0
    for images, labels in train:
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
        step += 1
    scheduler.step()

    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in test:
            right += (model(images).argmax(dim=1) == labels).sum().item()
    print(f"[{epoch + 1}] loss: {running / len(train):.3f} accuracy: {100 * right / len(x[1500:]):.1f} %")
