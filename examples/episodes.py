"""Recurrent PPO on a task that needs a memory: sequences of several episodes in one call with `resets`, and as a loop over time steps.

At its first step an episode shows one of two signs, and nothing after that; at its last step the agent is rewarded for naming the sign.

python examples/episodes.py [UPDATES]
"""

import sys
import time
from statistics import median

import torch
from torch import Tensor, nn

import sstkern

STEPS, ENVIRONMENTS, UNITS = 64, 64, 64
LONGEST = 12


class Signs:
    """Environments that run side by side: observations (B, 3), the sign's two places and whether it is the last step."""

    def __init__(self, count: int):
        self.sign, self.left = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        self.first = torch.ones(count, dtype=torch.bool)

    def observe(self) -> Tensor:
        new = self.first
        self.sign[new] = torch.randint(0, 2, (int(new.sum()),))
        self.left[new] = torch.randint(3, LONGEST + 1, (int(new.sum()),))
        shown = nn.functional.one_hot(self.sign, 2) * new[:, None]
        return torch.cat([shown, (self.left == 1)[:, None]], 1).float()

    def act(self, action: Tensor) -> Tensor:
        """The reward; an episode that ends is followed by another one."""
        last = self.left == 1
        self.left -= 1
        self.first = last
        return torch.where(last, (action == self.sign).float() * 2 - 1, 0.0)


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, UNITS)
        self.memory = sstkern.LSTM(UNITS, UNITS)
        self.heads = nn.Linear(UNITS, 3)  # logits of two actions, and the value

    def forward(self, observations: Tensor, state: tuple[Tensor, Tensor], starts: Tensor):
        """Observations (T, B, 3) and starts (T, B), in one call."""
        return self.headed(*self.memory(self.encoder(observations).tanh(), state, resets=starts))

    def stepped(self, observations: Tensor, state: tuple[Tensor, Tensor], starts: Tensor):
        """The same without resets: a call for each time step, the states masked before it."""
        found = []
        for features, start in zip(self.encoder(observations).tanh(), starts, strict=True):
            state = tuple(part * ~start[None, :, None] for part in state)
            output, state = self.memory(features[None], state)
            found.append(output)
        return self.headed(torch.cat(found), state)

    def headed(self, features: Tensor, state: tuple[Tensor, Tensor]):
        logits, value = self.heads(features).split([2, 1], -1)
        return torch.distributions.Categorical(logits=logits), value.squeeze(-1), state


def zeros() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, ENVIRONMENTS, UNITS), torch.zeros(1, ENVIRONMENTS, UNITS)


@torch.no_grad()
def rollout(agent: Agent, signs: Signs, state: tuple[Tensor, Tensor]) -> tuple[dict, tuple[Tensor, Tensor]]:
    begun, steps = state, []
    for _ in range(STEPS):
        starts, observations = signs.first.clone(), signs.observe()
        policy, value, state = agent(observations[None], state, starts[None])
        action = policy.sample()
        reward = signs.act(action[0])
        steps.append((observations, starts, action[0], policy.log_prob(action)[0], value[0], reward))
    names = ("observations", "starts", "actions", "log_probs", "values", "rewards")
    batch = dict(zip(names, map(torch.stack, zip(*steps, strict=True)), strict=True))
    ends = torch.cat([batch["starts"][1:], signs.first[None]])
    batch["returns"] = torch.zeros_like(batch["rewards"])
    following = batch["values"][-1]  # about what the state is worth that the rollout ended with
    for t in reversed(range(STEPS)):
        following = batch["rewards"][t] + 0.95 * following * ~ends[t]
        batch["returns"][t] = following
    advantages = batch["returns"] - batch["values"]
    batch["advantages"] = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
    return batch | {"state": begun}, state


def loss_of(run, batch: dict) -> Tensor:
    policy, value, _ = run(batch["observations"], batch["state"], batch["starts"])
    ratio = (policy.log_prob(batch["actions"]) - batch["log_probs"]).exp()
    clipped = torch.min(ratio * batch["advantages"], ratio.clamp(0.8, 1.2) * batch["advantages"])
    return -clipped.mean() + 0.5 * (value - batch["returns"]).square().mean() - 0.01 * policy.entropy().mean()


def timed(run, agent: Agent, batch: dict) -> tuple[float, list[Tensor]]:
    """Milliseconds of a loss with its gradients, and these."""
    agent.zero_grad()
    began = time.perf_counter()
    loss_of(run, batch).backward()
    return 1e3 * (time.perf_counter() - began), [parameter.grad.clone() for parameter in agent.parameters()]


def main(updates: int = 60) -> tuple[float, float, float]:
    """The share of right answers of the last rollouts, and the milliseconds of an update in one call and in a loop."""
    torch.manual_seed(0)
    agent, signs, state = Agent(), Signs(ENVIRONMENTS), zeros()
    optimizer = torch.optim.Adam(agent.parameters(), 2e-3)
    right: list[float] = []
    times: dict[str, list[float]] = {"one call": [], "a loop": []}
    for update in range(1, updates + 1):
        batch, state = rollout(agent, signs, state)
        answered = batch["rewards"] != 0
        right.append((batch["rewards"] > 0).sum().item() / max(1, answered.sum().item()))
        for name, run in (("one call", agent.forward), ("a loop", agent.stepped)):
            if name == "one call" or update <= 5:
                times[name].append(timed(run, agent, batch)[0])
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(agent.forward, batch).backward()
            optimizer.step()
        if update % 20 == 0 or update == updates:
            print(f"update {update:3}: {100 * right[-1]:.0f}% of the answers right")
    _, one = timed(agent.forward, agent, batch)
    _, other = timed(agent.stepped, agent, batch)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    one_call, loop = median(times["one call"]), median(times["a loop"])
    print(f"{one_call:8.2f} ms  a loss and its gradients in one call with resets")
    print(f"{loop:8.2f} ms  the same by a loop over {STEPS} steps")
    return sum(right[-5:]) / len(right[-5:]), one_call, loop


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
