"""Marrow that turns to fat: bones of scans of the young made into those of the old, on CT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.training.noise import smooth_noise

Array = NDArray[Any]


def fade_marrow(hu: Array, truth: Array, bone: int, spacing_mm: Sequence[float], rng: np.random.Generator) -> None:
    """Darken the inside of bones in patches of some centimetres, in place; labels, noise and the compact shell stay.

    hu: (i, j, k) float32. truth: (i, j, k) labels; voxels of `bone` change. spacing_mm: of the voxels. With age marrow
    becomes fat (first lumbar vertebra under 110 HU in osteoporosis: Pickhardt et al. 2013,
    doi:10.7326/0003-4819-158-8-201304160-00003), in the wings of a sacrum until it is as dark as what surrounds the bone.
    Few real scans with outlined bones show it; a network that has not seen it leaves such bones out.
    """
    from scipy import ndimage

    inside = truth == bone
    if not inside.any():
        return
    mean = float(np.mean(spacing_mm))
    share = 1.5 * (smooth_noise(truth.shape, rng.uniform(20, 60) / mean, rng) - rng.uniform(-1.0, 1.2)) + 0.5
    share = np.clip(share, 0, 1) * inside * rng.uniform(0.5, 1.0)
    share[inside & ~ndimage.binary_erosion(inside)] *= rng.uniform(0.1, 0.6)
    smooth = ndimage.gaussian_filter(hu, 0.7)
    # what is compact bone, bright at this resolution, stays
    marrow = np.clip((rng.uniform(350, 700) - smooth) / 250, 0.1, 1)
    target = rng.uniform(-95, 60) + rng.uniform(0, 40) * smooth_noise(truth.shape, 12 / mean, rng)
    hu += (share * marrow * np.minimum(target - smooth, 0)).astype(hu.dtype)
