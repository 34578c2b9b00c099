"""Small runs of reinforcement learning in the styles that people write them, and faults put into them."""

from __future__ import annotations

import copy
import itertools
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal


class Cart:
    """A pole on a cart: `step` returns an observation, a reward and whether the episode is over."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)
        self.reset()

    def reset(self):
        self.state = [self.random.uniform(-0.05, 0.05) for _ in range(4)]
        self.age = 0
        return torch.tensor(self.state)

    def step(self, action):
        x, v, angle, w = self.state
        force = 10.0 if action else -10.0
        push = (force + 0.05 * w * w * math.sin(angle)) / 1.1
        spin = (9.8 * math.sin(angle) - math.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        pull = push - 0.05 * spin * math.cos(angle) / 1.1
        self.state = [x + 0.02 * v, v + 0.02 * pull, angle + 0.02 * w, w + 0.02 * spin]
        self.age += 1
        done = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 0.21 or self.age >= 200
        return torch.tensor(self.state), 1.0, done


class Point:
    """Move a point to the origin with a continuous force."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)

    def reset(self):
        self.at, self.age = self.random.uniform(-1, 1), 0
        return np.array([self.at], dtype=np.float32)

    def step(self, action):
        self.at = max(-2.0, min(2.0, self.at + 0.2 * float(action)))
        self.age += 1
        return np.array([self.at], dtype=np.float32), -self.at * self.at, self.age >= 20, {}


class Gym:
    """The pole of Gymnasium, with the return values of `Cart`."""

    def __init__(self):
        import gymnasium

        self._env = gymnasium.make("CartPole-v1")

    def reset(self):
        return torch.from_numpy(self._env.reset(seed=random.randrange(1000))[0])

    def step(self, action):
        obs, reward, ends, cut, _ = self._env.step(action)
        return torch.from_numpy(obs), float(reward), bool(ends or cut)


def mlp(*sizes, activation=nn.ReLU):
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def discounted(rewards, gamma=0.98):
    out, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
        out.append(total)
    return torch.tensor(out[::-1])


