"""Deformed crops: smooth, whole, in place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.training.deformation import RandDeformd


def coordinates(patch: tuple[int, ...]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in patch], indexing="ij"))


def deformed(transform: RandDeformd, patch: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each voxel comes from, as the image and as the labels say."""
    transform.set_random_state(seed=seed)
    where = coordinates(patch)
    out = transform({"image": where.clone(), "label": where.clone()})
    return np.asarray(out["image"]), np.asarray(out["label"])


@settings(max_examples=40, deadline=None)
@given(
    patch=st.tuples(*[st.integers(1, 48)] * 3), spacing=st.tuples(*[st.floats(0.5, 6)] * 3),
    deform_mm=st.floats(0.5, 50), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_tissue_neither_folds_nor_leaves_whatever_is_drawn(
    patch: tuple[int, int, int], spacing: tuple[float, float, float], deform_mm: float, seed: int
) -> None:
    transform = RandDeformd(["image"], ["label"], patch, spacing, deform_mm=deform_mm, prob=1)
    image, labels = deformed(transform, patch, seed)
    still = coordinates(patch).numpy()
    assert np.isfinite(image).all()
    move = (image - still) * np.reshape(spacing, (3, 1, 1, 1))
    assert np.abs(move).max() <= deform_mm * 1.001 + 1e-3
    for axis in range(3):
        ends = np.take(move[axis], [0, -1], axis)
        assert np.abs(ends).max() < 1e-3, "nothing comes from outside"
    assert np.abs(labels - image).max() <= 0.5 + 1e-3, "labels go with the image, rounded to voxels"
    if min(patch) > 2:
        slopes = np.stack([np.stack(np.gradient(component)) for component in image.astype(float)])
        assert np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))).min() > -1e-4


def test_a_field_of_nothing_moves_nothing() -> None:
    for patch, spacing in (
        ((96, 96, 8), (1.0, 1.0, 5.0)),
        ((120, 64, 64), (3.75, 3.75, 3.75)),
        ((64, 2, 1), (3, 3, 3)),
    ):
        transform = RandDeformd(["image"], ["label"], patch, spacing, deform_mm=1e-9, prob=1)
        image, labels = deformed(transform, patch, seed=4)
        assert np.allclose(image, coordinates(patch), atol=1e-4)
        assert np.array_equal(labels, coordinates(patch))


def test_a_large_patch_is_moved_in_every_direction_and_often_enough() -> None:
    patch, spacing = (112, 80, 80), (2.5, 2.5, 2.5)
    transform = RandDeformd(["image"], ["label"], patch, spacing, deform_mm=10, prob=0.5)
    moved = []
    for seed in range(40):
        image, _ = deformed(transform, patch, seed)
        move = (image - coordinates(patch).numpy()) * 2.5
        if np.abs(move).max() > 0:
            moved.append([np.abs(component).max() for component in move])
            again, _ = deformed(transform, patch, seed)
            assert np.array_equal(again, image)
    assert 12 <= len(moved) <= 28
    assert (np.mean(moved, axis=0) > 5).all()


def test_thick_slices_move_as_one() -> None:
    transform = RandDeformd(["image"], ["label"], (128, 128, 10), (1.0, 1.0, 5.0), deform_mm=8, prob=1)
    image, _ = deformed(transform, (128, 128, 10), seed=1)
    move = image - coordinates((128, 128, 10)).numpy()
    assert np.abs(move[:2]).max() > 2
    assert np.abs(move[2]).max() < 1e-4
    assert np.ptp(move[:2], axis=3).max() == pytest.approx(0, abs=1e-4)
