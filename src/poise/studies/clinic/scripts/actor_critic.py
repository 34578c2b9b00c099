"""Policy gradient with a learned baseline: balancing a pole on a cart."""

import math
import random
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
random.seed(seed)
torch.manual_seed(seed)


def simulate(state, action):
    """One step of a cart with a pole; returns the next state and whether the pole fell."""
    x, v, angle, spin = state
    pull = ((10.0 if action == 1 else -10.0) + 0.05 * spin**2 * math.sin(angle)) / 1.1
    turn = (9.8 * math.sin(angle) - math.cos(angle) * pull) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
    push = pull - 0.05 * turn * math.cos(angle) / 1.1
    state = [x + 0.02 * v, v + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn]
    return state, abs(state[0]) > 2.4 or abs(state[2]) > 0.21


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh())
        self.policy = nn.Linear(64, 2)
        self.value = nn.Linear(64, 1)

    def forward(self, states):
        hidden = self.body(states)
        return self.policy(hidden), self.value(hidden).squeeze(-1)


model = ActorCritic()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
lengths = []

for episode in range(120):
    state = [random.uniform(-0.05, 0.05) for _ in range(4)]
    states, actions, fallen = [], [], False
    while not fallen and len(states) < 150:
        with torch.no_grad():
            action = Categorical(logits=model(torch.tensor(state))[0]).sample().item()
        states.append(state)
        actions.append(action)
        state, fallen = simulate(state, action)
    lengths.append(len(states))

    returns, value = [], 0.0
    for _ in states:
        value = 1.0 + 0.98 * value
        returns.insert(0, value)
    returns = torch.tensor(returns) / 50

    logits, values = model(torch.tensor(states))
    advantages = (returns - values).detach()
    policy = Categorical(logits=logits)
    policy_loss = -(policy.log_prob(torch.tensor(actions)) * advantages).mean()
    loss = policy_loss + 0.5 * F.mse_loss(values, returns) - 0.01 * policy.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if episode % 20 == 19:
        print(f"episode {episode + 1}: mean length {sum(lengths[-20:]) / 20:.1f}")

print(f"score: {sum(lengths[-20:]) / 20:.1f}")