def reinforce(lr=1e-2, episodes=45, reward_of=lambda r, episode: r, zero=True):
    """Log-probabilities by hand, raw returns, one update an episode."""
    env, policy = Cart(), mlp(4, 32, 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    for episode in range(episodes):
        obs, done, seen, actions, rewards = env.reset(), False, [], [], []
        while not done:
            with torch.no_grad():
                action = int(random.random() < F.softmax(policy(obs), -1)[1])
            seen.append(obs)
            obs, reward, done = env.step(action)
            actions.append(action)
            rewards.append(reward_of(reward, episode))
        returns = discounted(rewards)
        log_p = F.log_softmax(policy(torch.stack(seen)), -1)[torch.arange(len(actions)), torch.tensor(actions)]
        loss = -(log_p * returns).sum()
        if zero:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def baseline(lr=5e-3, episodes=25):
    """REINFORCE with a learned baseline; log-probabilities one by one, in a list."""
    env, policy, value = Cart(), mlp(4, 64, 2, activation=nn.Tanh), mlp(4, 64, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()], lr=lr)
    for _ in range(episodes):
        obs, done, logs, values, rewards = env.reset(), False, [], [], []
        while not done:
            p = torch.softmax(policy(obs), -1)
            action = int(random.random() < p[1].item())
            logs.append(torch.log(p[action]))
            values.append(value(obs)[0])
            obs, reward, done = env.step(action)
            rewards.append(reward)
        returns, values = discounted(rewards), torch.stack(values)
        loss = sum(-log * (g - v.item()) for log, g, v in zip(logs, returns, values, strict=True)) + F.mse_loss(
            values, returns
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def a2c(lr=7e-4, updates=120, zero=True, detach=True):
    """Five steps of eight environments, shared trunk, entropy bonus, RMSprop; the value bootstraps itself."""
    envs = [Cart(i) for i in range(8)]
    trunk, policy, value = mlp(4, 64, 64, activation=nn.Tanh), nn.Linear(64, 2), nn.Linear(64, 1)
    net = nn.ModuleDict({"trunk": trunk, "policy": policy, "value": value})
    optimizer = torch.optim.RMSprop(net.parameters(), lr=lr, eps=1e-5)
    obs = torch.stack([env.reset() for env in envs])
    for _ in range(updates):
        logs, values, rewards, alive, entropies = [], [], [], [], []
        for _ in range(5):
            h = torch.tanh(trunk(obs))
            log_p = F.log_softmax(policy(h), -1)
            action = (torch.rand(8) < log_p.detach().exp()[:, 1]).long()[:, None]
            logs.append(log_p.gather(1, action)[:, 0])
            entropies.append(-(log_p.exp() * log_p).sum(1))
            values.append(value(h)[:, 0])
            out = [env.step(int(a)) for env, a in zip(envs, action, strict=True)]
            obs = torch.stack([env.reset() if d else o for env, (o, _, d) in zip(envs, out, strict=True)])
            rewards.append(torch.tensor([r for _, r, _ in out]))
            alive.append(torch.tensor([1.0 - d for _, _, d in out]))
        with torch.no_grad():
            R = value(torch.tanh(trunk(obs)))[:, 0]
        targets = []
        for r, a in zip(reversed(rewards), reversed(alive), strict=True):
            R = r + 0.99 * R * a
            targets.insert(0, R)
        values, targets, logs = torch.cat(values), torch.cat(targets), torch.cat(logs)
        advantage = targets - values
        if detach:
            advantage = advantage.detach()
        loss = -(advantage * logs).mean() + 0.5 * F.mse_loss(values, targets) - 0.01 * torch.cat(entropies).mean()
        if zero:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()


def ppo(lr=3e-4, iterations=8, continuous=False):
    """Clipped ratios of log-probabilities, several epochs of minibatches."""
    envs = [(Point if continuous else Cart)(i) for i in range(4)]
    size, width = (1, 1) if continuous else (4, 2)
    actor, critic = mlp(size, 64, width, activation=nn.Tanh), mlp(size, 64, 1, activation=nn.Tanh)
    log_std = nn.Parameter(torch.zeros(1))
    learned = [*actor.parameters(), *critic.parameters(), *([log_std] if continuous else [])]
    optimizer = torch.optim.Adam(learned, lr=lr, eps=1e-5)

    def act(x, action=None):
        d = Normal(actor(x)[:, 0], log_std.exp()) if continuous else Categorical(logits=actor(x))
        action = d.sample() if action is None else action
        return action, d.log_prob(action), d.entropy(), critic(x)[:, 0]

    obs = torch.stack([torch.as_tensor(env.reset()) for env in envs])
    for _ in range(iterations):
        S, A, L, V, R, D = [], [], [], [], [], []
        for _ in range(64):
            with torch.no_grad():
                a, log, _, v = act(obs)
            out = [env.step(float(x)) for env, x in zip(envs, a, strict=True)]
            S.append(obs), A.append(a), L.append(log), V.append(v)
            R.append(torch.tensor([float(o[1]) for o in out]))
            D.append(torch.tensor([float(o[2]) for o in out]))
            obs = torch.stack(
                [torch.as_tensor(env.reset() if o[2] else o[0]) for env, o in zip(envs, out, strict=True)]
            )
        with torch.no_grad():
            last = critic(obs)[:, 0]
        gains, gain = [], 0.0
        for t in reversed(range(64)):
            following = last if t == 63 else V[t + 1]
            delta = R[t] + 0.99 * following * (1 - D[t]) - V[t]
            gain = delta + 0.95 * 0.99 * (1 - D[t]) * gain
            gains.insert(0, gain)
        S, A, L, V, G = map(torch.cat, (S, A, L, V, gains))
        returns = G + V
        for _ in range(4):
            for rows in torch.randperm(len(S)).split(64):
                _, log, entropy, v = act(S[rows], A[rows])
                ratio = (log - L[rows]).exp()
                g = (G[rows] - G[rows].mean()) / (G[rows].std() + 1e-8)
                pg = torch.max(-g * ratio, -g * ratio.clamp(0.8, 1.2)).mean()
                loss = pg - 0.01 * entropy.mean() + 0.5 * (v - returns[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(learned, 0.5)
                optimizer.step()


def dqn(
    lr=1e-3,
    steps=1500,
    target_network=True,
    detach=True,
    gamma=0.99,
    every=100,
    reward_of=lambda r, step: r,
    env=None,
    sign=1.0,
    zero=True,
):
    """Replay, epsilon-greedy; with a target network (updated by hand) or with the network's own next values."""
    env = env or Cart()
    q = mlp(4, 64, 64, 2)
    target = copy.deepcopy(q) if target_network else q
    optimizer = torch.optim.Adam(q.parameters(), lr=lr)
    memory, obs, updates = [], env.reset(), 0
    for step in range(steps):
        with torch.no_grad():
            greedy = int(q(obs).argmax())
        action = random.randrange(2) if random.random() < max(0.05, 1 - step / 800) else greedy
        following, reward, done = env.step(action)[:3]
        memory.append((obs, action, reward_of(reward, step), following, float(done)))
        obs = env.reset() if done else following
        if step < 100 or step % 4:
            continue
        S, A, R, N, D = zip(*random.sample(memory, 32), strict=True)
        S, A, R, N, D = torch.stack(S), torch.tensor(A), torch.tensor(R), torch.stack(N), torch.tensor(D)
        with torch.set_grad_enabled(not detach):
            goal = R + gamma * target(N).max(1).values * (1 - D)
        loss = sign * F.smooth_l1_loss(q(S).gather(1, A[:, None])[:, 0], goal)
        if zero:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        if target_network and updates % every == 0:
            target.load_state_dict(q.state_dict())


def ddpg(lr=1e-3, steps=300, detach=True, sign=1.0):
    """A deterministic actor and a critic, each with its optimizer and its slow copy."""
    env = Point()
    actor, critic = mlp(1, 32, 1), mlp(2, 32, 1)
    slow_actor, slow_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    ours, theirs = torch.optim.Adam(actor.parameters(), lr=lr), torch.optim.Adam(critic.parameters(), lr=lr)
    memory, obs = [], env.reset()
    for step in range(steps):
        with torch.no_grad():
            action = float(torch.tanh(actor(torch.from_numpy(obs)))) + 0.2 * random.gauss(0, 1)
        following, reward, done, _ = env.step(action)
        memory.append((obs, action, reward, following, float(done)))
        obs = env.reset() if done else following
        if step < 64:
            continue
        S, A, R, N, D = (
            torch.tensor(np.array(c), dtype=torch.float32) for c in zip(*random.sample(memory, 32), strict=True)
        )
        with torch.set_grad_enabled(not detach):
            goal = R + 0.97 * (1 - D) * slow_critic(torch.cat([N, torch.tanh(slow_actor(N))], 1))[:, 0]
        loss = (critic(torch.cat([S, A[:, None]], 1))[:, 0] - goal).pow(2).mean()
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        loss = -sign * critic(torch.cat([S, torch.tanh(actor(S))], 1)).mean()
        ours.zero_grad()
        loss.backward()
        ours.step()
        with torch.no_grad():
            for net, slow in ((actor, slow_actor), (critic, slow_critic)):
                for p, s in zip(net.parameters(), slow.parameters(), strict=True):
                    s.mul_(0.99).add_(0.01 * p)


def sac(lr=1e-3, steps=260):
    """Two critics, a squashed Gaussian by hand, a learned temperature."""
    env = Point()
    actor, one, two = mlp(1, 32, 2), mlp(2, 32, 1), mlp(2, 32, 1)
    slow_one, slow_two = copy.deepcopy(one), copy.deepcopy(two)
    log_alpha = torch.zeros(1, requires_grad=True)
    ours = torch.optim.Adam(actor.parameters(), lr=lr)
    theirs = torch.optim.Adam([*one.parameters(), *two.parameters()], lr=lr)
    heat = torch.optim.Adam([log_alpha], lr=lr)

    def act(x):
        mean, log_std = actor(x).chunk(2, -1)
        log_std = log_std.clamp(-5, 2)
        noise = torch.randn_like(mean)
        u = mean + noise * log_std.exp()
        log = (-0.5 * noise**2 - log_std - 0.92).sum(-1) - torch.log(1 - torch.tanh(u) ** 2 + 1e-6).sum(-1)
        return torch.tanh(u), log

    memory, obs = [], env.reset()
    for step in range(steps):
        with torch.no_grad():
            action = float(act(torch.from_numpy(obs)[None])[0])
        following, reward, done, _ = env.step(action)
        memory.append((obs, action, reward, following, float(done)))
        obs = env.reset() if done else following
        if step < 64:
            continue
        S, A, R, N, D = (
            torch.tensor(np.array(c), dtype=torch.float32) for c in zip(*random.sample(memory, 32), strict=True)
        )
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            a, log = act(N)
            x = torch.cat([N, a], 1)
            goal = R + 0.97 * (1 - D) * (torch.min(slow_one(x), slow_two(x))[:, 0] - alpha * log)
        x = torch.cat([S, A[:, None]], 1)
        loss = F.mse_loss(one(x)[:, 0], goal) + F.mse_loss(two(x)[:, 0], goal)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        a, log = act(S)
        x = torch.cat([S, a], 1)
        loss = (alpha * log - torch.min(one(x), two(x))[:, 0]).mean()
        ours.zero_grad()
        loss.backward()
        ours.step()
        loss = -(log_alpha.exp() * (log.detach() - 1)).mean()
        heat.zero_grad()
        loss.backward()
        heat.step()
        with torch.no_grad():
            for net, slow in ((one, slow_one), (two, slow_two)):
                for p, s in zip(net.parameters(), slow.parameters(), strict=True):
                    s.lerp_(p, 0.01)


def evolution(lr=0.05, generations=20):
    """Evolution strategies: the gradient is estimated from returns, and no loss is differentiated."""
    env, policy = Cart(), nn.Linear(4, 1)
    optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
    centre = nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
    for _ in range(generations):
        noise, scores = torch.randn(8, len(centre)), []
        for e in noise:
            nn.utils.vector_to_parameters(centre + 0.5 * e, policy.parameters())
            obs, done, total = env.reset(), False, 0.0
            with torch.no_grad():
                while not done:
                    obs, reward, done = env.step(float(policy(obs)) > 0)
                    total += reward
            scores.append(total)
        s = torch.tensor(scores)
        gradient = -((s - s.mean()) / (s.std() + 1e-6))[:, None].mul(noise).mean(0)
        nn.utils.vector_to_parameters(centre, policy.parameters())
        start = 0
        for p in policy.parameters():
            p.grad = gradient[start : start + p.numel()].view_as(p).clone()
            start += p.numel()
        optimizer.step()
        centre = nn.utils.parameters_to_vector(policy.parameters()).detach().clone()


def cross_entropy_method(lr=1e-2, iterations=20):
    """Imitate the best third of the episodes: a cross-entropy whose data change with the policy."""
    env, policy = Cart(), mlp(4, 32, 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    for _ in range(iterations):
        episodes = []
        for _ in range(6):
            obs, done, seen, actions = env.reset(), False, [], []
            while not done:
                with torch.no_grad():
                    action = int(torch.multinomial(F.softmax(policy(obs), -1), 1))
                seen.append(obs)
                actions.append(action)
                obs, _, done = env.step(action)
            episodes.append((len(actions), seen, actions))
        best = sorted(episodes, key=lambda e: -e[0])[:2]
        x, y = torch.stack([o for e in best for o in e[1]]), torch.tensor([a for e in best for a in e[2]])
        optimizer.zero_grad()
        F.cross_entropy(policy(x), y).backward()
        optimizer.step()


HEALTHY = {
    "reinforce": reinforce,
    "baseline": baseline,
    "a2c": a2c,
    "ppo": ppo,
    "ppo_continuous": lambda: ppo(continuous=True),
    "dqn": lambda: dqn(steps=1100),
    "gymnasium": lambda: dqn(env=Gym(), steps=900),
    "ddpg": ddpg,
    "sac": sac,
    "evolution": evolution,
    "cross_entropy_method": cross_entropy_method,
}

FAULTY = {  # the run, and what is named first
    "reinforce, rate": (lambda: reinforce(lr=10.0), "lr_too_high"),
    "a2c, rate": (lambda: a2c(lr=0.7), "lr_too_high"),
    "ppo, rate": (lambda: ppo(lr=0.3), "lr_too_high"),
    "dqn, rate": (lambda: dqn(lr=1.0, steps=800), "lr_too_high"),
    "ddpg, rate": (lambda: ddpg(lr=1.0), "lr_too_high"),
    "dqn, no target network": (lambda: dqn(target_network=False, gamma=1.05, lr=1e-2), "bootstrap_divergence"),
    "dqn, sign": (lambda: dqn(sign=-1.0), "bootstrap_divergence"),
    "dqn, detach": (lambda: dqn(target_network=False, detach=False, steps=400), "target_not_detached"),
    "a2c, detach": (lambda: a2c(detach=False, updates=20), "target_not_detached"),
    "a2c, zero_grad": (lambda: a2c(zero=False), "missing_zero_grad"),
    "dqn, zero_grad": (lambda: dqn(zero=False, steps=400), "missing_zero_grad"),
    "dqn, reward": (
        lambda: dqn(reward_of=lambda r, step: math.nan if step == 300 else r, steps=600),
        "forward_nonfinite",
    ),
}
