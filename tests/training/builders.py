"""Tiny MSD data sets: two ellipsoid organs of their own HU in a noisy box, different in every case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_dataset(
    folder: Path, *, cases: int = 6, modality: str = "CT", shape: tuple[int, int, int] = (40, 34, 28)
) -> Path:
    import nibabel as nib

    spacing = np.array((2.0, 2.2, 3.1))
    training = []
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for n in range(cases):
        rng = np.random.default_rng([n, 17])
        image, labels = phantom(rng, shape, spacing)
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # LPS, as scanners write
        affine[:3, 3] = rng.uniform(-50, 50, 3)
        for sub, array in (("imagesTr", image[::-1, ::-1].astype(np.int16)), ("labelsTr", labels[::-1, ::-1])):
            nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), folder / sub / f"case_{n}.nii.gz")
        training.append({"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"})
    description = {
        "name": "blobs", "modality": {"0": modality}, "labels": {"0": "background", "1": "Big organ", "2": "small"},
        "licence": "CC0-1.0", "numTraining": cases, "training": training,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def phantom(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The big organ lies towards R, the small bright one towards L: sides can be told apart."""
    at = np.stack(np.meshgrid(*[np.arange(s) for s in shape], indexing="ij"), -1) * spacing
    size = np.array(shape) * spacing
    labels = np.zeros(shape, np.uint8)
    for value, centre, radii in ((1, (0.65, 0.5, 0.5), (17, 19, 24)), (2, (0.25, 0.45, 0.5), (9, 12, 14))):
        middle = np.array(centre) * size + rng.uniform(-5, 5, 3)
        labels[(((at - middle) / (np.array(radii) * rng.uniform(0.85, 1.15, 3))) ** 2).sum(-1) < 1] = value
    means = np.array([-80.0, 60.0, 150.0])
    return means[labels] + rng.normal(0, 20, shape), labels
