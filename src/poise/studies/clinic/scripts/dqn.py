"""Deep Q-learning of balancing a pole on a cart."""

import math
import random
import sys
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn

seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
random.seed(seed)
torch.manual_seed(seed)


class CartPole:
    """Equations of Barto, Sutton and Anderson (1983); an episode ends when the pole falls or after 200 steps."""

    def reset(self):
        self.state, self.time = [random.uniform(-0.05, 0.05) for _ in range(4)], 0
        return list(self.state)

    def step(self, action):
        x, v, angle, spin = self.state
        force = 10.0 if action == 1 else -10.0
        pull = (force + 0.05 * spin**2 * math.sin(angle)) / 1.1
        turn = (9.8 * math.sin(angle) - math.cos(angle) * pull) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        push = pull - 0.05 * turn * math.cos(angle) / 1.1
        self.state = [x + 0.02 * v, v + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn]
        self.time += 1
        fallen = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 0.21
        return list(self.state), 1.0, fallen, fallen or self.time >= 200


def q_network():
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


env, memory, gamma = CartPole(), deque(maxlen=5000), 0.98
online, target = q_network(), q_network()
target.load_state_dict(online.state_dict())
optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)

state, returns, total = env.reset(), [], 0.0
for step in range(2000):
    epsilon = max(0.05, 1.0 - step / 1000)
    if random.random() < epsilon:
        action = random.randrange(2)
    else:
        with torch.no_grad():
            action = online(torch.tensor(state)).argmax().item()
    following, reward, terminal, over = env.step(action)
    memory.append((state, action, reward, following, float(terminal)))
    state, total = following, total + reward
    if over:
        returns.append(total)
        state, total = env.reset(), 0.0

    if step >= 200:
        states, actions, rewards, nexts, ends = (torch.tensor(v) for v in zip(*random.sample(memory, 32), strict=True))
        with torch.no_grad():
            wanted = rewards + gamma * (1 - ends) * target(nexts).max(1).values
        value = online(states).gather(1, actions[:, None]).squeeze(1)
        loss = F.smooth_l1_loss(value, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            target.load_state_dict(online.state_dict())
    if step % 500 == 499:
        print(f"step {step + 1}: mean return of the last 10 episodes {sum(returns[-10:]) / 10:.1f}")

print(f"score: {sum(returns[-10:]) / 10:.1f}")
