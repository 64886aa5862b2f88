"""Each convention gives the number of the tool that it is named after."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from slice3d.grid import Grid
from slice3d.metrics import assd_mm, hausdorff_mm, masd_mm, nsd, surface_distances
from tests.metrics.shapes import blobs

SPACING = (0.7, 1.3, 4.0)
SHAPE = (23, 31, 17)
CLOSE = {"rel": 1e-6}


def pairs():
    for seed in range(3):
        a = blobs(SHAPE, seed)
        yield a, np.roll(a, (1, -2, 1), (0, 1, 2)) | blobs(SHAPE, seed + 50, threshold=2.0)


@pytest.fixture(params=range(3))
def pair(request):
    return list(pairs())[request.param]


def measured(pair, convention):
    return surface_distances(*pair, Grid.from_spacing(SHAPE, SPACING), convention=convention)


def test_deepmind(pair):
    peer = pytest.importorskip("surface_distance")
    ours = measured(pair, "deepmind")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer.compute_surface_distances(pair[1], pair[0], SPACING)
    to_prediction, to_reference = peer.compute_average_surface_distance(theirs)
    assert masd_mm(ours) == pytest.approx((to_prediction + to_reference) / 2, **CLOSE)
    for percentile in (50, 95, 100):
        assert hausdorff_mm(ours, percentile=percentile) == pytest.approx(
            peer.compute_robust_hausdorff(theirs, percentile), **CLOSE
        )
    for tolerance in (0.0, 1.0, 2.5):
        assert nsd(ours, tolerance_mm=tolerance) == pytest.approx(
            peer.compute_surface_dice_at_tolerance(theirs, tolerance), **CLOSE
        )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_monai(pair):
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    ours = measured(pair, "monai")
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in pair)
    options = {"include_background": True, "spacing": SPACING}
    assert hausdorff_mm(ours) == pytest.approx(compute_hausdorff_distance(a, b, **options).item(), **CLOSE)
    assert hausdorff_mm(ours, percentile=95) == pytest.approx(
        compute_hausdorff_distance(a, b, percentile=95, **options).item(), **CLOSE
    )
    assert assd_mm(ours) == pytest.approx(
        compute_average_surface_distance(a, b, symmetric=True, **options).item(), **CLOSE
    )
    assert nsd(ours, tolerance_mm=2.0) == pytest.approx(
        compute_surface_dice(a, b, class_thresholds=[2.0], **options).item(), **CLOSE
    )


def test_simpleitk(pair):
    import SimpleITK as sitk

    ours = measured(pair, "simpleitk")
    images = []
    for mask in pair:
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).transpose(2, 1, 0))
        image.SetSpacing(SPACING)
        images.append(image)
    peer = sitk.HausdorffDistanceImageFilter()
    peer.Execute(*images)
    assert hausdorff_mm(ours) == pytest.approx(peer.GetHausdorffDistance(), **CLOSE)
    # the recipe of SimpleITK's own notebooks: contours read from the other's distance map
    contours = [sitk.GetArrayFromImage(sitk.LabelContour(image)) > 0 for image in images]
    maps = [np.abs(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))) for image in images]
    values = np.concatenate([maps[1][contours[0]], maps[0][contours[1]]])
    assert assd_mm(ours) == pytest.approx(values.mean(), **CLOSE)
    assert hausdorff_mm(ours, percentile=95) == pytest.approx(np.percentile(values, 95), **CLOSE)


def test_nnunet_voxel_borders(pair):
    # MedPy's definition, written with SciPy alone
    from scipy import ndimage

    ours = measured(pair, "nnunet")
    cross = ndimage.generate_binary_structure(3, 1)
    edges = [mask ^ ndimage.binary_erosion(mask, cross) for mask in pair]
    maps = [ndimage.distance_transform_edt(~edge, sampling=SPACING) for edge in edges]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    assert hausdorff_mm(ours) == pytest.approx(max(there.max(), back.max()), **CLOSE)
    assert hausdorff_mm(ours, percentile=95) == pytest.approx(np.percentile(np.hstack([there, back]), 95), **CLOSE)
    assert assd_mm(ours) == pytest.approx((there.mean() + back.mean()) / 2, **CLOSE)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_deepmind_and_monai_on_real_labels(data):
    nibabel = pytest.importorskip("nibabel")
    peer = pytest.importorskip("surface_distance")
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
    from scipy import ndimage

    image = nibabel.load(data / "ct-torso" / "labels-only" / "s0011.nii.gz")
    b = np.asarray(image.dataobj) == 1  # spleen
    window = tuple(slice(max(s.start - 6, 0), s.stop + 6) for s in ndimage.find_objects(b.astype(np.uint8))[0])
    b = np.ascontiguousarray(b[window][:, :, ::3])
    spacing = (*map(float, image.header.get_zooms()[:2]), 4.5)
    a = ndimage.binary_closing(np.roll(b, (2, -1, 1), (0, 1, 2)), iterations=2)
    grid = Grid.from_spacing(b.shape, spacing)
    theirs = peer.compute_surface_distances(b, a, spacing)
    ours = surface_distances(a, b, grid, convention="deepmind")
    assert masd_mm(ours) == pytest.approx(np.mean(peer.compute_average_surface_distance(theirs)), **CLOSE)
    assert hausdorff_mm(ours, percentile=95) == pytest.approx(peer.compute_robust_hausdorff(theirs, 95), **CLOSE)
    assert nsd(ours, tolerance_mm=2) == pytest.approx(peer.compute_surface_dice_at_tolerance(theirs, 2), **CLOSE)
    x, y = (torch.from_numpy(mask)[None, None].float() for mask in (a, b))
    options = {"include_background": True, "spacing": spacing}
    ours = surface_distances(a, b, grid, convention="monai")
    assert hausdorff_mm(ours) == pytest.approx(compute_hausdorff_distance(x, y, **options).item(), **CLOSE)
    assert assd_mm(ours) == pytest.approx(
        compute_average_surface_distance(x, y, symmetric=True, **options).item(), **CLOSE
    )
