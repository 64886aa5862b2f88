"""Smooth random fields, of which texture, patches and wobbly shapes are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


def smooth_noise(shape: tuple[int, ...], cell: float, rng: np.random.Generator) -> Array:
    """(i, j, k) float32 noise of about unit variance whose features are about `cell` voxels wide."""
    cells = [max(2, int(n / cell) + 2) for n in shape]
    coarse = torch.from_numpy(rng.standard_normal((1, 1, *cells)).astype(np.float32))
    out = torch.nn.functional.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return (out / 0.55).numpy()
