"""Marching cubes against VTK's flying edges and scipy's filters, which do the same in other ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from scipy.spatial import cKDTree

from slice3d.surface import _vtk, marching, topology
from slice3d.surface.implicit import KEPT, low_pass, low_pass_kernels
from slice3d.surface.region import MARGIN

SPACING = np.array([0.7, 0.8, 1.0])


def blobs(seed: int, shape: tuple[int, int, int] = (13, 17, 19)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    rng = np.random.default_rng(seed)
    inner = tuple(slice(MARGIN, n - MARGIN) for n in shape)
    mask[inner] = rng.random(mask[inner].shape) < rng.uniform(0.1, 0.9)
    mask[shape[0] // 2, shape[1] // 2, shape[2] // 2] = True
    return mask


def flying_edges(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    contour = vtkFlyingEdges3D()
    contour.SetInputData(_vtk.image(np.ascontiguousarray(values)))
    contour.SetValue(0, 0.0)
    contour.ComputeNormalsOff()
    contour.Update()
    points, faces = _vtk.arrays(contour.GetOutput())
    return points[:, ::-1], faces[:, ::-1]


def same(
    one: tuple[NDArray[np.float64], NDArray[np.int64]], two: tuple[NDArray[np.float64], NDArray[np.int64]]
) -> bool:
    """Whether two meshes have the same triangles, whatever the order; vertices to float32's accuracy."""
    if len(one[0]) != len(two[0]) or len(one[1]) != len(two[1]):
        return False
    distance, partner = cKDTree(two[0]).query(one[0])
    if len(np.unique(partner)) != len(partner) or distance.max() > 2e-5:
        return False
    rows = []
    for faces in (partner[one[1]], two[1]):
        start = faces.argmin(axis=1)
        turned = np.stack([faces[np.arange(len(faces)), (start + n) % 3] for n in range(3)], axis=1)
        rows.append(turned[np.lexsort(turned.T)])
    return bool(np.array_equal(*rows))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), fortran=st.booleans(), cutoff=st.sampled_from([1.5, 2.8, 7.0, 12.0]))
def test_triangles_of_a_mask_are_those_of_its_filtered_field(seed: int, fortran: bool, cutoff: float) -> None:
    mask = blobs(seed)
    field = low_pass(mask, SPACING, cutoff)
    assert ((field > 0) == mask).all()
    kernels = low_pass_kernels(SPACING, cutoff)
    expected = flying_edges(field)
    if fortran:
        # seen with its axes turned round, a cell's polygons may be divided along their other diagonals
        points, triangles = flying_edges(field.T)
        expected = points[:, ::-1], triangles[:, ::-1]
    found = marching.of_mask(np.asfortranarray(mask) if fortran else mask, kernels, KEPT, margin=MARGIN)
    assert same(found, expected)
    assert same(marching.of_field(field), flying_edges(field))
    half = topology.edges(found[1], len(found[0]))
    assert (half.count == 2).all()
    assert not half.balance.any()
    assert topology.piece_volumes(*found, np.zeros(len(found[1]), dtype=np.int64), 1)[0] > 0


def test_more_faces_than_expected_are_all_made() -> None:
    # every second voxel: eight times the faces of the array's surface
    mask = np.zeros((40, 40, 40), dtype=bool)
    mask[4:36:2, 4:36:2, 4:36:2] = True
    vertices, faces = marching.of_mask(mask, low_pass_kernels(np.ones(3), 1.0), KEPT, margin=MARGIN)
    assert len(faces) == 8 * 16**3
    assert len(vertices) == 6 * 16**3


@pytest.mark.parametrize("cutoff", [1.0, 2.8, 9.0])
def test_the_filter_is_scipys(cutoff: float) -> None:
    mask = blobs(3, (11, 9, 14))
    mask[:3] = True  # beyond the array the edge goes on
    expected = mask.astype(np.float64)
    for axis, kernel in enumerate(low_pass_kernels(SPACING, cutoff)):
        expected = correlate1d(expected, kernel, axis=axis, mode="nearest")
    np.testing.assert_allclose(marching.filtered(mask, low_pass_kernels(SPACING, cutoff)), expected, atol=2e-6)


def test_more_faces_than_there_was_room_for() -> None:
    field = np.full((22, 25, 28), -1, dtype=np.float32)
    noise = np.random.default_rng(3).normal(size=(20, 23, 26))
    field[1:-1, 1:-1, 1:-1] = np.where(np.abs(noise) < 0.1, 0.1, noise)
    vertices, faces = marching.of_field(field)
    assert len(faces) > 4 * (22 * 25 + 25 * 28 + 28 * 22)
    assert same((vertices, faces), flying_edges(field))
