"""Many labels in one pass: closed parts, kept volumes, and interfaces that are the same on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from slice3d.grid import Grid
from slice3d.surface import SurfaceSettings, check, remesh, smooth, surfaces
from slice3d.volume import Segmentation


def corners(mesh: object) -> set[tuple[float, ...]]:
    """Every triangle as its sorted corner positions, so that both orientations compare equal."""
    triangles = mesh.vertices[mesh.faces].round(6)  # type: ignore[attr-defined]
    return {tuple(np.concatenate(sorted(map(tuple, t)))) for t in triangles}


def halves(spacing: tuple[float, float, float]) -> Segmentation:
    """A ball divided by a slanted plane, with a third label in the middle of it."""
    shape = tuple(int(44 / s) for s in spacing)
    grid = Grid.from_spacing(shape, spacing, (-22, -22, -22))
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))
    radius = np.linalg.norm(points, axis=-1)
    labels = np.where(radius < 17, np.where(points @ (0.6, 0.0, 0.8) > 1.7, 1, 2), 0)
    labels[np.linalg.norm(points - (3, 2, 1), axis=-1) < 6] = 7
    return Segmentation(labels.astype(np.uint8), grid, {1: "spleen", 2: "liver", 7: "tumor"})


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 4.0)])
def test_neighbours_share_every_triangle_of_their_interface(spacing: tuple[float, float, float]) -> None:
    segmentation = halves(spacing)
    meshes = surfaces(segmentation)
    assert list(meshes) == ["spleen", "liver", "tumor"]
    for name, mesh in meshes.items():
        assert check(mesh, wall=False).passed, (name, check(mesh, wall=False).reasons)
        assert mesh.volume_ml == pytest.approx(segmentation.volume_ml(name), rel=0.03)
    spleen, liver, tumor = (corners(meshes[n]) for n in ("spleen", "liver", "tumor"))
    # The tumour lies wholly between them: no gap, no overlap. Only where a part touches itself, as a checkerboard does,
    # are its two sides put a few float32 steps apart, since a file would join them.
    assert len(tumor - (spleen | liver)) < 0.01 * len(tumor)
    around = cKDTree(np.concatenate([m.vertices[m.faces].mean(axis=1) for m in (meshes["spleen"], meshes["liver"])]))
    assert around.query(meshes["tumor"].vertices[meshes["tumor"].faces].mean(axis=1))[0].max() < 1e-4
    assert len(spleen & liver) > 300
    total = sum(m.volume_mm3 for m in meshes.values())
    assert total == pytest.approx(4 / 3 * np.pi * 17**3, rel=0.02)


@pytest.mark.parametrize("along", [0.0, 4.1])
def test_thick_slices_do_not_keep_what_the_count_is_off(along: float) -> None:
    """A ring in four slices, counted too large or too small by where the slices fall, and a ball within it."""
    offset = (0.37, 0.11, along)
    spacing, shape = np.array([0.8, 0.8, 5.0]), (90, 90, 12)
    grid = Grid.from_spacing(shape, tuple(spacing), tuple(-(np.array(shape) - 1) / 2 * spacing + offset))
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = np.zeros((2, *shape))
    for step in (np.arange(15) + 0.5) / 15 - 0.5:
        x, y, z = np.moveaxis(grid.to_world(np.add(index, (0, 0, step))), -1, 0)
        inside += np.stack([np.hypot(np.hypot(x, y) - 22, z) <= 8, x**2 + y**2 + z**2 <= 144])
    labels = np.where(inside[0] > 7, 1, np.where(inside[1] > 7, 2, 0)).astype(np.uint8)
    segmentation = Segmentation(labels, grid, {1: "aorta", 2: "liver"})
    truth = {"aorta": 2 * np.pi**2 * 22 * 64, "liver": 4 / 3 * np.pi * 1728}
    counted = {n: segmentation.volume_ml(n) * 1000 / v - 1 for n, v in truth.items()}
    assert max(map(abs, counted.values())) > 0.02
    meshes = surfaces(segmentation)
    for name, volume in truth.items():
        assert abs(meshes[name].volume_mm3 / volume - 1) <= 0.01
        assert check(meshes[name], wall=False).passed


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_any_labels_give_closed_oriented_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=(6, 5, 7)).astype(np.uint8) * (rng.random((6, 5, 7)) < 0.5)
    affine = np.diag([-1.0, 1.3, 0.9, 1.0])
    segmentation = Segmentation(labels.astype(np.uint8), Grid(labels.shape, affine), {1: "a", 2: "b", 3: "c"})
    for name, mesh in surfaces(segmentation).items():
        if not segmentation.mask(name).any():
            assert not len(mesh.faces)
            continue
        report = check(mesh, wall=False)
        assert report.manifold, (name, report.reasons)
        assert report.oriented
        assert report.outward


def test_one_by_one_when_asked_and_for_groups_and_probabilities() -> None:
    segmentation = halves((1.0, 1.0, 1.0))
    alone = surfaces(segmentation, settings=SurfaceSettings(shared_interfaces=False))
    assert not (corners(alone["liver"]) & corners(alone["spleen"]))
    with_group = Segmentation(segmentation.labels, segmentation.grid, segmentation.names, groups={"both": (1, 2, 7)})
    assert list(surfaces(with_group)) == ["spleen", "liver", "tumor"]
    whole = surfaces(with_group, structures=["both"])["both"]
    assert whole.volume_mm3 == pytest.approx(4 / 3 * np.pi * 17**3, rel=0.02)


def test_smoothing_of_shared_surfaces_can_be_chosen() -> None:
    """Steps of the voxels stay at 0 and go with the cut-off: the area falls."""
    segmentation = halves((1.0, 1.0, 1.0))
    areas = [
        surfaces(segmentation, settings=SurfaceSettings(smoothing_mm=v))["tumor"].area_mm2 for v in (0.0, 3.0, None)
    ]
    assert areas[0] > 1.01 * areas[1] > 1.01 * areas[2] > 4 * np.pi * 5.5**2, areas


def test_work_on_one_side_gives_the_sharing_up_with_a_finding() -> None:
    segmentation = halves((2.0, 2.0, 2.0))
    code = "interfaces-no-longer-shared"
    kept = surfaces(segmentation)
    assert all(code not in [f.code for f in m.findings] and m.metadata["shared_interfaces"] for m in kept.values())
    less = surfaces(segmentation, settings=SurfaceSettings(target_triangles=200))
    for mesh in (*less.values(), smooth(kept["liver"], cutoff_mm=12.0), remesh(kept["liver"], edge_mm=2.0)):
        assert [f.severity for f in mesh.findings if f.code == code] == ["warning"]
        assert mesh.metadata["shared_interfaces"] is False
    alone = SurfaceSettings(target_triangles=200, shared_interfaces=False)
    assert code not in [f.code for m in surfaces(segmentation, settings=alone).values() for f in m.findings]


def test_the_border_is_closed_with_a_finding() -> None:
    labels = np.zeros((12, 13, 14), dtype=np.uint8)
    labels[:5, 3:9, 3:9], labels[5:9, 3:9, 3:9] = 1, 2
    meshes = surfaces(Segmentation(labels, Grid.from_spacing(labels.shape, (1, 1, 1)), {1: "a", 2: "b", 3: "c"}))
    assert [[f.code for f in meshes[n].findings] for n in "abc"] == [
        ["closed-at-field-of-view"],
        [],
        ["empty-structure"],
    ]
    assert meshes["a"].bounds_mm[0, 0] == pytest.approx(-0.5, abs=0.1)
    assert check(meshes["a"], wall=False).passed


@pytest.mark.real
def test_real_labels_keep_their_volumes(data: Path) -> None:
    from slice3d import load_segmentation

    whole = load_segmentation(data / "ct-torso" / "labelled" / "s0009" / "labels.nii.gz")
    window = tuple(slice(20, 80) for _ in range(3))
    part = Segmentation(whole.labels[window], whole.grid.crop((20,) * 3, (80,) * 3), whole.names)
    large = [n for n in surfaces(part).values() if n.metadata.get("voxel_volume_ml", 0) > 1]
    assert len(large) > 5
    for mesh in large:
        assert mesh.volume_ml == pytest.approx(mesh.metadata["voxel_volume_ml"], rel=0.02)
        assert check(mesh, wall=False).manifold


@pytest.mark.real
def test_every_structure_of_a_real_label_map_is_fit_to_print(data: Path) -> None:
    from slice3d import load_segmentation

    meshes = surfaces(load_segmentation(data / "ct-torso" / "labelled" / "s0009" / "labels.nii.gz"))
    failed = {name: check(mesh, wall=False).reasons for name, mesh in meshes.items()}
    assert {name: reasons for name, reasons in failed.items() if reasons} == {}
    assert len(meshes) == 53
