from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slice3d import Grid
from slice3d.errors import GeometryError
from tests.builders import grids, oblique, oblique_grid

POINTS = st.lists(st.tuples(*[st.floats(-20, 20)] * 3), min_size=1, max_size=5)


@given(grids(), POINTS)
def test_world_and_index_are_inverse(grid: Grid, points: list[tuple[float, float, float]]) -> None:
    assert np.allclose(grid.to_index(grid.to_world(points)), points, atol=1e-6)


@given(grids(), POINTS)
def test_world_positions_agree_with_nibabel(grid: Grid, points: list[tuple[float, float, float]]) -> None:
    assert np.allclose(grid.to_world(points), nib.affines.apply_affine(grid.affine, points))


@given(grids())
def test_spacing_and_orientation_agree_with_nibabel(grid: Grid) -> None:
    assert np.allclose(grid.spacing_mm, nib.affines.voxel_sizes(grid.affine))
    columns = np.abs(grid.directions)
    clear = columns.max(axis=0) > 0.75  # nibabel breaks near-ties by another rule
    if clear.all():
        assert tuple(grid.orientation) == nib.aff2axcodes(grid.affine)
        letters = {"left side": "L", "right side": "R", "back": "P", "front": "A", "lower end": "I", "upper end": "S"}
        assert [letters[grid.end(axis, True)] for axis in range(3)] == list(nib.aff2axcodes(grid.affine))
        flipped = "".join(grid.orientation).translate(str.maketrans("LRPAIS", "RLAPSI"))
        assert "".join(letters[grid.end(axis, False)] for axis in range(3)) == flipped


@given(grids())
def test_voxel_volume_is_the_product_of_spacings_when_orthogonal(grid: Grid) -> None:
    assert grid.is_orthogonal
    assert np.isclose(grid.voxel_volume_mm3, np.prod(grid.spacing_mm))


def test_sheared_grid_has_the_volume_of_the_parallelepiped() -> None:
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[1, 2] = 4.0  # gantry tilt: slices shifted along y
    grid = Grid((3, 4, 5), affine)
    assert not grid.is_orthogonal
    assert grid.voxel_volume_mm3 == pytest.approx(30.0)
    assert grid.spacing_mm[2] == pytest.approx(np.hypot(4, 5))


@given(grids(), st.tuples(*[st.integers(-3, 3)] * 3), st.tuples(*[st.integers(4, 8)] * 3))
def test_crop_keeps_world_positions(grid: Grid, start: tuple[int, int, int], stop: tuple[int, int, int]) -> None:
    cropped = grid.crop(start, stop)
    assert cropped.shape == tuple(b - a for a, b in zip(start, stop, strict=True))
    assert np.allclose(cropped.to_world((1, 2, 0)), grid.to_world(np.add(start, (1, 2, 0))))


@given(grids(), st.tuples(*[st.floats(0.3, 5.0)] * 3))
def test_with_spacing_covers_the_same_field_of_view(grid: Grid, spacing: tuple[float, float, float]) -> None:
    other = grid.with_spacing(spacing)
    assert np.allclose(other.spacing_mm, spacing)
    assert np.allclose(other.to_world((-0.5,) * 3), grid.to_world((-0.5,) * 3), atol=1e-6)
    assert all(
        (new >= old - 1e-2 * s and new < old + s + 1e-6) or new == s
        for new, old, s in zip(other.size_mm, grid.size_mm, spacing, strict=True)
    )


@given(grids())
def test_matches_itself_and_not_a_shifted_one(grid: Grid) -> None:
    assert grid.matches(grid)
    shifted = grid.affine.copy()
    shifted[2, 3] += 0.5
    assert not grid.matches(Grid(grid.shape, shifted))
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert hash(pickle.loads(pickle.dumps(grid))) == hash(grid)


def test_describes_itself() -> None:
    axial = Grid((512, 512, 134), np.diag([-1.07, -1.07, 3.0, 1.0]))
    assert repr(axial) == "Grid(512×512×134, 1.07×1.07×3 mm, LPS)"
    assert oblique_grid(left_handed=True).orientation == "LAS"


def test_affine_is_read_only_and_owned() -> None:
    affine = oblique()
    grid = Grid((5, 7, 11), affine)
    affine[0, 0] = 99
    assert grid.affine[0, 0] != 99
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 1


@pytest.mark.parametrize(
    ("shape", "affine", "says"),
    [
        ((0, 2, 3), np.eye(4), "positive"),
        ((2, 3), np.eye(4), "three"),
        ((2, 3, 4), np.eye(3), "(4, 4)"),
        ((2, 3, 4), np.diag([1, 1, 0, 1]), "singular"),
        ((2, 3, 4), np.full((4, 4), np.nan), "NaN"),
        ((2, 3, 4), np.diag([1, 1, 1, 2]), "last row"),
        ((2, 3, 4), np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    ],
)
def test_refuses_what_is_no_geometry(shape: tuple[int, ...], affine: np.ndarray, says: str) -> None:
    with pytest.raises(GeometryError) as caught:
        Grid(shape, affine)  # type: ignore[arg-type]
    assert says in str(caught.value)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (-1, 1, 1), (np.nan, 1, 1), (1, 1)])
def test_refuses_impossible_spacing(spacing: tuple[float, ...]) -> None:
    with pytest.raises(GeometryError, match="spacing"):
        oblique_grid().with_spacing(spacing)


def test_equal_grids_have_equal_hashes_also_with_negative_zero() -> None:
    affine = oblique_grid().affine.copy()
    affine[0, 3] = 0.0
    negative = affine.copy()
    negative[0, 3] = -0.0
    assert hash(Grid((5, 7, 11), affine)) == hash(Grid((5, 7, 11), negative))
