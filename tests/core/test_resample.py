from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

from slice3d import Grid, Segmentation, Volume
from slice3d.errors import GeometryError, InputError
from slice3d.resample import (
    apply_moves,
    axis_moves,
    moved_grid,
    reorient,
    resample,
    resample_labels,
    undo_moves,
)
from tests.builders import grids, oblique_grid

ORIENTATIONS = [
    "".join(letters) for order in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*order)
]


def _linear_field(grid: Grid) -> np.ndarray:
    """A function of world position that linear interpolation reproduces exactly."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    return grid.to_world(index) @ (0.3, -1.7, 0.9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reorient_keeps_every_voxel_in_its_place(orientation: str) -> None:
    grid = oblique_grid()
    turned = reorient(Volume(_linear_field(grid), grid), orientation)
    assert turned.grid.orientation == orientation
    assert np.allclose(turned.data, _linear_field(turned.grid))


@given(grids())
def test_moves_undo(grid: Grid) -> None:
    data = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    for orientation in ("RAS", "SPL", "AIL"):
        moves = axis_moves(grid, orientation)
        there = apply_moves(data, *moves)
        assert there.shape == moved_grid(grid, *moves).shape
        assert np.array_equal(undo_moves(there, *moves), data)


def test_refuses_an_orientation_that_is_none() -> None:
    with pytest.raises(GeometryError, match="RLS"):
        reorient(Volume(np.zeros((5, 7, 11)), oblique_grid()), "RLS")


@settings(max_examples=50)
@given(grids(max_size=7), grids(max_size=7))
def test_linear_interpolation_reproduces_a_linear_field_between_any_two_grids(source: Grid, target: Grid) -> None:
    padded = source.crop((-4, -4, -4), tuple(n + 4 for n in source.shape))
    out = resample(Volume(_linear_field(padded), padded), grid=target, order=1, fill=-9e4)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), axis=-1)
    at = padded.to_index(target.to_world(index))
    inside = ((at >= 0) & (at <= np.array(padded.shape) - 1)).all(axis=-1)
    outside = ((at < -0.501) | (at > np.array(padded.shape) - 0.499)).any(axis=-1)
    truth = _linear_field(target)
    assert np.allclose(out.data[inside], truth[inside], rtol=1e-4, atol=0.05)
    assert (out.data[outside] == -9e4).all()


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_same_grid_gives_the_same_values(order: int) -> None:
    grid = oblique_grid()
    data = np.random.default_rng(3).normal(size=grid.shape).astype(np.float32)
    assert np.allclose(resample(Volume(data, grid), grid=grid, order=order).data, data, atol=1e-4)


def test_labels_are_never_mixed() -> None:
    grid = oblique_grid((9, 8, 7))
    labels = np.random.default_rng(0).choice([0, 3, 200], size=grid.shape).astype(np.uint8)
    seg = Segmentation(labels, grid, {3: "spleen", 200: "aorta"})
    out = resample_labels(seg, grid=grid.with_spacing((0.4, 0.5, 0.9)))
    assert set(np.unique(out.labels)) == {0, 3, 200}
    assert out.labels.dtype == np.uint8
    assert out.volume_ml("spleen") == pytest.approx(seg.volume_ml("spleen"), rel=0.25)


def test_flipped_target_is_resampled_and_not_mirrored() -> None:
    grid = oblique_grid()
    data = np.random.default_rng(1).normal(size=grid.shape).astype(np.float32)
    flipped = reorient(Volume(data, grid), "LPI")
    assert np.allclose(resample(Volume(data, grid), grid=flipped.grid).data, flipped.data, atol=1e-5)


def test_refuses_an_unknown_order() -> None:
    with pytest.raises(InputError, match="order is 7"):
        resample(Volume(np.zeros((5, 7, 11)), oblique_grid()), grid=oblique_grid(), order=7)


@pytest.mark.parametrize("dtype", [bool, np.float16, ">i2", np.uint8])
def test_nearest_neighbour_keeps_the_type(dtype: str | type) -> None:
    grid = oblique_grid()
    volume = Volume(np.arange(5 * 7 * 11).reshape(grid.shape).astype(dtype), grid)
    same = resample(volume, grid=grid, order=0)
    assert same.data.dtype == volume.data.dtype
    assert np.array_equal(same.data, volume.data)
