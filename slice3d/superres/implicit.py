"""A coordinate network fitted through the slice profile to one stack or to several at once.

Intensity is a function of the position in space: a multi-resolution hash grid of features (Müller 2022, Instant NGP)
and a small perceptron. It is fitted so that its average over each slice's profile is what the slice measured,
wherever and however that slice lies (the idea of NeSVoR, Xu 2023, for whole stacks and without a GPU)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from slice3d.progress import Progress, silent
from slice3d.superres.scene import Array, Lattice, View, scale_of

log = logging.getLogger(__name__)

SAMPLES = 4
CHUNK = 2**17
_PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class FieldSettings:
    """minutes or steps: how long to fit. finest_mm: cell of the finest level. seed: of weights and draws."""

    minutes: float = 2.0
    steps: int | None = None
    seed: int = 0
    finest_mm: float = 1.0
    levels: int = 8
    batch: int = 4096
    smoothness: float = 0.02
    learning_rate: float = 1e-2


class HashField(nn.Module):
    """(N, 3) positions in [0, size] mm → (N,) intensities."""

    def __init__(
        self, size_mm: Array, *, finest_mm: float, levels: int, features: int = 4, log2_table: int = 18
    ) -> None:
        super().__init__()
        coarsest = max(16.0, 2 * finest_mm)
        cells = np.geomspace(coarsest, finest_mm, levels)
        self.cells = [float(cell) for cell in cells]
        shapes = [np.ceil(np.asarray(size_mm) / cell).astype(np.int64) + 2 for cell in cells]
        table = 2**log2_table
        self.sizes = [int(min(np.prod(shape), table)) for shape in shapes]
        self.dense = [int(np.prod(shape)) <= table for shape in shapes]
        self.strides = [(int(s[1] * s[2]), int(s[2]), 1) for s in shapes]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()
        self.table = nn.Parameter(torch.empty(self.starts[-1], features).uniform_(-1e-3, 1e-3))
        self.features = features
        self.perceptron = nn.Sequential(
            nn.Linear(levels * features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Trilinear features of every level, then the perceptron."""
        indices, weights = [], []
        for level, cell in enumerate(self.cells):
            at = points / cell
            low = at.floor()
            high_weight = at - low
            corner = low.long()
            index, weight = self._corners(level, corner, high_weight)
            indices.append(index)
            weights.append(weight)
        index = torch.stack(indices, dim=1).reshape(-1, 8)
        weight = torch.stack(weights, dim=1).reshape(-1, 8)
        encoded = nn.functional.embedding_bag(index, self.table, per_sample_weights=weight, mode="sum")
        out: torch.Tensor = self.perceptron(encoded.reshape(len(points), -1)).squeeze(-1)
        return out

    def _corners(self, level: int, corner: torch.Tensor, fraction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factors = self.strides[level] if self.dense[level] else _PRIMES
        axes = [(corner[:, a] * factors[a], (corner[:, a] + 1) * factors[a]) for a in range(3)]
        shares = [(1 - fraction[:, a], fraction[:, a]) for a in range(3)]
        index, weight = [], []
        for i in (0, 1):
            for j in (0, 1):
                for k in (0, 1):
                    parts = axes[0][i], axes[1][j], axes[2][k]
                    place = parts[0] + parts[1] + parts[2] if self.dense[level] else parts[0] ^ parts[1] ^ parts[2]
                    # hashed (and, at the rim of the box, dense) places wrap around within the level's own rows
                    index.append(place.remainder(self.sizes[level]) + self.starts[level])
                    weight.append(shares[0][i] * shares[1][j] * shares[2][k])
        return torch.stack(index, dim=1), torch.stack(weight, dim=1)


class FittedField:
    """A fitted network, its box and its scale; `render` evaluates it on a lattice."""

    def __init__(self, network: HashField, origin: Array, scale: tuple[float, float], steps: int) -> None:
        self.network = network
        self.origin = origin
        self.scale = scale
        self.steps = steps

    def render(self, lattice: Lattice, progress: Progress = silent) -> torch.Tensor:
        """(i, j, k) intensities at the lattice's voxels."""
        axes = [lattice.origin[a] - self.origin[a] + np.arange(lattice.shape[a]) * lattice.step[a] for a in range(3)]
        out = torch.empty(lattice.shape)
        flat = np.stack(np.meshgrid(axes[1], axes[2], indexing="ij"), -1).reshape(-1, 2)
        plane = torch.from_numpy(flat.astype(np.float32))
        with torch.inference_mode():
            for i, x in enumerate(axes[0]):
                points = torch.cat([torch.full((len(plane), 1), float(x)), plane], dim=1)
                values = torch.cat([self.network(part) for part in torch.split(points, CHUNK)])
                out[i] = values.reshape(lattice.shape[1:])
                progress("rendering", (i + 1) / lattice.shape[0])
        return out * self.scale[1] + self.scale[0]


def fit_field(
    views: Sequence[View], lattice: Lattice, *, settings: FieldSettings, progress: Progress = silent
) -> FittedField:
    """Fit the network to all views at their present poses.

    Every step draws voxels of all stacks alike, samples the profile of each at stratified random distances along its
    normal, and compares the mean with the measured value; a total-variation term ties what no slice saw to its
    neighbourhood. With `settings.steps` the result repeats exactly on the same device.
    """
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    margin = 4.0 * settings.finest_mm + max(view.profile.fwhm_mm for view in views)
    size = (np.array(lattice.shape) - 1) * lattice.step + 2 * margin
    origin = lattice.origin - margin
    network = HashField(size, finest_mm=settings.finest_mm, levels=settings.levels)
    result = FittedField(network, origin, scale_of(list(views)), 0)
    draws = [_Draws(view, lattice, origin, size) for view in views]
    groups = [
        {"params": [network.table], "lr": settings.learning_rate},
        {"params": list(network.perceptron.parameters()), "lr": settings.learning_rate / 5},
    ]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12, fused=True)
    rates = [float(group["lr"]) for group in optimiser.param_groups]  # type: ignore[arg-type]
    steps, step = settings.steps or 1_000_000, 0
    warm = start
    while step < steps:
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * _decay(step / steps if settings.steps or step > 6 else 0.0, step)
        loss = _loss(network, draws, result.scale, settings, generator)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
        step += 1
        if settings.steps is None and step in (2, 6, 60, 300):
            now = time.perf_counter()
            if step == 2:
                warm = now
            else:
                left = settings.minutes * 60 - (now - start)
                steps = step + max(5, int(left * (step - 2) / (now - warm)))
        progress("implicit", min(1.0, step / steps))
    result.steps = step
    log.info("coordinate network: %d steps in %.0f s", step, time.perf_counter() - start)
    return result


