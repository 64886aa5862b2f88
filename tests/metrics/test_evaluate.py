"""The table: values for empty, missed and invented structures, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import slice3d
from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.metrics import Convention, boundary_iou, dice, hausdorff_mm, surface_distances
from slice3d.volume import Segmentation
from tests.metrics.shapes import ball, blobs, centred

GRID = Grid.from_spacing((24, 21, 15), (0.7, 1.3, 4.0), (5, -7, 11))
NAMES = {1: "liver", 4: "spleen"}


def segmentation(*masks, grid=GRID, names=NAMES):
    labels = np.zeros(grid.shape, np.uint8)
    for value, mask in zip(names, masks, strict=True):
        labels[mask] = value
    return Segmentation(labels, grid, names)


EMPTY = np.zeros(GRID.shape, bool)
BLOB = blobs(GRID.shape, 3)
OTHER = np.roll(BLOB, (1, 1, 1), (0, 1, 2))


def test_equal_masks_are_perfect():
    row = slice3d.evaluate(segmentation(BLOB, EMPTY), segmentation(BLOB, EMPTY)).loc["liver"]
    for name in ("dice", "jaccard", "sensitivity", "precision", "volume_similarity", "nsd", "boundary_iou"):
        assert row[name] == 1
    for name in ("hd_mm", "hd95_mm", "assd_mm", "masd_mm", "volume_difference_ml"):
        assert row[name] == pytest.approx(0, abs=1e-6)
    strict = slice3d.evaluate(segmentation(BLOB, EMPTY), segmentation(BLOB, EMPTY), tolerance_mm=0).loc["liver"]
    assert (strict["nsd"], strict["boundary_iou"]) == (1, 1)
    assert row["volume_ml"] == pytest.approx(BLOB.sum() * 0.7 * 1.3 * 4.0 / 1000)


def test_counts_by_hand():
    a, b = EMPTY.copy(), EMPTY.copy()
    a[2:6, 3, 4] = True
    b[3:9, 3, 4] = True
    row = slice3d.evaluate(segmentation(a, EMPTY), segmentation(b, EMPTY)).loc["liver"]
    assert row["dice"] == pytest.approx(2 * 3 / 10)
    assert row["jaccard"] == pytest.approx(3 / 7)
    assert row["sensitivity"] == pytest.approx(3 / 6)
    assert row["precision"] == pytest.approx(3 / 4)
    assert row["volume_similarity"] == pytest.approx(1 - 2 / 10)
    assert row["volume_difference_percent"] == pytest.approx(-100 / 3)
    assert row["volume_difference_ml"] == pytest.approx(-2 * 0.7 * 1.3 * 4.0 / 1000)


@pytest.mark.parametrize("convention", ["mesh", "deepmind", "monai", "simpleitk", "nnunet"])
def test_missed_invented_and_both_empty(convention):
    full, none = segmentation(BLOB, EMPTY), segmentation(EMPTY, EMPTY)
    missed = slice3d.evaluate(none, full, convention=convention).loc["liver"]
    invented = slice3d.evaluate(full, none, convention=convention).loc["liver"]
    nothing = slice3d.evaluate(none, none, convention=convention).loc["liver"]
    ratios = ["dice", "jaccard", "sensitivity", "precision", "volume_similarity", "nsd", "boundary_iou"]
    distances = ["hd_mm", "hd95_mm", "assd_mm", "masd_mm"]
    for row, status in ((missed, "missed"), (invented, "invented")):
        assert row["status"] == status
        assert (row[ratios] == 0).all()
        assert all(math.isinf(row[name]) for name in distances)
    assert nothing["status"] == "both empty"
    assert nothing[ratios + distances].isna().all()
    assert nothing["volume_difference_ml"] == 0


def test_structure_that_the_prediction_does_not_name_is_missed():
    only_liver = Segmentation(segmentation(BLOB, EMPTY).labels, GRID, {1: "liver"})
    table = slice3d.evaluate(only_liver, segmentation(BLOB, OTHER & ~BLOB))
    assert list(table.index) == ["liver", "spleen"]
    assert table.loc["spleen", "status"] == "missed"


def test_label_values_may_differ_and_groups_count():
    grouped = Segmentation(segmentation(BLOB, OTHER & ~BLOB).labels, GRID, NAMES, groups={"both": (1, 4)})
    renamed = Segmentation((BLOB | OTHER).astype(np.int32) * 3000, GRID, {3000: "both"})
    assert slice3d.evaluate(renamed, grouped, "both").loc["both", "dice"] == 1


def test_one_pass_over_many_structures_equals_one_by_one():
    a, b = segmentation(BLOB, OTHER & ~BLOB), segmentation(OTHER, BLOB & ~OTHER)
    together = slice3d.evaluate(a, b)
    for name in together.index:
        alone = slice3d.evaluate(a, b, name)
        assert together.loc[[name]].equals(alone)


def test_the_border_of_the_field_of_view_closes_a_structure():
    full = np.ones(GRID.shape, bool)
    inner = EMPTY.copy()
    inner[1:-1, 1:-1, 1:-1] = True
    row = slice3d.evaluate(segmentation(inner, EMPTY), segmentation(full, EMPTY)).loc["liver"]
    assert row["hd_mm"] == pytest.approx(np.linalg.norm(GRID.spacing_mm), rel=0.3)
    assert row["boundary_iou"] < 1


def test_refuses_other_grids_and_resamples_on_request():
    target = centred(40, (1, 1, 1))
    finer = centred(40, (0.5, 1, 2))
    a, b = (segmentation(ball(g, 15), np.zeros(g.shape, bool), grid=g) for g in (finer, target))
    with pytest.raises(GeometryError, match="resample"):
        slice3d.evaluate(a, b)
    row = slice3d.evaluate(a, b, on_grid="resample").loc["liver"]
    assert row["dice"] > 0.95
    assert row["hd_mm"] < 2
    with pytest.raises(InputError, match="on_grid"):
        slice3d.evaluate(a, b, on_grid="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance_mm": -1}, "tolerance"),
        ({"tolerance_mm": float("nan")}, "tolerance"),
        ({"tolerance_mm": {"liver": 1.0}}, "spleen"),
        ({"convention": "best"}, "nnunet"),
        ({"structures": ["kidney"]}, "liver, spleen"),
        ({"structures": []}, "at least one"),
        ({"convention": "mesh", "structures": "liver", "tolerance_mm": float("inf")}, "finite"),
    ],
)
def test_bad_options_say_what_is_expected(options, message):
    pair = segmentation(BLOB, EMPTY), segmentation(OTHER, EMPTY)
    with pytest.raises(InputError, match=message) as error:
        slice3d.evaluate(*pair, **options)
    assert "\n" not in str(error.value)


def test_no_structure_in_common():
    with pytest.raises(InputError, match="in common"):
        slice3d.evaluate(segmentation(BLOB, EMPTY, names={1: "a", 2: "b"}), segmentation(BLOB, EMPTY))


def test_masks_must_be_masks():
    with pytest.raises(InputError, match="threshold"):
        dice(BLOB.astype(float), BLOB)
    with pytest.raises(InputError, match="NaN"):
        dice(np.full(GRID.shape, np.nan), BLOB)
    with pytest.raises(InputError, match="other than 0 and 1"):
        dice(BLOB.astype(int) * 3, BLOB)
    with pytest.raises(InputError, match="same grid"):
        dice(BLOB[1:], BLOB)
    with pytest.raises(InputError, match="boundary width"):
        boundary_iou(BLOB, BLOB, GRID, width_mm=0)
    for percentile in (0, -5, 101, float("nan")):
        with pytest.raises(InputError, match="percentile"):
            Convention("mesh", (percentile,))


def test_sheared_grids_are_measured_in_millimetres_or_refused():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 1.0
    grid = Grid((20, 20, 20), affine)
    a, b = np.zeros((2, 20, 20, 20), bool)
    a[5, 5, 5] = True
    b[5, 5, 9] = True  # four steps of (1, 0, 2) mm
    d = surface_distances(a, b, grid)
    assert hausdorff_mm(d) == pytest.approx(4 * np.hypot(1, 2), abs=0.5)
    with pytest.raises(GeometryError, match="mesh"):
        surface_distances(a, b, grid, convention="monai")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_by_its_contour(axis):
    shape = np.insert([60, 60], axis, 1)
    grid = Grid.from_spacing(shape, np.insert([1.0, 1.0], axis, 7.0))
    index = np.stack(np.indices(shape), axis=-1) - 30
    index[..., axis] = 0
    radius = np.linalg.norm(index, axis=-1)
    d = surface_distances(radius <= 20, radius <= 12, grid)
    assert d.to_reference_mm == pytest.approx(np.full(len(d.to_reference_mm), 8.0), abs=0.75)
    assert np.average(d.to_reference_mm, weights=d.weights) == pytest.approx(8, abs=0.1)
    row = boundary_iou(radius <= 20, radius <= 20, grid, width_mm=2.0)
    assert row == 1


def test_importing_is_light():
    code = (
        "import sys, slice3d.metrics; print([m for m in ('numba','torch','pandas','scipy','vtk') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
