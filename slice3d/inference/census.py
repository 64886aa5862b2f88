"""What the network found where: voxels, centre and extent of every channel, counted while planes stream by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slice3d.inference.case import Case
from slice3d.models.package import ModelPackage
from slice3d.volume import Volume

if TYPE_CHECKING:
    import torch

Point = tuple[float, float, float]

_LOCATED_ML = 20.0  # a structure smaller than this says nothing about the orientation


class Census:
    """Counts, plane by plane, what the network found where: voxels, centre and extent of each channel."""

    def __init__(self, channels: int, activation: str, first: int = 0, threshold: float = 0.0) -> None:
        self.activation, self.threshold = activation, threshold
        # per channel: voxels, and sums of their (slab, row, column) indices
        self.moments = np.zeros((channels, 4))
        self.first, self.taken = first, first
        self.extent: dict[int, NDArray[np.int64]] = {}

    def take(self, scores: torch.Tensor, best: NDArray[np.int32] | None, origin: tuple[int, int]) -> None:
        """scores: (H, W, C) of the next plane; best: its strongest channels (softmax); origin: of its (H, W)."""
        from slice3d.inference import pixels

        height, width, channels = scores.shape
        moments = np.zeros((channels, 3))
        extent = np.tile(np.array([height, width, -1, -1]), (channels, 1))
        if best is not None:
            pixels.census(best, moments, extent)
        else:
            on = (scores > self.threshold).cpu().numpy()
            for channel in range(channels):
                mine = np.where(on[..., channel], 0, -1).astype(np.int32)
                pixels.census(mine, moments[channel : channel + 1], extent[channel : channel + 1])
        count = moments[:, 0]
        sums = [count, count * self.taken, moments[:, 1] + count * origin[0], moments[:, 2] + count * origin[1]]
        self.moments += np.stack(sums, 1)
        for channel in np.flatnonzero(count).tolist():
            top, left, bottom, right = extent[channel]
            here = np.array([
                [self.taken, top + origin[0], left + origin[1]],
                [self.taken + 1, bottom + 1 + origin[0], right + 1 + origin[1]],
            ])  # fmt: skip
            old = self.extent.get(channel, here)
            self.extent[channel] = np.stack([np.minimum(old[0], here[0]), np.maximum(old[1], here[1])])
        self.taken += 1

    def centres(self) -> dict[int, tuple[float, NDArray[np.float64]]]:
        """Channel → (network voxels, mean (slab, row, column) index) of what the model found there."""
        found = np.flatnonzero(self.moments[:, 0])
        return {int(c): (float(self.moments[c, 0]), self.moments[c, 1:] / self.moments[c, 0]) for c in found}

    def box(self, channels: Iterable[int]) -> NDArray[np.int64] | None:
        """(2, 3): smallest box around some channels, in network voxels; None when there is nothing of them."""
        boxes = [self.extent[c] for c in channels if c in self.extent]
        if not boxes:
            return None
        return np.stack([np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)])


def located(
    census: Census, case: Case, volume: Volume, package: ModelPackage
) -> tuple[dict[str, Point], dict[str, float]]:
    """(middle in world RAS mm, volume in ml) of each structure, asked for or not, that the model found in more than a few voxels."""
    frame, order = case.frame, case.order
    value_of = package.regions if package.activation == "sigmoid" else tuple(range(len(census.moments)))
    by_value = {value_of[channel]: found for channel, found in census.centres().items()}
    out: dict[str, Point] = {}
    volumes_ml: dict[str, float] = {}
    for name in package.structures:
        parts = [by_value[v] for v in package.values(name) if v in by_value]
        count = sum(n for n, _ in parts)
        ml = count * float(np.prod(frame.spacing_mm)) / 1000.0
        if ml < _LOCATED_ML:
            continue
        index = sum((n * where for n, where in parts), np.zeros(3)) / count
        moved = np.empty(3)
        for place, axis in enumerate(order):
            moved[axis] = frame.start[axis] + (index[place] + 0.5) * frame.step[axis] - 0.5
        study = np.empty(3)
        for axis, (source, flip) in enumerate(zip(frame.axes, frame.flips, strict=True)):
            study[source] = frame.study_shape[axis] - 1 - moved[axis] if flip else moved[axis]
        x, y, z = volume.grid.to_world(study)
        out[name], volumes_ml[name] = (float(x), float(y), float(z)), ml
    return out, volumes_ml
