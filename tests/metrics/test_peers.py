"""Each convention gives the number of the tool that it is named after."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import ndimage

from slice3d.grid import Grid
from slice3d.metrics import assd_mm, hausdorff_mm, masd_mm, nsd, surface_distances
from tests.metrics.shapes import blobs

SPACING = (0.7, 1.3, 4.0)
SHAPE = (23, 31, 17)
CLOSE = {"rel": 1e-6}


def blob_pair(seed):
    a = blobs(SHAPE, seed)
    return a, np.roll(a, (1, -2, 1), (0, 1, 2)) | blobs(SHAPE, seed + 50, threshold=2.0), SPACING


def organ_pair(data, case, value, neighbour):
    """An organ of a real label map, at every third slice, and a smoothed and shifted copy or the organ beside it."""
    import nibabel

    image = nibabel.load(data / "ct-torso" / "labels-only" / f"{case}.nii.gz")
    labels = np.asarray(image.dataobj)[:, :, ::3]
    b = labels == value
    a = labels == neighbour if neighbour else np.roll(ndimage.binary_closing(b, iterations=2), (2, -1, 1), (0, 1, 2))
    window = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in ndimage.find_objects((a | b).astype(np.uint8))[0])
    zooms = [float(z) for z in image.header.get_zooms()]
    return *(np.ascontiguousarray(m[window]) for m in (a, b)), (zooms[0], zooms[1], 3 * zooms[2])


def hippocampus_pair(data, one, other):
    """The hippocampi of two people, from the same corner of their crops."""
    import nibabel

    masks = [
        np.asarray(nibabel.load(data / "hippocampus" / "labelsTr" / f"hippocampus_{name}.nii.gz").dataobj) > 0
        for name in (one, other)
    ]
    size = np.minimum(*(m.shape for m in masks))
    return *(np.ascontiguousarray(m[: size[0], : size[1], : size[2]]) for m in masks), (1.0, 1.0, 1.0)


REAL = {
    "spleen": lambda data: organ_pair(data, "s0011", 1, None),
    "liver": lambda data: organ_pair(data, "s0004", 5, None),
    "two vertebrae": lambda data: organ_pair(data, "s0011", 31, 32),
    "hippocampi": lambda data: hippocampus_pair(data, "001", "003"),
    "more hippocampi": lambda data: hippocampus_pair(data, "004", "006"),
}


@pytest.fixture(params=[0, 1, 2, *(pytest.param(name, marks=pytest.mark.real) for name in REAL)])
def pair(request):
    if isinstance(request.param, int):
        return blob_pair(request.param)
    a, b, spacing = REAL[request.param](request.getfixturevalue("data"))
    assert min(a.sum(), b.sum()) > 500
    return a, b, spacing


def measured(pair, convention):
    a, b, spacing = pair
    return surface_distances(a, b, Grid.from_spacing(a.shape, spacing), convention=convention)


def test_deepmind(pair):
    peer = pytest.importorskip("surface_distance")
    ours = measured(pair, "deepmind")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer.compute_surface_distances(pair[1], pair[0], pair[2])
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
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in pair[:2])
    options = {"include_background": True, "spacing": pair[2]}
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
    for mask in pair[:2]:
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).transpose(2, 1, 0))
        image.SetSpacing(pair[2])
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
    ours = measured(pair, "nnunet")
    cross = ndimage.generate_binary_structure(3, 1)
    edges = [mask ^ ndimage.binary_erosion(mask, cross) for mask in pair[:2]]
    maps = [ndimage.distance_transform_edt(~edge, sampling=pair[2]) for edge in edges]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    assert hausdorff_mm(ours) == pytest.approx(max(there.max(), back.max()), **CLOSE)
    assert hausdorff_mm(ours, percentile=95) == pytest.approx(np.percentile(np.hstack([there, back]), 95), **CLOSE)
    assert assd_mm(ours) == pytest.approx((there.mean() + back.mean()) / 2, **CLOSE)
