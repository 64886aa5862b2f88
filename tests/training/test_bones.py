"""Whole bones from a network's guess: marrow, borders, and what the eye says against it."""

from dataclasses import replace

import numpy as np
import pytest

from slice3d.training.bones import SEEN, Skeleton, whole_bones
from slice3d.training.cases import Case
from slice3d.training.structures import LABELS, SOFT_TISSUE, SOFT_TISSUE_OR_BONE, VALUES

BONE = VALUES["bone"]
SPACING = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def trunk() -> tuple[Case, np.ndarray, dict[str, np.ndarray]]:
    """A body with a vertebra whose marrow is as dark as muscle, its canal, a vessel full of contrast medium and a breastbone."""
    shape = (60, 50, 30)
    i, j, k = np.indices(shape)
    body = ((i - 30) / 26) ** 2 + ((j - 25) / 21) ** 2 < 1
    cut = (k >= 6) & (k < 24)
    parts = {
        "vertebra": (np.hypot(i - 30, j - 18) < 9.5) & cut,
        "canal": np.hypot(i - 30, j - 15) < 3,
        "vessel": np.hypot(i - 14, j - 30) < 2.5,
        "breastbone": (np.abs(i - 30) < 6) & (np.abs(j - 42) < 2) & cut,
    }
    hu = np.full(shape, -1000.0)
    hu[body] = 40
    hu[parts["vertebra"]] = 60
    rim = (np.hypot(i - 30, j - 18) >= 8) | (k < 8) | (k >= 22) | (np.hypot(i - 30, j - 15) < 4.5)
    shell = parts["vertebra"] & rim
    hu[shell] = 650
    hu[parts["canal"]] = 20
    hu[parts["vessel"]] = 700
    hu[parts["breastbone"] & (np.abs(i - 30) > 3)] = 250
    parts["vertebra"] &= ~parts["canal"]
    labels = np.where(body, SOFT_TISSUE, 0).astype(np.uint8)
    labels[(hu > 130) & body] = SOFT_TISSUE_OR_BONE
    labels[(hu > 450) & body] = BONE
    shares = np.zeros((len(LABELS) + 1, *shape), np.float32)
    shares[VALUES["body"]] = 0.4
    seen = parts["vertebra"] & ((j > 18) | shell) | parts["vessel"]
    shares[BONE, seen] = 0.6
    return Case("x", hu.astype(np.int16), labels, SPACING), shares, parts


def test_marrow_is_bone_and_canal_is_not(trunk: tuple[Case, np.ndarray, dict[str, np.ndarray]]) -> None:
    case, shares, parts = trunk
    found = whole_bones(case, shares, Skeleton(not_bone=(((11, 18), (27, 34), (0, 30)),))) == BONE
    overlap = 2 * np.count_nonzero(found & parts["vertebra"]) / (found.sum() + parts["vertebra"].sum())
    assert overlap > 0.9
    i, j, _ = np.indices(found.shape)
    assert not found[np.hypot(i - 30, j - 15) < 2].any(), "the canal, but for a voxel at its rim"


def test_marrow_is_bone_in_the_first_and_last_slice_too(trunk: tuple[Case, np.ndarray, dict[str, np.ndarray]]) -> None:
    case, shares, parts = trunk
    middle = (slice(None), slice(None), slice(10, 20))
    cut = Case("cut", case.image[middle], case.labels[middle], SPACING)
    found = whole_bones(cut, shares[..., 10:20], Skeleton(not_bone=(((11, 18), (27, 34), (0, 30)),))) == BONE
    for end in (0, -1):
        assert found[..., end][parts["vertebra"][middle][..., end]].mean() > 0.9


def test_what_the_eye_says_decides(trunk: tuple[Case, np.ndarray, dict[str, np.ndarray]]) -> None:
    case, shares, parts = trunk
    vessel = ((11, 18), (27, 34), (0, 30))
    plain = whole_bones(case, shares, Skeleton())
    assert (plain[parts["vessel"]] == BONE).mean() > 0.5, "without the eye, contrast medium passes for bone"
    barred = whole_bones(case, shares, Skeleton(not_bone=(vessel,)))
    assert (barred[parts["vessel"]] == SOFT_TISSUE).all()
    undecided = whole_bones(case, shares, Skeleton(open=(vessel,)))
    assert (undecided[parts["vessel"]] == SOFT_TISSUE_OR_BONE).all()
    flat = whole_bones(case, shares, Skeleton(flat=(((20, 40), (38, 46), (0, 30)),)))
    assert (flat[parts["breastbone"]] == BONE).mean() > 0.3 > (plain[parts["breastbone"]] == BONE).mean()
    spongy = whole_bones(case, shares, Skeleton(spongy=((((25, 36), (39, 45), (6, 24)), 100.0),)))
    assert (spongy == BONE)[parts["breastbone"] & (case.image > 200)].mean() > 0.8


def test_organs_and_air_are_left_alone(trunk: tuple[Case, np.ndarray, dict[str, np.ndarray]]) -> None:
    case, shares, parts = trunk
    labels = case.labels.copy()
    labels[parts["vessel"]] = VALUES["aorta"]
    out = whole_bones(replace(case, labels=labels), shares, Skeleton())
    assert (out[parts["vessel"]] == VALUES["aorta"]).all()
    assert np.array_equal(out == 0, labels == 0)


def test_every_ct_without_labels_was_looked_at() -> None:
    from slice3d.training.cases import UNLABELLED

    assert set(SEEN) == set(UNLABELLED)
