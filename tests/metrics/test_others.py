"""Lesions, topology, images, meshes and calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.metrics import (
    assd_mm,
    betti_errors,
    betti_numbers,
    brier,
    chamfer_mm,
    cl_dice,
    expected_calibration_error,
    hausdorff_mm,
    lesion_scores,
    mae,
    mesh_distances,
    nsd,
    psnr,
    reliability,
    ssim,
)
from slice3d.volume import Volume

SHAPE = (30, 20, 10)


def cubes(*corners, size=4):
    out = np.zeros(SHAPE, bool)
    for i, j, k in corners:
        out[i : i + size, j : j + size, k : k + size] = True
    return out


def test_lesions_are_matched_one_to_one():
    reference = cubes((1, 1, 1), (10, 1, 1), (20, 1, 1))
    prediction = cubes((1, 1, 1), (11, 1, 1), (20, 12, 1))
    found = lesion_scores(prediction, reference)
    assert (found.detected, found.missed, found.invented) == (2, 1, 1)
    assert found.f1 == pytest.approx(4 / 6)
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.panoptic_quality == pytest.approx((1 + 0.6) / 3)
    assert found.mean_dice == pytest.approx((1 + 0.75) / 4)
    assert found.segmentation_quality * found.f1 == pytest.approx(found.panoptic_quality)
    assert lesion_scores(prediction, reference, min_iou=0.6).detected == 1  # an IoU of exactly the limit is no match
    assert lesion_scores(prediction, reference, min_voxels=65).undefined


def test_one_prediction_cannot_detect_two_lesions():
    reference = cubes((1, 1, 1), (6, 1, 1))
    merged = reference.copy()
    merged[5, 1:5, 1:5] = True
    found = lesion_scores(merged, reference, min_iou=0.0)
    assert (found.detected, found.missed, found.invented) == (1, 1, 0)


def test_lesions_of_empty_masks():
    empty, one = np.zeros(SHAPE, bool), cubes((1, 1, 1))
    assert math.isnan(lesion_scores(empty, empty).f1)
    for pair in ((empty, one), (one, empty)):
        found = lesion_scores(*pair)
        values = found.f1, found.sensitivity, found.precision, found.panoptic_quality, found.mean_dice
        assert values == (0, 0, 0, 0, 0)
    for options in ({"min_iou": 1.0}, {"min_voxels": 0}, {"connectivity": 7}):
        with pytest.raises(InputError):
            lesion_scores(one, one, **options)


def test_betti_numbers_of_known_shapes():
    solid, empty = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    solid[2:7, 2:7, 2:7] = True
    hollow, ring = solid.copy(), solid.copy()
    hollow[4, 4, 4] = False
    ring[:, 4, 4] = False
    both = ring.copy()
    both[8, 8, 8] = True
    numbers = [betti_numbers(m) for m in (empty, solid, hollow, ring, both)]
    assert [(b.components, b.tunnels, b.cavities) for b in numbers] == [
        (0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 0),
    ]  # fmt: skip
    diagonal = empty.copy()
    diagonal[1, 1, 1] = diagonal[2, 2, 2] = True
    assert betti_numbers(diagonal).components == 1
    assert betti_errors(both, hollow) == betti_errors(hollow, both)
    assert numbers[4].euler == 1


def test_euler_number_against_scikit_image():
    from skimage.measure import euler_number

    from slice3d.metrics import euler_characteristic

    for seed in range(5):
        mask = np.random.default_rng(seed).random((8, 9, 7)) > 0.6
        assert euler_characteristic(mask) == euler_number(np.pad(mask, 1), connectivity=3)


def test_centreline_dice():
    tube = np.zeros((40, 15, 15), bool)
    tube[2:38, 5:10, 5:10] = True
    assert cl_dice(tube, tube) == 1
    broken = tube.copy()
    broken[15:25] = False
    assert 0.6 < cl_dice(broken, tube) < 0.95
    assert cl_dice(np.roll(tube, 7, axis=1), tube) == 0
    assert cl_dice(np.zeros_like(tube), tube) == 0
    assert math.isnan(cl_dice(np.zeros_like(tube), np.zeros_like(tube)))


def volumes(seed=0, noise=40.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 300, (17, 19, 13))
    grid = Grid.from_spacing(truth.shape, (0.7, 1.1, 3.0))
    return Volume(truth + rng.normal(0, noise, truth.shape), grid), Volume(truth, grid)


def test_image_quality_against_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = volumes()
    assert psnr(x, y, data_range=2000, mask=None) == pytest.approx(
        peak_signal_noise_ratio(y.data, x.data, data_range=2000)
    )
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, full = structural_similarity(y.data, x.data, data_range=2000, full=True, **options)
    inside = np.zeros(y.grid.shape, bool)
    inside[6:-6, 6:-6, 5:-5] = True
    assert ssim(x, y, data_range=2000, mask=inside) == pytest.approx(full[inside].mean(), rel=1e-9)
    assert mae(x, y, mask=inside) == pytest.approx(np.abs(x.data - y.data)[inside].mean())
    assert ssim(y, y, data_range=2000, mask=None) == pytest.approx(1)
    assert psnr(y, y, data_range=2000, mask=None) == math.inf
    assert math.isnan(psnr(x, y, data_range=2000, mask=np.zeros(y.grid.shape, bool)))


def test_image_quality_refuses():
    x, y = volumes()
    with pytest.raises(InputError, match="data range"):
        psnr(x, y, data_range=0, mask=None)
    with pytest.raises(GeometryError, match="resample"):
        mae(Volume(x.data, Grid.from_spacing(x.data.shape, (1, 1, 1))), y, mask=None)
    bad = x.data.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        ssim(Volume(bad, x.grid), y, data_range=1, mask=None)
    with pytest.raises(GeometryError, match="mask"):
        mae(x, y, mask=np.ones((2, 2, 2), bool))


def cube_mesh(half_mm, centre=(0, 0, 0)):
    import trimesh

    mesh = trimesh.creation.box(extents=[2 * half_mm] * 3)
    return Mesh(mesh.vertices + np.asarray(centre), mesh.faces)


def test_meshes_of_few_large_triangles_are_sampled():
    d = mesh_distances(cube_mesh(10), cube_mesh(20))
    assert hausdorff_mm(d) == pytest.approx(10 * math.sqrt(3))
    assert np.average(d.to_reference_mm, weights=d.weights) == pytest.approx(10)
    assert d.weights.sum() == pytest.approx(6 * 20**2)
    moved = mesh_distances(cube_mesh(10), cube_mesh(10, (3, 0, 0)))
    assert hausdorff_mm(moved) == pytest.approx(3)
    assert chamfer_mm(moved) > assd_mm(moved)
    # four sides lie within the other's planes but for a strip of 3 mm at one end; 2 of 6 faces are off
    assert nsd(moved, tolerance_mm=1e-6) == pytest.approx((4 * 17 / 20) / 6, abs=0.02)


def test_meshes_against_vtk():
    from vtkmodules.vtkFiltersModeling import vtkHausdorffDistancePointSetFilter
    from vtkmodules.vtkFiltersSources import vtkSphereSource

    sources = []
    for radius, x in ((10.0, 0.0), (12.0, 5.0)):
        source = vtkSphereSource()
        source.SetRadius(radius)
        source.SetCenter(x, 0, 0)
        source.SetThetaResolution(40)
        source.SetPhiResolution(40)
        source.Update()
        sources.append(source)
    peer = vtkHausdorffDistancePointSetFilter()
    peer.SetTargetDistanceMethodToPointToCell()
    for n, source in enumerate(sources):
        peer.SetInputConnection(n, source.GetOutputPort())
    peer.Update()
    from vtkmodules.util.numpy_support import vtk_to_numpy

    meshes = []
    for source in sources:
        data = source.GetOutput()
        faces = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)
        meshes.append(Mesh(vtk_to_numpy(data.GetPoints().GetData()), faces))
    assert hausdorff_mm(mesh_distances(*meshes, sample_mm=1000)) == pytest.approx(peer.GetHausdorffDistance(), rel=1e-6)


def test_empty_meshes():
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    assert hausdorff_mm(mesh_distances(empty, cube_mesh(3))) == math.inf
    assert nsd(mesh_distances(cube_mesh(3), empty), tolerance_mm=1) == 0
    assert math.isnan(assd_mm(mesh_distances(empty, empty)))
    with pytest.raises(InputError, match="sample_mm"):
        mesh_distances(cube_mesh(3), cube_mesh(3), sample_mm=0)


def test_calibration():
    rng = np.random.default_rng(0)
    p = rng.random((60, 60, 60))
    honest = rng.random(p.shape) < p
    assert expected_calibration_error(p, honest) < 0.01
    assert brier(p, honest) == pytest.approx(1 / 6, abs=0.01)
    assert expected_calibration_error(np.sqrt(p), honest) > 0.1
    assert brier(honest.astype(float), honest) == 0
    assert expected_calibration_error(np.full(4, 0.8), np.array([1, 1, 1, 0])) == pytest.approx(0.05)
    assert reliability(p, honest, bins=4)["voxels"].sum() == p.size
    half = np.zeros(p.shape, bool)
    assert math.isnan(brier(p, honest, mask=half))
    assert math.isnan(expected_calibration_error(p, honest, mask=half))
    for bad in (p * 2, np.where(p > 0.5, np.nan, p)):
        with pytest.raises(InputError, match="0…1"):
            brier(bad, honest)
    with pytest.raises(InputError, match="bins"):
        reliability(p, honest, bins=0)
