"""Fitted Q-learning with a target network, on transitions of a small random world."""

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--every", type=int, default=100, help="steps between copies to the target network")
args = parser.parse_args()
torch.manual_seed(args.seed)

COUNT, ACTIONS, DISCOUNT = 2000, 4, 0.99
states = torch.randn(COUNT, 8)
actions = torch.randint(0, ACTIONS, (COUNT,))
moves = 0.4 * torch.randn(COUNT, 8) + 0.2 * F.one_hot(actions, ACTIONS).float().repeat(1, 2)
successors = 0.9 * states + moves
rewards = (states[:, 0] > 0).float() + 0.1 * torch.randn(COUNT)
ends = (torch.rand(COUNT) < 0.02).float()

q = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, ACTIONS))
target = copy.deepcopy(q)
optimizer = torch.optim.Adam(q.parameters(), lr=args.lr)
for step in range(args.steps):
    if step % args.every == 0:
        target.load_state_dict(q.state_dict())
    rows = torch.randint(0, COUNT, (32,))
    with torch.no_grad():
        goal = rewards[rows] + DISCOUNT * (1 - ends[rows]) * target(successors[rows]).amax(1)
    values = q(states[rows]).gather(1, actions[rows, None])[:, 0]
    loss = F.mse_loss(values, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 99:
        print(f"step {step + 1}: loss {loss.item():.3f}, mean value {values.mean().item():.2f}")
