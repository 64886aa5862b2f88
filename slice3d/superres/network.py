"""The 2D network behind every learning method: it adds to a plane of thick slices what lies in between."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slice3d.superres import interpolate
from slice3d.superres.consistency import correction
from slice3d.superres.profile import SliceProfile, slice_operator

# Fine samples that the network writes per slice, whatever the factor: finer ones are interpolated between them.
RATE = 8


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He 2016), without normalisation (Lim 2017, EDSR); the condition scales
    and shifts what lies between them (Perez 2018, FiLM)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.second.weight, std=1e-3)
        for tensor in (self.second.bias, self.film.weight, self.film.bias):
            nn.init.zeros_(tensor)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        out: torch.Tensor = x + self.second(torch.relu(self.first(x) * (1 + scale) + shift))
        return out


class SliceNetwork(nn.Module):
    """(B, L, n) planes of thick slices and (1 or B, 3) conditions → (B, L, n · RATE) detail at the positions of `Frame`.

    Lines are taken two by two, and every convolution runs at the coarse resolution; the last one writes all fine samples
    of a slice (sub-pixel convolution, Shi 2016). That makes training on a CPU in minutes possible. The condition, see
    `condition_of`, lets one network serve every slice distance and in-plane spacing.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.settings = {"channels": channels, "blocks": blocks}
        self.head = nn.Conv2d(2, channels, 3, padding=1)
        self.embed = nn.Linear(3, 32)
        self.body = nn.ModuleList([_Block(channels, 32) for _ in range(blocks)])
        self.tail = nn.Conv2d(channels, 2 * RATE, 3, padding=1)
        nn.init.normal_(self.tail.weight, std=1e-3)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, planes: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The detail in units of the input."""
        b, lines, n = planes.shape
        x = torch.cat([planes, planes[:, -1:]], dim=1) if lines % 2 else planes
        x = x.reshape(b, -1, 2, n).transpose(1, 2).contiguous(memory_format=torch.channels_last)
        x = self.head(x)
        embedded = torch.relu(self.embed(condition))
        for block in self.body:
            x = block(x, embedded)
        y = self.tail(x).reshape(b, 2, RATE, -1, n)
        fine: torch.Tensor = y.permute(0, 3, 1, 4, 2).reshape(b, -1, n * RATE)
        return fine[:, :lines]


def condition_of(line_mm: float, slice_step_mm: float, profile: SliceProfile) -> tuple[float, float, float]:
    """What the network is told: slice distance in lines (log2, from 4), profile width in slice distances, its kind; held
    within what the shipped weights were trained on."""
    lines = min(max(slice_step_mm / line_mm, 2.0), 9.0)
    width = min(max(profile.fwhm_mm / slice_step_mm, 0.5), 1.15)
    return math.log2(lines) - 2.0, 4.0 * (width - 0.8), float(profile.kind == "rect")


class Frame:
    """The linear part around the network for `count` slices: B-spline, consistency, and the null space.

    fine samples = base(slices) + N(network(slices)), where base agrees with the slices and N removes from the network's
    answer everything the slices would see, so that every answer agrees with the slices (null-space network, Schwab
    2019). The RATE samples of a slice lie evenly around its centre, so that turning a plane round turns the answer."""

    def __init__(self, count: int, slice_step_mm: float, profile: SliceProfile) -> None:
        self.slices_mm = np.arange(count) * slice_step_mm
        self.fine_mm = (np.arange(count * RATE) - (RATE - 1) / 2) * (slice_step_mm / RATE)
        operator = slice_operator(self.slices_mm, self.fine_mm, profile)
        k = correction(operator)
        spline = interpolate.bspline(self.slices_mm, self.fine_mm)
        base = spline + k @ (np.eye(count) - operator.matrix @ spline)
        self.base = _tensor(base.T)
        self.null = _tensor((np.eye(len(self.fine_mm)) - k @ operator.matrix).T)

    def compose(self, slices: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """(…, n) slices and (…, m) detail → (…, m) fine samples."""
        return slices @ self.base + detail.float() @ self.null


def _tensor(matrix: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
