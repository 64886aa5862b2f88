"""Distances with closed-form answers, and properties that no choice of definition may break."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.grid import Grid
from slice3d.metrics import assd_mm, boundary_iou, hausdorff_mm, masd_mm, mask_surface, nsd, surface_distances
from tests.metrics.shapes import ball, blobs, box, centred, points

centres = st.tuples(*[st.floats(-0.5, 0.5)] * 3)


@settings(max_examples=12, deadline=None)
@given(radius=st.floats(7.5, 30), centre=centres)
def test_concentric_spheres_anywhere(radius, centre):
    grid = centred(2 * (radius + 16), (1, 1, 1))
    d = surface_distances(ball(grid, radius, centre), ball(grid, radius + 15, centre), grid)
    assert masd_mm(d) == pytest.approx(15, abs=0.05)
    assert assd_mm(d) == pytest.approx(15, abs=0.05)
    assert hausdorff_mm(d) == pytest.approx(15, abs=0.05)
    assert masd_mm(d) <= hausdorff_mm(d, percentile=95) <= hausdorff_mm(d)


@settings(max_examples=12, deadline=None)
@given(radius=st.floats(9, 20), centre=centres)
def test_a_circle_in_one_slice(radius, centre):
    grid = Grid.from_spacing((45, 45, 1), (1, 1, 6))
    index = np.indices(grid.shape).astype(float)
    mask = np.hypot(index[0] - 22 - centre[0], index[1] - 22 - centre[1]) <= radius
    x = mask_surface(mask, grid.affine[:3, :3], flat_axes=(2,)).points
    away = np.hypot(x[:, 0] - 22 - centre[0], x[:, 1] - 22 - centre[1])
    assert away == pytest.approx(np.full(len(x), radius), abs=0.2)  # a circle has fewer pixels to pin it
    assert away.mean() == pytest.approx(radius, abs=0.15)


@settings(max_examples=10, deadline=None)
@given(axes=st.tuples(*[st.floats(9, 20)] * 3), centre=centres, seed=st.integers(0, 1000))
def test_turned_ellipsoids_anywhere(axes, centre, seed):
    from scipy.spatial.transform import Rotation

    grid = centred(44, (1, 1, 1))
    turned = (points(grid) - centre) @ Rotation.random(random_state=seed).as_matrix()
    x = mask_surface(((turned / axes) ** 2).sum(axis=-1) <= 1, np.eye(3)).points + grid.origin_mm
    x = (x - centre) @ Rotation.random(random_state=seed).as_matrix() / axes
    # distance to first order: the value over its gradient
    away = ((x**2).sum(axis=1) - 1) / (2 * np.linalg.norm(x / axes, axis=1))
    assert np.abs(away).max() < 0.1


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.9, 0.9, 2.0)])
@pytest.mark.parametrize("normal", [(1, 1.93, 3.21), (-3, 1.1, 0.52), (0.2, 0.11, 1), (1, -1, 1)])
def test_a_plane_at_any_angle_is_found(normal, spacing):
    normal = np.divide(normal, np.linalg.norm(normal))
    grid = centred(90, spacing)
    x = mask_surface(points(grid) @ normal < 0.3, grid.affine[:3, :3]).points + grid.origin_mm
    far = (np.abs(x) < 22).all(axis=1)  # of the border of the array, where the half space ends in an edge
    assert far.sum() > 500
    assert np.abs(x[far] @ normal - 0.3).max() < 0.08 * max(spacing)


@pytest.mark.parametrize("seed", range(3))
def test_turned_cubes_are_no_worse_than_voxels(seed):
    from scipy.spatial.transform import Rotation

    grid = centred(66, (1, 1, 1))
    turned = points(grid) @ Rotation.random(random_state=seed).as_matrix()
    small, large = (np.abs(turned).max(axis=-1) <= half for half in (10, 18))
    error = {
        name: abs(hausdorff_mm(surface_distances(small, large, grid, convention=name)) - 8 * 3**0.5)
        for name in ("mesh", "deepmind")
    }
    assert error["mesh"] < max(0.3, error["deepmind"])


def test_tori_and_capsules():
    grid = centred(60, (1, 1, 1))
    x, y, z = np.moveaxis(points(grid), -1, 0)
    tube = np.hypot(np.hypot(x, y) - 18, z)
    d = surface_distances(tube <= 5, tube <= 9, grid)
    assert masd_mm(d) == pytest.approx(4, abs=0.05)
    assert hausdorff_mm(d) == pytest.approx(4, abs=0.4)  # no quadric, and only partly smooth enough for one
    axis = np.array([1, 2, 3]) / 14**0.5
    nearest = np.clip(points(grid) @ axis, -15, 15)[..., None] * axis
    away = np.linalg.norm(points(grid) - nearest, axis=-1)
    d = surface_distances(away <= 6, away <= 12, grid)
    assert hausdorff_mm(d) == pytest.approx(6, abs=0.3)


@pytest.mark.parametrize("radius", [10, 20])
@pytest.mark.parametrize("shift", [(15, 0, 0), (0, -15, 0), (0, 0, 15), (9, 12, 0)])
def test_equal_spheres_15_mm_apart(radius, shift):
    grid = centred(2 * (radius + 17), (1, 1, 1))
    d = surface_distances(ball(grid, radius), ball(grid, radius, shift), grid)
    assert hausdorff_mm(d) == pytest.approx(15, abs=0.05)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5.0)])
def test_parallel_planes(spacing):
    grid = Grid.from_spacing((40, 30, 12), spacing)
    a, b = np.zeros((2, 40, 30, 12), bool)
    a[:, :, :5] = True
    b[:, :, :8] = True
    d = surface_distances(a, b, grid)
    gap = 3 * spacing[2]
    x = mask_surface(b, grid.affine[:3, :3]).points
    face = (x[:, 2] > x[:, 2].max() - 1.0) & (np.abs(x[:, :2] - np.mean(x[:, :2], axis=0)) < 3).all(1)
    assert face.sum() > 20
    assert d.to_prediction_mm[face] == pytest.approx(np.full(face.sum(), gap), abs=0.03)
    assert hausdorff_mm(d) == pytest.approx(gap, abs=0.02 * gap)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.8, 1.0, 2.5)])
def test_nested_boxes_meet_at_the_corner(spacing):
    grid = centred(60, spacing)
    small, large = box(grid, 10.1), box(grid, 20.1)
    faces = [np.ptp(np.argwhere(m)[:, a]) * s / 2 for m in (small, large) for a, s in enumerate(spacing)]
    gap = np.linalg.norm(np.subtract(faces[3:], faces[:3]))
    assert hausdorff_mm(surface_distances(small, large, grid)) == pytest.approx(gap, abs=0.3 * max(spacing))


def test_single_voxels_and_thin_sheets_have_a_surface():
    grid = Grid.from_spacing((20, 20, 20), (0.7, 1.0, 3.0))
    a, b = np.zeros((2, 20, 20, 20), bool)
    a[4, 5, 6] = True
    b[14, 5, 6] = True
    d = surface_distances(a, b, grid)
    assert hausdorff_mm(d) == pytest.approx(7.0, abs=1e-4)
    assert d.weights.sum() > 0
    assert masd_mm(surface_distances(a, a, grid)) == pytest.approx(0, abs=1e-6)
    sheet = np.zeros((20, 20, 20), bool)
    sheet[:, 8, :] = True
    area = mask_surface(sheet, grid.affine[:3, :3]).areas_mm2.sum()
    assert area == pytest.approx(2 * (20 * 0.7) * (20 * 3.0), rel=0.15)


def test_touching_shapes_keep_their_own_surface():
    grid = Grid.from_spacing((30, 20, 20), (1, 1, 1))
    a, b = np.zeros((2, 30, 20, 20), bool)
    a[5:15, 5:15, 5:15] = True
    b[15:25, 5:15, 5:15] = True
    d = surface_distances(a, b, grid)
    assert d.to_reference_mm.min() == pytest.approx(0, abs=0.05)
    assert hausdorff_mm(d) == pytest.approx(10, abs=0.1)


def test_surface_separates_the_voxel_centres_of_the_mask():
    check_separation(blobs((17, 19, 23), 5))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), smooth=st.floats(2, 8))
def test_smooth_blobs_are_separated_too(seed, smooth):
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 36, 32)), smooth)
    check_separation(noise > 0.3 * noise.std())


def check_separation(mask):
    surface = mask_surface(mask, np.eye(3))
    corners = surface.points[surface.faces].astype(float)
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    # outward, closed, and on the whole an eighth of a voxel away at most, however much surface there is
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    assert abs(volume - mask.sum()) < 0.125 * area
    edges = np.sort(
        np.concatenate([surface.faces[:, [0, 1]], surface.faces[:, [1, 2]], surface.faces[:, [2, 0]]]), axis=1
    )
    assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()
    cell = np.floor(surface.points + 1e-4), np.ceil(surface.points - 1e-4)
    assert ((cell[1] - cell[0]) <= 1).all()


masks = st.integers(0, 10_000)
spacings = st.tuples(*[st.floats(0.5, 4.0)] * 3)


def everything(d, tolerance):
    return np.array(
        [hausdorff_mm(d), hausdorff_mm(d, percentile=90), assd_mm(d), masd_mm(d), nsd(d, tolerance_mm=tolerance)]
    )


@settings(max_examples=25, deadline=None)
@given(seed=masks, spacing=spacings)
def test_symmetric_shift_flip_axes_and_scale(seed, spacing):
    a = np.pad(blobs((9, 12, 10), seed), 3)
    b = np.pad(blobs((9, 12, 10), seed + 1), 3)
    grid = Grid.from_spacing(a.shape, spacing)
    tolerance = 1.234567
    expected = everything(surface_distances(a, b, grid), tolerance)
    assert everything(surface_distances(b, a, grid), tolerance) == pytest.approx(expected, abs=1e-5)
    moved = (np.roll(m, (2, -1, 1), (0, 1, 2)) for m in (a, b))
    assert everything(surface_distances(*moved, grid), tolerance) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    order = (2, 0, 1)
    turned = Grid.from_spacing([a.shape[n] for n in order], [spacing[n] for n in order])
    again = everything(surface_distances(a.transpose(order), b.transpose(order), turned), tolerance)
    assert again[[0, 2, 3]] == pytest.approx(expected[[0, 2, 3]], rel=0.05, abs=0.05)
    double = everything(surface_distances(a, b, Grid.from_spacing(a.shape, np.multiply(2, spacing))), 2 * tolerance)
    assert double[:4] == pytest.approx(2 * expected[:4], rel=1e-4, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=masks, spacing=spacings, width=st.floats(0.3, 9.0))
def test_boundary_iou_against_a_distance_map(seed, spacing, width):
    from scipy import ndimage

    a, b = blobs((9, 12, 10), seed), blobs((9, 12, 10), seed + 1)
    bands = []
    for mask in (a, b):
        away = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
        bands.append(mask & ((away <= width) | ~ndimage.binary_erosion(mask)))
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    grid = Grid.from_spacing(a.shape, spacing)
    assert boundary_iou(a, b, grid, width_mm=width) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=15, deadline=None)
@given(seed=masks)
def test_distance_to_triangles_is_exact(seed):
    from slice3d.metrics import Surface, distances_mm

    rng = np.random.default_rng(seed)
    vertices, faces = rng.normal(size=(40, 3)), rng.integers(0, 40, (30, 3))
    places = rng.normal(size=(50, 3)) * 2
    found = distances_mm(places, Surface.of(vertices, faces))
    # brute force: sample every triangle densely; the sample is never nearer than the triangle, and nearly as near
    u, v = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)))
    keep = u + v <= 1
    weights = np.stack([1 - u - v, u, v], axis=1)[keep]
    samples = np.einsum("sc,fcx->fsx", weights, vertices[faces]).reshape(-1, 3)
    brute = np.array([np.linalg.norm(samples - p, axis=1).min() for p in places])
    assert (found <= brute + 1e-5).all()
    assert (brute - found < 0.08).all()
