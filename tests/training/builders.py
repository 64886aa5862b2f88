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


HEAD = {"white_left": 2, "cortex_left": 3, "core_left": 10, "white_right": 41, "cortex_right": 42, "core_right": 49}
"""Structures of `head_map` that are to be found; 24 (fluid) and 500 (skin) are painted only."""


def head_map(seed: int = 0, *, shape: tuple[int, int, int] = (46, 54, 42), spacing_mm: float = 3.0) -> np.ndarray:
    """Nested ellipsoids with the proportions of a head, every one its own: FreeSurfer-like numbers, left at low i."""
    rng = np.random.default_rng([seed, 5])
    at = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape], indexing="ij"), -1)
    grow = rng.uniform(0.9, 1.1, 3)

    def inside(radii: tuple[float, ...], centre: tuple[float, ...] = (0.0, 0.0, 0.0)) -> np.ndarray:
        return (((at - np.array(centre)) / (np.array(radii) * grow)) ** 2).sum(-1) < 1

    labels = np.zeros(shape, np.int16)
    labels[inside((62, 75, 58))] = 500
    labels[inside((54, 67, 50))] = 24
    labels[inside((50, 63, 46))] = 3
    labels[inside((38, 50, 34))] = 2
    for side in (-1, 1):
        labels[inside((12, 16, 12), (side * 17.0, -4.0, 2.0))] = 10
    right = at[..., 0] > 0
    for left_number, right_number in ((2, 41), (3, 42), (10, 49)):
        labels[(labels == left_number) & right] = right_number
    return labels


def write_label_maps(folder: Path, *, count: int = 5, spacing_mm: float = 3.0) -> Path:
    """Head maps as files, axes as scanners write them, with a `dataset.json` that names `HEAD`."""
    import nibabel as nib

    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
        labels = np.ascontiguousarray(head_map(n, spacing_mm=spacing_mm)[::-1, ::-1])
        nib.save(nib.Nifti1Image(labels, affine), folder / f"head_{n}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"name": "heads", "labels": HEAD, "licence": "CC0-1.0"}))
    return folder


def write_hippocampi(data: Path, *, cases: int) -> Path:
    """Crops as MSD task 4 has them, below `data/hippocampus`: a bright rod, its front half the anterior part."""
    import nibabel as nib

    for sub in ("imagesTr", "labelsTr"):
        (data / "hippocampus" / sub).mkdir(parents=True)
    for n in range(cases):
        rng = np.random.default_rng([n, 4])
        shape = np.array((34, 48, 32)) + rng.integers(-2, 3, 3)
        at = np.stack(np.meshgrid(*[np.arange(s) for s in shape], indexing="ij"), -1)
        middle = shape / 2 + rng.uniform(-2, 2, 3)
        inside = (((at - middle) / (7, 17, 6)) ** 2).sum(-1) < 1
        labels = (inside * np.where(at[..., 1] > middle[1], 1, 2)).astype(np.uint8)
        image = (400 + 500 * inside + rng.normal(0, 40, shape)).astype(np.float32)
        affine = np.eye(4)
        affine[:3, 3] = rng.uniform(-50, 50, 3)
        for sub, array in (("imagesTr", image), ("labelsTr", labels)):
            nib.save(nib.Nifti1Image(array, affine), data / "hippocampus" / sub / f"hippocampus_{n:03}.nii.gz")
    return data
