"""Training pairs from in-plane lines: thick slices as a profile makes them, and the truth between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.superres import interpolate
from slice3d.superres.network import RATE
from slice3d.superres.profile import SliceProfile, slice_operator

PATCH_LINES = 48


class Thick:
    """(…, width) lines of pixels → `count` thick slices and the fine samples between them, as two matrices.

    low: (width, count). high: (width, count · RATE), at the positions of `network.Frame`. phase: where the first slice
    lies between two pixels, 0 to 1."""

    def __init__(
        self, count: int, pixel_mm: float, slice_step_mm: float, profile: SliceProfile, phase: float = 0.5
    ) -> None:
        margin = margin_mm(slice_step_mm, profile)
        self.width = width_of(count, pixel_mm, slice_step_mm, profile)
        pixels = np.arange(self.width) * pixel_mm
        thick = margin + pixel_mm * (phase - 0.5) + np.arange(count) * slice_step_mm
        fine = thick[0] + (np.arange(count * RATE) - (RATE - 1) / 2) * (slice_step_mm / RATE)
        low = slice_operator(thick, pixels, profile).matrix.T
        high = interpolate.bspline(pixels, fine).T
        self.low, self.high = (torch.from_numpy(np.ascontiguousarray(m, dtype=np.float32)) for m in (low, high))

    def pairs(self, lines: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        """(…, width) pixels → (…, count) slices and (…, count · RATE) fine samples."""
        # in torch: numpy's own threads and torch's get in each other's way
        tensor = torch.from_numpy(lines)
        return tensor @ self.low, tensor @ self.high


def margin_mm(slice_step_mm: float, profile: SliceProfile) -> float:
    """What a line must hold beyond the outer slices' centres."""
    return 1.5 * profile.fwhm_mm + slice_step_mm / 2


def width_of(count: int, pixel_mm: float, slice_step_mm: float, profile: SliceProfile) -> int:
    """Pixels of a line that holds `count` slices."""
    return math.ceil((count * slice_step_mm + 2 * margin_mm(slice_step_mm, profile)) / pixel_mm)


class Patches:
    """Patches with structure in them, from (k, y, x) images, along either in-plane axis."""

    def __init__(self, images: NDArray[np.floating], rng: np.random.Generator) -> None:
        self.images = [images, images.transpose(0, 2, 1)]
        self.rng = rng
        self.centres = _informative(images)

    def draw(self, size: int, lines: int, width: int, axis: int) -> NDArray[np.float32]:
        """(size, lines, width) float32, lines along in-plane axis `axis` (0: x, 1: y), turned at random."""
        image = self.images[axis]
        out = np.empty((size, lines, width), dtype=np.float32)
        for n, (k, y, x) in enumerate(self.centres[self.rng.integers(len(self.centres), size=size)]):
            across, along = (y, x) if axis == 0 else (x, y)
            a = _start(across, lines, image.shape[1], self.rng)
            b = _start(along, width, image.shape[2], self.rng)
            patch = image[k, a : a + lines, b : b + width]
            out[n, :, : patch.shape[1]] = patch
            out[n, :, patch.shape[1] :] = patch[:, -1:]
        if self.rng.random() < 0.5:
            out = out[:, :, ::-1]
        if self.rng.random() < 0.5:
            out = out[:, ::-1]
        return np.ascontiguousarray(out)


def scale_of(values: NDArray[np.floating]) -> tuple[float, float]:
    """What to subtract and divide by: the lowest percentile (air becomes 0) and a quarter of the range above it."""
    low, high = np.percentile(values, [1, 99.5])
    return float(low), float(max(high - low, 1e-6) / 4)


def _informative(images: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N, 3) voxels (k, y, x) with structure around them; all voxels when the image is flat."""
    from scipy import ndimage

    small = np.asarray(images[:, ::4, ::4], dtype=np.float32)
    detail = ndimage.uniform_filter(np.abs(np.gradient(small, axis=1)) + np.abs(np.gradient(small, axis=2)), (1, 3, 3))
    chosen = np.argwhere(detail > 0.3 * detail.mean())
    if len(chosen) == 0:
        chosen = np.argwhere(np.ones_like(detail, dtype=bool))
    out: NDArray[np.int64] = chosen * np.array([1, 4, 4])
    return out


def _start(centre: int, length: int, size: int, rng: np.random.Generator) -> int:
    offset = int(centre) - int(rng.integers(length // 4, max(length // 4 + 1, 3 * length // 4)))
    return int(np.clip(offset, 0, max(0, size - length)))


def fits(shape: Sequence[int], lines: int, width: int) -> bool:
    """Whether an in-plane shape holds whole patches either way."""
    return min(shape) >= lines and min(shape) >= width
