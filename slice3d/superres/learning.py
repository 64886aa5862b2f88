"""What the trainings across subjects share: Adam with a warm-up and half a cosine, and the average of the weights."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)
_WARMUP = 100


class Learner(Generic[Network]):
    """A network that learns, and `average`, the exponential average of its weights: that one is used afterwards.

    decay: how much of the average stays at each step; less in the first ones, which it would remember too long.
    """

    def __init__(self, network: Network, *, learning_rate: float, decay: float) -> None:
        self.network = network
        self.average = copy.deepcopy(network)
        self.steps = 0
        self._rate, self._decay = learning_rate, decay
        self._optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)

    def step(self, loss: torch.Tensor, spent: float) -> None:
        """Learn from one loss. spent: how much of the training is over, 0 to 1; at its end hardly anything is learnt."""
        rate = min(1.0, (self.steps + 1) / _WARMUP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, spent))))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * rate
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        keep = min(self._decay, self.steps / (self.steps + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - keep)
