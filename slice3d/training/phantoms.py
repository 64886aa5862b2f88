"""Stylised phantoms as training cases: organs of one HU each, exact truth, a different patient for every seed."""

from __future__ import annotations

import numpy as np

from slice3d.training.cases import Case
from slice3d.training.structures import NO_ORGAN, VALUES

SEED_OFFSET = 5000
"""Keeps the training patients apart from every seed that the samples and the tests use."""


def phantom_case(seed: int, *, spacing_mm: tuple[float, float, float]) -> Case:
    """A random `TorsoPhantom` with random noise, axes growing to R, A, S."""
    from slice3d.resample import apply_moves, axis_moves
    from slice3d.samples.torso import TorsoPhantom, torso

    rng = np.random.default_rng([seed, SEED_OFFSET])
    made = torso(
        TorsoPhantom.random(SEED_OFFSET + seed), seed=seed, spacing_mm=spacing_mm, noise_hu=float(rng.uniform(3, 25))
    )
    axes, flips = axis_moves(made.volume.grid, "RAS")
    table = np.zeros(256, np.uint8)
    for value, name in made.segmentation.names.items():
        table[value] = VALUES[name] if name != "body" else NO_ORGAN
    labels = table[apply_moves(made.segmentation.labels, axes, flips)]
    image = np.ascontiguousarray(apply_moves(made.volume.data, axes, flips))
    return Case(f"phantom-{seed}", image.astype(np.int16), np.ascontiguousarray(labels), spacing_mm)
