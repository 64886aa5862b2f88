"""Lesions put into organs that have none, on CT: painted ones and real scans alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.training.noise import smooth_noise

Array = NDArray[Any]


def insert_lesions(
    hu: Array, truth: Array, organ: int, lesion: int, spacing_mm: Sequence[float], rng: np.random.Generator
) -> None:
    """One to three lesions of about 4 to 30 mm radius, in place, where an organ has none: HU are added, texture stays.

    hu: (i, j, k) float32. truth: (i, j, k) uint8 labels; voxels of `organ` become `lesion`. An organ of less than 50 ml, or
    one that has lesions, is left as it is. Real scans without any would otherwise teach that only painted ones have them.
    """
    from scipy import ndimage

    inside = np.flatnonzero(truth == organ)
    if len(inside) * float(np.prod(spacing_mm)) < 50_000.0 or (truth == lesion).any():
        return
    spacing = np.asarray(spacing_mm, float)
    for _ in range(int(rng.integers(1, 4))):
        centre = np.array(np.unravel_index(int(rng.choice(inside)), truth.shape))
        radius = float(np.exp(rng.uniform(np.log(4.0), np.log(30.0))))
        reach = np.ceil(2.5 * radius / spacing).astype(int) + 1
        low, high = np.maximum(0, centre - reach), np.minimum(truth.shape, centre + reach + 1)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        at = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
        axes = np.exp(rng.normal(0, 0.2, 3).clip(-0.4, 0.4))
        away = np.linalg.norm((at - centre) * spacing / axes, axis=-1)
        wobble = 0.18 * smooth_noise(away.shape, max(3.0, radius / float(spacing.mean())), rng)
        away /= 1 + wobble.clip(-0.5, 0.5)
        share = np.clip((radius - away) / float(spacing.mean()) + 0.5, 0, 1) * (truth[box] == organ)
        parts, _ = ndimage.label(share > 0)
        share *= parts == parts[tuple(centre - low)]
        offset = rng.uniform(-75, -20) if rng.random() < 0.75 else rng.uniform(20, 70)
        profile = np.ones(away.shape)
        # a rim, weaker or the other way round; as bright as the organ it could not be seen
        if rng.random() < 0.3:
            profile[away > 0.75 * radius] = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
        if rng.random() < 0.3:  # a centre that is dead
            profile[away < 0.5 * radius] *= rng.uniform(0.5, 1.6)
        hu[box] += (offset * profile * share).astype(hu.dtype)
        truth[box][share > 0.5] = lesion
