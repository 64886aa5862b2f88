"""The 2D network that self-training fits: it adds to an image of thick slices what lies in between."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slice3d.superres import interpolate
from slice3d.superres.consistency import correction
from slice3d.superres.profile import SliceProfile, slice_operator


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He 2016), without normalisation (Lim 2017, EDSR)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.second(torch.relu(self.first(x)))
        return out


class SliceNetwork(nn.Module):
    """(B, 1, L, n) lines of thick slices → (B, L, n · factor): the fine samples at offsets 0 … factor − 1 of each
    slice.

    All convolutions run at the coarse resolution and the last one writes `factor` samples per slice (sub-pixel
    convolution, Shi 2016), which is what makes training on a CPU in minutes possible.
    """

    def __init__(self, factor: int, *, channels: int = 64, blocks: int = 5) -> None:
        super().__init__()
        self.factor = factor
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Sequential(*[_Block(channels) for _ in range(blocks)])
        self.tail = nn.Conv2d(channels, factor, 3, padding=1)
        for block in self.body:
            nn.init.normal_(block.second.weight, std=1e-3)  # type: ignore[arg-type, union-attr]
            nn.init.zeros_(block.second.bias)  # type: ignore[arg-type, union-attr]
        nn.init.normal_(self.tail.weight, std=1e-3)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The detail in units of the input."""
        y = self.tail(self.body(self.head(x)))
        b, r, lines, n = y.shape
        fine: torch.Tensor = y.permute(0, 2, 3, 1).reshape(b, lines, n * r)
        return fine


class Frame:
    """The linear part around the network for `count` slices: B-spline, consistency, and the null space.

    fine samples = base(slices) + N(network(slices)), where base agrees with the slices and N removes from the network's
    answer everything the slices would see, so that every answer agrees with the slices (null-space network, Schwab
    2019)."""

    def __init__(self, count: int, factor: int, slice_step_mm: float, profile: SliceProfile) -> None:
        self.slices_mm = np.arange(count) * slice_step_mm
        self.fine_mm = np.arange(count * factor) * (slice_step_mm / factor)
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
