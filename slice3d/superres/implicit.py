"""A coordinate network fitted through the slice profiles of one stack or of several.

Intensity is a function of the position: trilinear features of nested grids, from coarse cells to single voxels, and a
small perceptron (the idea of NeRF, Mildenhall 2020, on dense grids as in Plenoxels, Fridovich-Keil 2022), added to a first
estimate that is fitted along. Fitted are random blocks of random stacks: the function is sampled at a stack's own fine
grid, averaged along its normal with its profile, and compared with what the stack measured; total variation within the
block is the prior."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.superres.scene import Image, View

log = logging.getLogger(__name__)

Window = tuple[slice, ...]
# In-plane pixels and slices of a block.
BLOCK, SLICES = 24, 6
# Cells in voxels.
CELLS = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class FieldSettings:
    """minutes: time for fitting; or steps: a fixed number of them, which repeats exactly. seed: of weights and blocks.
    strength, rounding: of the total variation, as in `VariationSettings`."""

    minutes: float = 2.0
    steps: int | None = None
    seed: int = 0
    features: int = 4
    hidden: int = 32
    strength: float = 3e-3
    rounding: float = 0.01
    learning_rate: float = 2e-3


class Field:
    """Positions in voxels of a lattice → intensity in units of the range; it begins as `start`."""

    def __init__(self, start: Image, settings: FieldSettings) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        self.shape = start.shape
        self.cells = (1, *CELLS)
        self.grids = [torch.from_numpy(start.copy())[None]]
        for cell in CELLS:
            size = [math.ceil((n - 1) / cell) + 1 for n in start.shape]
            self.grids.append(1e-2 * torch.randn(settings.features, *size, generator=generator))
        self._first = [torch.zeros_like(grid) for grid in self.grids]
        self._second = [torch.zeros_like(grid) for grid in self.grids]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            last = nn.Linear(settings.hidden, 1)
            self.perceptron = nn.Sequential(
                nn.Linear(len(CELLS) * settings.features, settings.hidden),
                nn.ReLU(),
                nn.Linear(settings.hidden, settings.hidden),
                nn.ReLU(),
                last,
            )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def windows(self, points: torch.Tensor) -> list[Window]:
        """Of every grid the part that (…, 3) points touch."""
        low = points.reshape(-1, 3).min(dim=0).values.tolist()
        high = points.reshape(-1, 3).max(dim=0).values.tolist()
        out: list[Window] = []
        for grid, cell in zip(self.grids, self.cells, strict=True):
            part = []
            for a, b, count in zip(low, high, grid.shape[1:], strict=True):
                start = min(max(math.floor(a / cell), 0), max(count - 2, 0))
                part.append(slice(start, min(max(math.floor(b / cell) + 2, start + 2), count)))
            out.append((slice(None), *part))
        return out

    def sample(self, points: torch.Tensor, parts: Sequence[torch.Tensor], windows: Sequence[Window]) -> torch.Tensor:
        """(a, b, m, 3) points → (a, b, m), from the windows of the grids; the border repeats outwards."""
        sampled = []
        for part, window, cell in zip(parts, windows, self.cells, strict=True):
            start = torch.tensor([float(w.start) for w in window[1:]])
            size = torch.tensor([max(n - 1.0, 1.0) for n in part.shape[1:]])
            at = ((points / cell - start) / size * 2 - 1).flip(-1)
            found = nn.functional.grid_sample(part[None], at[None], padding_mode="border", align_corners=True)
            sampled.append(found[0])
        features = torch.cat(sampled[1:]).flatten(1).T
        out: torch.Tensor = sampled[0][0] + self.perceptron(features).reshape(points.shape[:-1])
        return out

    def update(self, windows: Sequence[Window], parts: Sequence[torch.Tensor], rate: float) -> None:
        """Adam on the windows alone: most of a dense grid is not touched by a block."""
        for n, (window, part) in enumerate(zip(windows, parts, strict=True)):
            if part.grad is None:
                continue
            first, second = self._first[n][window], self._second[n][window]
            first.lerp_(part.grad, 0.1)
            second.lerp_(part.grad.square(), 0.01)
            self.grids[n][window] -= rate * first / (second.sqrt() + 1e-12)

    def render(self, progress: Progress = silent) -> Image:
        """(i, j, k) intensities at the lattice's voxels."""
        out = np.empty(self.shape, dtype=np.float32)
        axes = [torch.arange(n, dtype=torch.float32) for n in self.shape]
        rows = max(1, 2**18 // (self.shape[1] * self.shape[2]))
        with torch.inference_mode():
            for i in range(0, self.shape[0], rows):
                points = torch.stack(torch.meshgrid(axes[0][i : i + rows], axes[1], axes[2], indexing="ij"), dim=-1)
                windows = self.windows(points)
                parts = [grid[window] for grid, window in zip(self.grids, windows, strict=True)]
                out[i : i + rows] = self.sample(points, parts, windows).numpy()
                progress("rendering", min(1.0, (i + rows) / self.shape[0]))
        return out


class _Blocks:
    """Random blocks of one stack."""

    def __init__(self, view: View, lattice: Grid, bounds: tuple[float, float]) -> None:
        self.target = torch.from_numpy(((view.target - bounds[0]) / bounds[1]).astype(np.float32))
        self.mask = torch.from_numpy(view.inside(lattice))
        self.affine = view.to_lattice(lattice)
        self.operator = view.operator
        self.size = [min(n, w) for n, w in zip(view.slices.shape, (BLOCK, BLOCK, SLICES), strict=True)]
        reach = 1.2 * view.operator.profile.fwhm_mm
        self.first = np.searchsorted(view.operator.fine_mm, view.operator.slices_mm - reach)
        self.last = np.searchsorted(view.operator.fine_mm, view.operator.slices_mm + reach)

    def draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(a, b, m, 3) points, (n, m) profile, (a, b, n) target and mask."""
        a, b, n = (int(rng.integers(0, m - w + 1)) for m, w in zip(self.target.shape, self.size, strict=True))
        m0, m1 = int(self.first[n]), int(self.last[n + self.size[2] - 1])
        matrix = self.operator.matrix[n : n + self.size[2], m0:m1]
        profile = torch.from_numpy((matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32))
        steps = [np.arange(a, a + self.size[0]), np.arange(b, b + self.size[1]), np.arange(m0, m1)]
        index = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
        points = (index @ self.affine[:3, :3].T + self.affine[:3, 3]).astype(np.float32)
        part = tuple(slice(p, p + w) for p, w in zip((a, b, n), self.size, strict=True))
        return torch.from_numpy(points), profile, self.target[part], self.mask[part]


def fit_field(
    views: Sequence[View],
    lattice: Grid,
    bounds: tuple[float, float],
    start: Image,
    *,
    settings: FieldSettings,
    progress: Progress = silent,
) -> tuple[Field, int]:
    """A field fitted to all views at their present poses, from `start` (in units of the range), and its steps."""
    begin = time.perf_counter()
    rng = np.random.default_rng(settings.seed)
    field = Field(start, settings)
    blocks = [_Blocks(view, lattice, bounds) for view in views]
    optimiser = torch.optim.Adam(field.perceptron.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    step, share = 0, 0.0
    while share < 1.0:
        rate = settings.learning_rate * min(1.0, (step + 1) / 20) * (0.01 + 0.495 * (1 + math.cos(math.pi * share)))
        optimiser.param_groups[0]["lr"] = rate
        points, profile, target, mask = blocks[int(rng.integers(len(blocks)))].draw(rng)
        windows = field.windows(points)
        parts = [grid[window].clone().requires_grad_(True) for grid, window in zip(field.grids, windows, strict=True)]
        values = field.sample(points, parts, windows)
        misfit = ((values @ profile.T - target).square() * mask).mean()
        # every stack is drawn once in a while, the prior every time
        loss = misfit + 2 * settings.strength / len(blocks) * _variation(values, settings.rounding)
        loss.backward()  # type: ignore[no-untyped-call]
        field.update(windows, parts, rate)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        share = step / settings.steps if settings.steps else (time.perf_counter() - begin) / (60 * settings.minutes)
        progress("implicit", min(1.0, share))
    log.info("coordinate network: %d steps in %.0f s", step, time.perf_counter() - begin)
    return field, step


def _variation(values: torch.Tensor, rounding: float) -> torch.Tensor:
    here = values[:-1, :-1, :-1]
    steps = (values[1:, :-1, :-1] - here, values[:-1, 1:, :-1] - here, values[:-1, :-1, 1:] - here)
    return (sum((s.square() for s in steps), start=torch.tensor(rounding**2))).sqrt().mean()
