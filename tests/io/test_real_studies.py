"""Real studies: voxels and positions agree with dcm2niix and with another converter's published output."""

from __future__ import annotations

import subprocess

import nibabel
import numpy as np
import pydicom
import pytest

import slice3d
from slice3d.errors import InputError
from tests.io.tools import needs

pytestmark = pytest.mark.real

PLAIN = (
    "ct-20slices", "ct-abdomen-contrast", "vendor/generic-anatomical/001", "vendor/generic-anatomical/001_implicit",
    "vendor/generic-anatomical/002_non_isotropic", "vendor/generic-compressed/001", "vendor/generic-compressed_j2k/001",
    "vendor/generic-compressed_jpeg/001", "vendor/generic-compressed_jpegls/001", "vendor/generic-compressed_rle/001",
    "vendor/siemens-anatomical/001", "vendor/siemens-anatomical/001_implicit", "vendor/hitachi-anatomical/001",
    "vendor/hitachi-anatomical/001_implicit", "vendor/siemens_multiframe-anatomical/001",
    "vendor/hyperfine-anatomical/001", "vendor/philips_enhanced-anatomical/001",
    "vendor/philips_enhanced-anatomical/001_implicit",
    "vendor/failing/slicecount/001",
)  # fmt: skip
# the Debian build has no JPEG-LS decoder
NOT_FOR_DCM2NIIX = ("vendor/generic-compressed_jpegls/001",)


def canonical(path_or_volume):
    """(values, affine) in RAS+ order."""
    if isinstance(path_or_volume, slice3d.Volume):
        image = nibabel.Nifti1Image(path_or_volume.data.astype(np.float32), path_or_volume.grid.affine)
    else:
        image = nibabel.load(path_or_volume)
    image = nibabel.as_closest_canonical(image)
    return np.asarray(image.get_fdata(dtype=np.float32)), image.affine