class _Draws:
    """Random voxels of one view with random points through their slice profile."""

    def __init__(self, view: View, lattice: Lattice, origin: Array, size: Array) -> None:
        points, self.normal = view.placed()
        self.view = view
        self.keep = view.inside(lattice).nonzero().ravel()
        self.points = points - torch.from_numpy(origin.astype(np.float32))
        self.limit = torch.from_numpy(size.astype(np.float32))
        table = view.profile.quantile(np.clip(np.linspace(0, 1, 257), 0.004, 0.996))
        self.table = torch.from_numpy(table.astype(np.float32))

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(count, SAMPLES, 3) points and (count,) measured values."""
        chosen = self.keep[torch.randint(len(self.keep), (count,), generator=generator)]
        share = (torch.rand(count, SAMPLES, generator=generator) + torch.arange(SAMPLES)) / SAMPLES * 256
        low = share.long().clamp(max=255)
        offset = self.table[low] + (share - low) * (self.table[low + 1] - self.table[low])
        points = self.points[chosen][:, None] + offset[..., None] * self.normal
        return points.clamp(min=0).minimum(self.limit), self.view.values[chosen]


def _loss(
    network: HashField,
    draws: Sequence[_Draws],
    scale: tuple[float, float],
    settings: FieldSettings,
    generator: torch.Generator,
) -> torch.Tensor:
    count = settings.batch // len(draws)
    drawn = [d.draw(count, generator) for d in draws]
    points = torch.cat([p for p, _ in drawn])
    target = (torch.cat([v for _, v in drawn]) - scale[0]) / scale[1]
    # one neighbour of every fourth sample, a cell away in a random direction, for the total variation
    base = points[::4, 0]
    direction = torch.randn(base.shape, generator=generator)
    moved = base + direction / direction.norm(dim=1, keepdim=True) * settings.finest_mm
    everything = torch.cat([points.reshape(-1, 3), moved.clamp(min=0).minimum(draws[0].limit)])
    values = network(everything)
    through = values[: points.shape[0] * SAMPLES].reshape(-1, SAMPLES)
    difference = through.mean(dim=1) - target
    variation = (through[::4, 0] - values[points.shape[0] * SAMPLES :]).abs().mean()
    total: torch.Tensor = difference.square().mean() * 10 + settings.smoothness * variation
    return total


def _decay(fraction: float, step: int) -> float:
    return min(1.0, (step + 1) / 10) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction))))
