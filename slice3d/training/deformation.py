"""A smooth random deformation of crops: organs of other shapes than the few patients have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform, RandomizableTransform

_NODES_MM = 50.0


class RandDeformd(RandomizableTransform, MapTransform):
    """Move tissue by up to `deform_mm` along each axis, differently at nodes some 50 mm apart, in a share `prob` of crops.

    images, labels: keys of (C, i, j, k) tensors of size `patch`, sampled linearly and by the nearest voxel. Between nodes
    moves are interpolated linearly. At the ends of an axis nothing moves along it, so nothing from outside is needed.
    Nodes lie at least six times `deform_mm` apart: then the moves' derivatives along the three axes add up to less than 1,
    and tissue does not fold whatever is drawn. (MONAI's `RandSmoothDeform` folds, enlarges a little besides and fails for
    some sizes.) An axis too short for three nodes has no moves along it and the same ones all through.
    """

    def __init__(
        self, images: Sequence[str], labels: Sequence[str], patch: Sequence[int], spacing_mm: Sequence[float], *,
        deform_mm: float, prob: float = 0.5,
    ) -> None:  # fmt: skip
        MapTransform.__init__(self, [*images, *labels])
        RandomizableTransform.__init__(self, prob)
        self.modes: dict[Hashable, str] = {**dict.fromkeys(images, "bilinear"), **dict.fromkeys(labels, "nearest")}
        self.most = torch.tensor([deform_mm / s for s in spacing_mm])[:, None, None, None]
        apart = max(_NODES_MM, 6 * deform_mm)
        sides = [(n - 1) * s for n, s in zip(patch, spacing_mm, strict=True)]
        self.nodes = tuple(int(side / apart) + 1 if side >= 2 * apart else 1 for side in sides)
        self.still = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in patch], indexing="ij"))
        self.last = torch.tensor([max(1.0, n - 1.0) for n in patch])
        self.moves = torch.zeros(3, *self.nodes)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and how."""
        super().randomize(None)
        if self._do_transform:
            moves = self.R.uniform(-1, 1, (3, *self.nodes)).astype(np.float32)
            for axis in range(3):
                along = np.moveaxis(moves[axis], axis, 0)
                along[[0, -1]] = 0
            self.moves = torch.from_numpy(moves) * self.most

    def field(self) -> torch.Tensor:
        """(3, i, j, k) moves in voxels."""
        size = self.still.shape[1:]
        return torch.nn.functional.interpolate(self.moves[None], size=size, mode="trilinear", align_corners=True)[0]

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """The crop, deformed or as it was."""
        self.randomize()
        out = dict(data)
        if self._do_transform:
            grid = (self.still + self.field()).movedim(0, -1) * (2 / self.last) - 1
            for key, mode in self.modes.items():
                out[key] = torch.nn.functional.grid_sample(
                    out[key][None], grid.flip(-1)[None], mode=mode, padding_mode="border", align_corners=True
                )[0]
        return out