def assert_same(volume, path, factor=1.0):
    """Corners within 0.01 mm, values within single precision."""
    (ours, affine), (theirs, other) = canonical(volume), canonical(path)
    theirs = theirs.reshape(theirs.shape[:3])
    assert ours.shape == theirs.shape
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in ours.shape], [1])).reshape(4, -1)
    assert np.abs((affine - other) @ corners).max() < 0.01
    np.testing.assert_allclose(ours / factor, theirs, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("study", PLAIN)
def test_agrees_with_dcm2niix(data, study, tmp_path):
    needs("dcm2niix")
    if study in NOT_FOR_DCM2NIIX:
        pytest.skip("dcm2niix of Debian cannot decode JPEG-LS")
    subprocess.run(
        ["dcm2niix", "-z", "n", "-b", "n", "-f", "out", "-o", tmp_path, data / "dicom" / study],
        check=True,
        capture_output=True,
    )
    assert_same(slice3d.load(data / "dicom" / study), tmp_path / "out.nii")


@pytest.mark.parametrize("study", [s for s in PLAIN if s.startswith("vendor")])
def test_agrees_with_the_published_conversion(data, study):
    folder = data / "dicom" / study
    volume = slice3d.load(folder)
    scale = [f.details["per_displayed_value"] for f in volume.findings if f.code == "philips-scaling"]
    assert bool(scale) == ("philips" in study)
    assert_same(volume, folder.parent / f"{folder.name}_ground_truth.nii.gz", factor=scale[0] if scale else 1.0)


def planes(folder):
    """The header of every file in the order of the table."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(pydicom.dcmread(path))
    orientation = np.array(found[0].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    found.sort(key=lambda d: float(np.dot(d.ImagePositionPatient, normal)))
    return found


def plane_points(dataset):
    """(rows, columns, 3) RAS mm of every pixel by the plane equation, PS3.3 C.7.6.2.1.1."""
    orientation = np.array(dataset.ImageOrientationPatient, float)
    spacing = np.array(dataset.PixelSpacing, float)
    position = np.array(dataset.ImagePositionPatient, float)
    row, column = np.indices((dataset.Rows, dataset.Columns))
    lps = position + column[..., None] * orientation[:3] * spacing[1] + row[..., None] * orientation[3:] * spacing[0]
    return lps * (-1, -1, 1)


@pytest.mark.parametrize(
    "study", ["ct-gantry-tilt-ge", "vendor/failing/gantrytilting/001", "vendor/failing/sliceincrement/002"]
)
def test_tilted_head_lies_where_its_headers_say(data, study, tmp_path):
    """Pixels replaced by their own coordinates by the plane equation: the resampled volume holds its own
    coordinates.
    """
    source = planes(data / "dicom" / study)
    worst = 0.0
    for axis in range(3):
        folder = tmp_path / str(axis)
        folder.mkdir()
        for n, dataset in enumerate(source):
            value = plane_points(dataset)[..., axis]
            dataset.RescaleSlope, dataset.RescaleIntercept = "0.01", "0"
            dataset.PixelRepresentation, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
            dataset.PixelData = np.rint(value * 100).astype("<i2").tobytes()
            if "PixelPaddingValue" in dataset:
                del dataset.PixelPaddingValue
            dataset.save_as(folder / f"{n}", enforce_file_format=True)
        volume = slice3d.load(folder)
        assert {"gantry-tilt", "resampled"} <= {f.code for f in volume.findings}
        assert volume.grid.is_orthogonal
        index = np.stack(
            np.meshgrid(
                *(np.arange(0, n, s) for n, s in zip(volume.grid.shape, (7, 7, 1), strict=True)), indexing="ij"
            ),
            -1,
        )
        values = volume.data[index[..., 0], index[..., 1], index[..., 2]]
        inside = values > -1000  # outside the field of view: the fill
        worst = max(worst, float(np.abs(values - volume.grid.to_world(index)[..., axis])[inside].max()))
        assert inside.mean() > 0.5
    assert worst < 0.05


@pytest.mark.parametrize(
    ("study", "expected", "shape"),
    [
        ("ct-gantry-tilt-ge", {"gantry-tilt", "variable-spacing", "padding-replaced", "resampled"}, (512, 611, 37)),
        ("vendor/failing/gantrytilting/001", {"gantry-tilt", "resampled"}, (512, 521, 4)),
        ("vendor/failing/sliceincrement/001", {"missing-slices", "resampled"}, (512, 512, 5)),
        ("vendor/failing/sliceincrement/002", {"missing-slices", "gantry-tilt", "resampled"}, (512, 514, 5)),
        ("vendor/failing/sliceorientation/001", {"several-orientations"}, (288, 288, 2)),
        ("vendor/failing/notavolume/001", {"several-volumes", "single-slice"}, (512, 512, 1)),
    ],
)
def test_what_other_converters_refuse_loads_with_its_findings(data, study, expected, shape):
    volume = slice3d.load(data / "dicom" / study)
    assert expected <= {f.code for f in volume.findings}
    assert volume.grid.shape == shape


def test_acquired_planes_keep_their_values(data):
    """Where a target plane is an acquired one and there is no tilt, the voxels are the scanner's own."""
    folder = data / "dicom" / "vendor" / "failing" / "sliceincrement" / "001"
    volume = slice3d.load(folder)
    measured = np.flatnonzero(~volume.synthesised.all(axis=(0, 1)))
    assert len(measured) == 4
    for k, dataset in zip(measured, planes(folder), strict=True):
        stored = dataset.pixel_array.T.astype(int) * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)
        np.testing.assert_array_equal(volume.data[:, :, k], np.maximum(stored, -1024))
        np.testing.assert_allclose(volume.grid.to_world((0, 0, k)), plane_points(dataset)[0, 0], atol=0.01)


def test_head_tilt_is_measured(data):
    volume = slice3d.load(data / "dicom" / "ct-gantry-tilt-ge")
    tilt = next(f for f in volume.findings if f.code == "gantry-tilt")
    assert tilt.details["tilt_deg"] == pytest.approx(18.5, abs=0.05)
    spacing = next(f for f in volume.findings if f.code == "variable-spacing")
    assert spacing.details["smallest_mm"] == pytest.approx(1.08, abs=0.01)
    assert spacing.details["largest_mm"] == pytest.approx(6.999, abs=0.01)


def test_colour_study_is_refused(data):
    with pytest.raises(InputError, match="colour pictures"):
        slice3d.load(data / "dicom" / "vendor" / "generic-rgb" / "001")


def test_philips_scale_agrees_with_dcm2niix_findings(data):
    volume = slice3d.load(data / "dicom" / "vendor" / "philips_enhanced-anatomical" / "001")
    finding = next(f for f in volume.findings if f.code == "philips-scaling")
    assert finding.details["per_displayed_value"] == pytest.approx(1 / (4.25885 * 0.000276572), rel=1e-4)


def test_repr_and_listing_of_the_main_study(data):
    listing = slice3d.scan(data / "dicom" / "ct-abdomen-contrast")
    assert listing.picked == "1"
    entry = listing.series[0]
    assert entry.shape == (512, 512, 134)
    assert entry.spacing_mm == pytest.approx((1.07421875, 1.07421875, 3.0), abs=1e-6)
    assert entry.orientation == "LPS"
    assert not entry.findings
