"""What is taken off a segmentation, what is filled, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from slice3d.grid import Grid
from slice3d.inference.postprocess import clean
from slice3d.volume import Segmentation
from tests.inference.builders import coarse_grid
from tests.inference.builders import coarse_labels as labels


def test_second_component_of_an_organ_goes_and_is_reported() -> None:
    two = np.array(labels({1: (slice(10, 40), slice(10, 40), slice(5, 25))}).labels)
    two[45:55, 10:20, 5:15] = 1
    two[44:56, 9:21, 15] = 2
    result = clean(replace(labels({}), labels=two), ["liver"])
    assert not (result.labels[45:55, 10:20, 5:15] == 1).any()
    assert (result.labels[10:40, 10:40, 5:25] == 1).all()
    assert [f.code for f in result.findings] == ["parts-dropped"]


def test_crumbs_take_the_label_around_them() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    array[5:55, 5:45, 5:35] = 2
    array[10:30, 10:30, 10:30] = 1
    array[45, 40, 30] = 1
    result = clean(replace(labels({}), labels=array), ["liver"])
    assert result.labels[45, 40, 30] == 2
    assert result.findings == ()


def test_lesions_keep_all_their_parts_and_bones_their_large_ones() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    for n in range(3):
        array[5 + 15 * n : 10 + 15 * n, 5:10, 5:10] = 3
    assert clean(replace(labels({}), labels=array), ["liver_tumor"]).labels.sum() == array.sum()
    array = np.where(array == 3, 2, 0).astype(np.uint8)
    assert clean(replace(labels({}), labels=array), ["bone"]).labels.sum() == array.sum()


def test_a_rib_beside_a_whole_skeleton_stays_and_a_speck_goes() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    array[5:35, 5:35, 5:35] = 2  # 1620 ml, a hundredth is 16
    array[45:50, 10:20, 10:12] = 2  # 6 ml
    array[45:50, 30:42, 20] = 2  # 3.6 ml
    cleaned = clean(replace(labels({}), labels=array), ["bone"]).labels
    assert (cleaned[45:50, 10:20, 10:12] == 2).all()
    assert (cleaned[45:50, 30:42, 20] == 0).all()


def test_a_speck_beside_an_aorta_goes_and_a_second_length_of_it_stays() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    array[10:20, 10:20, :] = 1  # 4000 voxels
    array[40:46, 20:30, 30:40] = 1  # 600: the ascending part, where the image does not hold the arch
    array[30:35, 40:45, 5:9] = 1  # 100: contrast medium in the heart
    cleaned = clean(Segmentation(array, coarse_grid(), {1: "aorta"}), ["aorta"])
    assert np.count_nonzero(cleaned.labels) == 4600
    assert [f.code for f in cleaned.findings] == ["parts-dropped"]


@pytest.fixture(scope="module")
def vessel() -> dict[str, np.ndarray]:
    """A tube along k of 18 mm, an artery of 7 mm that leaves it, a kidney where that ends, and what may become of the tube."""
    i, j, k = (n * s for n, s in zip(np.indices((50, 50, 40)), SPACING, strict=True))
    axis = np.hypot(i - 30, j - 25)
    return {
        "tube": axis < 9,
        "branch": (np.hypot(j - 25, k - 50) < 3.5) & (i > 30) & (i < 60),
        "kidney": np.linalg.norm([i - 66, j - 25, k - 50], axis=0) < 8,
        "child": axis < 3.5,
        "narrowed": axis < np.where(np.abs(k - 50) < 8, 3.5, 9),
        "tapering": axis < np.where(k < 40, 9, 4),
        "far": np.abs(i - 30) > 14,
    }


SPACING = (1.5, 1.2, 2.5)


def aorta(mask: np.ndarray, kidney: np.ndarray | None = None) -> Segmentation:
    array = np.where(mask, 1, 2).astype(np.uint8)
    if kidney is not None:
        array[kidney & ~mask] = 3
    return Segmentation(
        array, Grid(mask.shape, np.diag([-1.5, 1.2, 2.5, 1.0])), {1: "aorta", 2: "body", 3: "kidney_left"}
    )


def test_arteries_that_leave_an_aorta_become_body_and_it_is_said(vessel: dict[str, np.ndarray]) -> None:
    made = aorta(vessel["tube"] | vessel["branch"], vessel["kidney"])
    result = clean(made, ["aorta", "kidney_left"])
    (finding,) = result.findings
    assert finding.code == "thin-parts-dropped"
    assert finding.severity == "info"
    gone = (made.labels == 1) & (result.labels != 1)
    assert finding.details["dropped_ml"] == pytest.approx(np.count_nonzero(gone) * 0.0045, abs=0.01)
    assert (result.labels[vessel["tube"]] == 1).mean() > 0.995, "to both ends of the image"
    assert (result.labels[vessel["branch"] & vessel["far"]] != 1).all()
    assert (result.labels[gone] == 2).all(), "no kidney grows by an artery"
    again = clean(result, ["aorta", "kidney_left"])
    assert np.array_equal(again.labels, result.labels)


def test_a_blob_on_the_end_of_a_branch_goes_with_it(vessel: dict[str, np.ndarray]) -> None:
    result = clean(aorta(vessel["tube"] | vessel["branch"] | vessel["kidney"]), ["aorta"])
    assert ndimage.label(result.labels == 1, structure=np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize("shape", ["child", "narrowed", "tapering"])
def test_a_thin_aorta_stays_whole(vessel: dict[str, np.ndarray], shape: str) -> None:
    made = aorta(vessel[shape])
    result = clean(made, ["aorta"])
    assert np.array_equal(result.labels, made.labels)
    assert not result.findings


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (4.5, 4.5, 4.5), (0.8, 0.8, 10.0), (1.0, 5.0, 1.0)])
@pytest.mark.parametrize("diameter", [11.0, 14.0, 24.0])
def test_a_whole_aorta_is_not_gnawed_at(spacing: tuple[float, float, float], diameter: float) -> None:
    shape = tuple(int(n / s) for n, s in zip((60, 60, 120), spacing, strict=True))
    i, j, _ = (n * s for n, s in zip(np.indices(shape), spacing, strict=True))
    for shift in (0.0, 0.37, 0.71):
        tube = np.hypot(i - 30 - shift, j - 30 - 1.3 * shift) < diameter / 2
        array = np.where(tube, 1, 2).astype(np.uint8)
        made = Segmentation(array, Grid(shape, np.diag([*spacing, 1.0])), {1: "aorta", 2: "body"})  # type: ignore[arg-type]
        kept = np.count_nonzero(clean(made, ["aorta"]).labels == 1)
        assert kept > 0.97 * np.count_nonzero(tube)


def test_a_flattened_aorta_keeps_its_sides() -> None:
    shape = (50, 40, 130)
    i, j, _ = (n * 0.8 for n in np.indices(shape))
    flat = ((i - 20) / 14) ** 2 + ((j - 16) / 7) ** 2 < 1
    made = Segmentation(
        np.where(flat, 1, 2).astype(np.uint8), Grid(shape, np.diag([0.8, 0.8, 0.8, 1])), {1: "aorta", 2: "body"}
    )
    assert np.array_equal(clean(made, ["aorta"]).labels, made.labels)


def test_holes_smaller_than_a_crumb_are_filled_with_the_label_around_them() -> None:
    array = np.full((50, 40, 40), 4, np.uint8)
    array[5:45, 5:35, 5:35] = 1
    array[30:40, 10:30, 10:30] = 3
    small, larger, vein = (slice(10, 13),) * 3, (slice(20, 24), *(slice(20, 23),) * 2), range(10, 30)
    array[small] = 4  # 0.027 ml
    array[larger] = 0  # 0.036 ml
    array[35, 20, 20] = 4  # in the lesion
    array[15, 30, 30] = 5  # something else that is looked for
    array[25, vein, vein] = 4  # 20 voxels, one across the corner of the next
    array[26, vein, vein] = 4
    array[20, 5:8, 7] = 4  # open to the outside
    names = {1: "liver", 2: "bone", 3: "liver_tumor", 4: "body", 5: "nodule"}
    made = Segmentation(array, Grid(array.shape, np.eye(4)), names, groups={"liver": (1, 3), "body": (1, 2, 3, 4, 5)})
    result = clean(made, ["liver"])
    filled = np.zeros(array.shape, bool)
    filled[small] = filled[35, 20, 20] = True
    assert np.array_equal(result.labels != array, filled)
    assert (result.labels[small] == 1).all()
    assert result.labels[35, 20, 20] == 3, "a lesion stays whole"
    assert result.findings == ()
    # with others, and once more
    every = clean(made, ["bone", "liver", "liver_tumor", "body"])
    assert np.array_equal(every.mask("liver"), result.mask("liver"))
    assert np.array_equal(clean(every, ["bone", "liver", "liver_tumor", "body"]).labels, every.labels)


def test_marrow_sinuses_and_canals_of_bones_are_not_filled() -> None:
    array = np.full((20, 20, 20), 2, np.uint8)
    array[5:15, 5:15, 5:15] = 1
    array[10, 10, 10] = 2
    made = Segmentation(array, Grid((20, 20, 20), np.eye(4)), {1: "bone", 2: "body"}, groups={"body": (1, 2)})
    assert np.array_equal(clean(made, ["bone", "body"]).labels, array)


def test_a_hole_that_a_stray_voxel_of_another_organ_sat_in_is_filled_too() -> None:
    array = np.full((40, 40, 40), 4, np.uint8)
    array[5:25, 5:35, 5:35] = 1
    array[28:38, 5:35, 5:35] = 2
    array[10, 10, 10] = 2
    made = Segmentation(array, Grid((40, 40, 40), np.eye(4)), {1: "liver", 2: "spleen", 4: "body"})
    for order in (["liver", "spleen"], ["spleen", "liver"]):
        assert clean(made, order).labels[10, 10, 10] == 1


def test_each_kidney_keeps_its_largest_part_when_both_are_asked_for() -> None:
    array = np.zeros((60, 50, 40), np.uint8)
    array[10:20, 10:20, 10:20] = 1
    array[40:50, 10:20, 10:20] = 2
    array[30:33, 40:43, 30:33] = 1  # a thirty-seventh of it
    made = Segmentation(array, coarse_grid(), {1: "kidney_left", 2: "kidney_right"}, groups={"kidneys": (1, 2)})
    one, both = clean(made, ["kidney_left", "kidney_right"]), clean(made, ["kidneys"])
    assert np.count_nonzero(both.labels) == 2000
    assert np.array_equal(one.labels, both.labels)
    assert [f.code for f in both.findings] == [f.code for f in one.findings] == ["parts-dropped"]
