"""The function of least third derivatives, and the parts of it that are computed in a way of their own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from slice3d.grid import Grid
from slice3d.surface import bending, surface
from slice3d.surface.contour import snap
from slice3d.volume import Segmentation


@pytest.mark.parametrize("part", [0.001, 0.05, 0.7])
def test_distances_are_those_of_scipy(part: float) -> None:
    spacing = np.array([1.07, 0.9, 3.0])
    mask = np.random.default_rng(4).random((31, 24, 13)) < part
    mask[20, 3, 5] = True
    found = bending._distance_to(mask, spacing)
    np.testing.assert_allclose(found, distance_transform_edt(~mask, sampling=spacing), rtol=1e-6)


def test_the_waves_that_are_left_out_do_not_move_the_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    spacing = np.array([0.9, 1.1, 3.0])
    mask = gaussian_filter(np.random.default_rng(5).normal(size=(44, 41, 18)), (3.0, 2.5, 1.2)) > 0.02
    short = bending.least_bending(mask, spacing)
    monkeypatch.setattr(bending, "_NOTHING", 0.0)
    exact = bending.least_bending(mask, spacing)
    slope = np.sqrt(sum(np.gradient(exact, s, axis=n) ** 2 for n, s in enumerate(spacing)))
    moved = (np.abs(short - exact) / slope)[np.abs(exact) < 0.5]
    assert moved.mean() < 0.01
    assert np.percentile(moved, 99) < 0.1


def test_values_keep_away_from_zero_by_the_steps_across_the_surface() -> None:
    values = gaussian_filter(np.random.default_rng(6).normal(size=(17, 21, 14)), 1.0).astype(np.float32)
    values[3, 4, 5] = 0
    step = np.zeros_like(values)
    for axis in range(3):
        a, s = np.moveaxis(values, axis, 0), np.moveaxis(step, axis, 0)
        jump = np.where((a[1:] > 0) != (a[:-1] > 0), np.abs(a[1:] - a[:-1]), 0)
        np.maximum(s[1:], jump, out=s[1:])
        np.maximum(s[:-1], jump, out=s[:-1])
    least = np.float32(0.02) * step
    expected = np.where(values > 0, np.maximum(values, least), np.minimum(values, -least))
    np.testing.assert_allclose(snap(values), expected, rtol=1e-6)
    assert np.array_equal(snap(values) > 0, values > 0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (0.8, 0.8, 5.0), (1.0, 1.0, 1.0)])
def test_the_order_in_memory_does_not_matter(spacing: tuple[float, float, float]) -> None:
    """Files are often read with the first axis running fastest."""
    i, j, k = (n * s for n, s in zip(np.indices((24, 20, 12)), spacing, strict=True))
    mask = ((i - 12) / 8) ** 2 + ((j - 10) / 6) ** 2 + ((k - 6 * spacing[2]) / (4 * spacing[2])) ** 2 < 1
    there = np.asfortranarray(mask)
    assert np.array_equal(
        bending.least_bending(mask, np.array(spacing)), bending.least_bending(there, np.array(spacing))
    )
    labels = [Segmentation(order(mask.astype(np.uint8)), Grid.from_spacing(mask.shape, spacing), {1: "liver"})
              for order in (np.ascontiguousarray, np.asfortranarray)]  # fmt: skip
    one, other = (surface(made, "liver") for made in labels)
    assert len(one.faces) > 100
    assert np.array_equal(one.vertices, other.vertices)
    assert np.array_equal(one.faces, other.faces)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 3.0), (3.0, 0.7, 0.7), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("probable", [False, True])
def test_a_structure_that_fills_the_scan_is_closed_at_its_border(
    spacing: tuple[float, float, float], probable: bool
) -> None:
    grid = Grid.from_spacing((6, 6, 6), spacing)
    all_of_it = {"probabilities": {"liver": np.ones(grid.shape, np.float32)}} if probable else {}
    made = Segmentation(np.ones(grid.shape, np.uint8), grid, {1: "liver"}, **all_of_it)  # type: ignore[arg-type]
    mesh = surface(made, "liver")
    assert mesh.volume_ml == pytest.approx(216 * grid.voxel_volume_mm3 / 1000, rel=0.05)


def test_labels_of_another_byte_order_have_the_same_surface() -> None:
    labels = np.zeros((9, 8, 7), "<u2")
    labels[2:7, 2:6, 2:5] = 300
    grid = Grid.from_spacing(labels.shape, (0.8, 0.8, 3.0))
    meshes = [surface(Segmentation(labels.astype(t), grid, {300: "liver"}), "liver") for t in ("<u2", ">u2", ">i4")]
    assert len(meshes[0].faces) > 50
    for other in meshes[1:]:
        assert np.array_equal(other.vertices, meshes[0].vertices)
