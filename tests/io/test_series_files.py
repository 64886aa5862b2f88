"""Volumes written as DICOM series, NIfTI, NRRD and MHA, and read back by us and by others."""

from __future__ import annotations

import gzip
import io

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import slice3d
from slice3d.errors import GeometryError, InputError
from slice3d.io import load_4d
from tests.io.dicom_files import asymmetric, oblique, series, write
from tests.io.tools import validate

AFFINE = oblique()
DATA = asymmetric((9, 7, 5))


@pytest.fixture
def source(tmp_path):
    return slice3d.load(write(series(DATA, AFFINE), tmp_path / "study", shuffle=3))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dicom_series_round_trip_and_validity(tmp_path, modality):
    options = {"modality": "MR", "slope": None} if modality == "MR" else {}
    data = DATA + 1000 if modality == "MR" else DATA
    source = slice3d.load(write(series(data, AFFINE, **options), tmp_path / "study"))
    fine = source.grid.with_spacing((0.7, 1.3, 1.0))
    values = np.random.default_rng(2).normal(300, 200, fine.shape).astype(np.float32)
    volume = slice3d.Volume(values, fine, modality=modality, synthesised=np.ones(fine.shape, bool))
    slice3d.save(volume, tmp_path / "out", source=source)
    again = slice3d.load(tmp_path / "out")
    np.testing.assert_array_equal(again.data, np.rint(values).astype(np.int16))
    assert again.grid.matches(fine, tolerance_mm=1e-3)
    assert again.modality == modality
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == fine.shape[2]
    first, original = pydicom.dcmread(files[0]), source.source.datasets()[0]
    assert first.StudyInstanceUID == original.StudyInstanceUID
    assert first.PatientID == original.PatientID
    assert first.FrameOfReferenceUID == original.FrameOfReferenceUID
    assert first.SeriesInstanceUID != original.SeriesInstanceUID
    assert first.ImageType[0] == "DERIVED"
    for file in (files[0], files[-1]):
        assert validate(file) == []
    # an independent reader
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "out"))
    image = sitk.ReadImage(names)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), again.data)
    np.testing.assert_allclose(np.array(image.GetOrigin()) * (-1, -1, 1), fine.origin_mm, atol=1e-4)


def test_series_is_refused_where_it_cannot_be_right(tmp_path, source):
    values = np.full(source.grid.shape, 1e6, np.float32)
    with pytest.raises(InputError, match="16-bit"):
        slice3d.save(slice3d.Volume(values, source.grid, modality="CT"), tmp_path / "a", source=source)
    assert not (tmp_path / "a").exists()
    plain = slice3d.Volume(source.data, source.grid, modality="CT")
    with pytest.raises(InputError, match="source="):
        slice3d.save(plain, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="holds files already"):
        slice3d.save(source, tmp_path / "b")
    assert (tmp_path / "b" / "mine.txt").read_text() == "keep"
    with pytest.raises(InputError, match="suffix"):
        slice3d.save(source, tmp_path / "a.jpg")


@given(
    st.tuples(*[st.floats(0.2, 9)] * 3),
    st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    st.sampled_from([np.int16, np.uint8, np.float32]),
)
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_volume_files_round_trip(tmp_path_factory, suffix, spacing_mm, turn, dtype):
    folder = tmp_path_factory.mktemp("files")
    affine = oblique(spacing_mm, turn)
    data = np.abs(DATA).astype(dtype)
    slice3d.save(slice3d.Volume(data, slice3d.Grid(DATA.shape, affine)), folder / f"v{suffix}")
    found = slice3d.load(folder / f"v{suffix}")
    np.testing.assert_array_equal(found.data, data)
    assert found.data.dtype == dtype
    np.testing.assert_allclose(found.grid.affine, affine, atol=2e-4, rtol=1e-6)
    assert not found.findings
    assert [p.name for p in folder.iterdir()] == [f"v{suffix}"]


def test_nifti_is_complete_and_the_same_every_time(tmp_path, source):
    for name in ("a.nii.gz", "b.nii.gz"):
        slice3d.save(source, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    image = nibabel.load(tmp_path / "a.nii.gz")
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, AFFINE, atol=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.int16
    read = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose(2, 1, 0), DATA)


def nifti(path, data, sform=None, qform=None, cls=nibabel.Nifti1Image, **header):
    image = cls(data, None)
    image.set_sform(sform, code=1 if sform is not None else 0)
    image.set_qform(qform, code=1 if qform is not None else 0)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def test_nifti_forms_that_disagree_are_reported(tmp_path):
    other = AFFINE.copy()
    other[:3, 3] += (0.0, 3.0, 4.0)
    volume = slice3d.load(nifti(tmp_path / "a.nii", DATA, AFFINE, other))
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-4)
    finding = next(f for f in volume.findings if f.code == "sform-qform-disagree")
    assert finding.details["difference_mm"] == pytest.approx(5.0, abs=0.01)
    other = AFFINE.copy()
    other[:3, 3] += 0.02
    assert not slice3d.load(nifti(tmp_path / "b.nii", DATA, AFFINE, other)).findings
    only_q = slice3d.load(nifti(tmp_path / "c.nii", DATA, None, AFFINE))
    np.testing.assert_allclose(only_q.grid.affine, AFFINE, atol=1e-4)
    neither = slice3d.load(nifti(tmp_path / "d.nii", DATA))
    assert [f.code for f in neither.findings] == ["no-orientation"]


def test_nifti_two_units_and_scaling(tmp_path):
    image = nibabel.Nifti2Image(DATA, AFFINE / np.array([[1000.0] * 4] * 3 + [[1.0] * 4]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "m.nii")
    volume = slice3d.load(tmp_path / "m.nii")
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-3)
    assert [f.code for f in volume.findings] == ["units"]
    scaled = nibabel.Nifti1Image(DATA, AFFINE)
    scaled.header.set_slope_inter(1, -1024)
    stored = nibabel.Nifti1Image((DATA + 1024).astype(np.uint16), AFFINE, header=scaled.header)
    stored.header.set_data_dtype(np.uint16)
    stored.header.set_slope_inter(1, -1024)
    nibabel.save(stored, tmp_path / "s.nii")
    volume = slice3d.load(tmp_path / "s.nii")
    np.testing.assert_array_equal(volume.data, nibabel.load(tmp_path / "s.nii").get_fdata())
    assert volume.data.dtype == np.int16


def test_nifti_with_four_dimensions(tmp_path):
    data = np.stack([DATA, DATA + 1, DATA + 2], axis=3)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), tmp_path / "t.nii.gz")
    first = slice3d.load(tmp_path / "t.nii.gz")
    np.testing.assert_array_equal(first.data, DATA)
    assert [f.code for f in first.findings] == ["several-volumes"]
    np.testing.assert_array_equal(slice3d.load(tmp_path / "t.nii.gz", series=3).data, DATA + 2)
    assert len(load_4d(tmp_path / "t.nii.gz")) == 3
    with pytest.raises(InputError, match="between 1 and 3"):
        slice3d.load(tmp_path / "t.nii.gz", series=4)


def test_nifti_colour_and_nan(tmp_path):
    colour = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, AFFINE), tmp_path / "c.nii")
    with pytest.raises(InputError, match="colour"):
        slice3d.load(tmp_path / "c.nii")
    values = DATA.astype(np.float32)
    values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "n.nii")
    volume = slice3d.load(tmp_path / "n.nii")
    assert volume.data[1, 2, 3] == DATA[np.isfinite(values)].min()
    assert [f.code for f in volume.findings] == ["not-finite"]
    broken = AFFINE.copy()
    broken[0, 0] = np.nan
    nifti(tmp_path / "a.nii", DATA, AFFINE)
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:284] = np.float32(np.nan).tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(GeometryError, match="NaN"):
        slice3d.load(tmp_path / "a.nii")


def test_sheared_grid_is_kept_by_nifti_and_refused_by_mha(tmp_path):
    sheared = AFFINE.copy()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    volume = slice3d.Volume(DATA, slice3d.Grid(DATA.shape, sheared))
    slice3d.save(volume, tmp_path / "s.nii.gz")
    found = slice3d.load(tmp_path / "s.nii.gz")
    np.testing.assert_allclose(found.grid.affine, sheared, atol=1e-3)
    with pytest.raises(InputError, match="sheared"):
        slice3d.save(volume, tmp_path / "s.mha")


def test_nrrd_as_simpleitk_reads_it(tmp_path):
    slice3d.save(slice3d.Volume(DATA, slice3d.Grid(DATA.shape, AFFINE)), tmp_path / "v.nrrd")
    image = sitk.ReadImage(str(tmp_path / "v.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), DATA)
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 1.3, 4.0))


def test_detached_headers_and_unoriented_nrrd(tmp_path):
    image = sitk.GetImageFromArray(np.ascontiguousarray(DATA.transpose(2, 1, 0)))
    image.SetSpacing((0.7, 1.3, 4.0))
    for name in ("a.mhd", "b.nhdr"):
        sitk.WriteImage(image, str(tmp_path / name))
        volume = slice3d.load(tmp_path / name)
        np.testing.assert_array_equal(volume.data, DATA)
        np.testing.assert_allclose(volume.grid.spacing_mm, (0.7, 1.3, 4.0))
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 3 4\nspacings: 1 2 3\nencoding: raw\n\n" + bytes(24)
    (tmp_path / "c.nrrd").write_bytes(head)
    volume = slice3d.load(tmp_path / "c.nrrd")
    assert [f.code for f in volume.findings] == ["no-orientation"]
    assert volume.grid.spacing_mm == (1, 2, 3)


def test_picture_stacks_need_a_spacing(tmp_path):
    from PIL import Image

    pixels = (DATA - DATA.min()).astype(np.uint16)
    for suffix in ("png", "tif"):
        folder = tmp_path / suffix
        folder.mkdir()
        for k in range(5):
            # natural order: slice_10 comes after slice_9
            Image.fromarray(np.ascontiguousarray(pixels[:, :, k].T)).save(folder / f"slice_{k + 8}.{suffix}")
        with pytest.raises(InputError, match="--spacing"):
            slice3d.load(folder)
        volume = slice3d.load(folder, spacing_mm=(0.7, 1.3, 4.0))
        np.testing.assert_array_equal(volume.data, pixels)
        np.testing.assert_allclose(volume.grid.spacing_mm, (0.7, 1.3, 4.0))
        assert volume.grid.orientation == "LPS"
        assert [f.code for f in volume.findings] == ["no-orientation"]
        assert slice3d.scan(folder).picked == ""
    pages = [Image.fromarray(np.ascontiguousarray(pixels[:, :, k].T)) for k in range(5)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(slice3d.load(tmp_path / "stack.tif", spacing_mm=(1, 1, 1)).data, pixels)
    Image.new("RGB", (7, 9)).save(tmp_path / "png" / "slice_99.png")
    with pytest.raises(InputError, match="RGB"):
        slice3d.load(tmp_path / "png", spacing_mm=(1, 1, 1))
    with pytest.raises(InputError, match="three positive numbers"):
        slice3d.load(tmp_path / "tif", spacing_mm=(1, 0, 1))


def test_labels_are_whole_numbers(tmp_path):
    slice3d.save(slice3d.Volume(DATA.astype(np.float32) + 0.5, slice3d.Grid(DATA.shape, AFFINE)), tmp_path / "f.nii.gz")
    with pytest.raises(InputError, match="fractions"):
        slice3d.load_segmentation(tmp_path / "f.nii.gz")
    slice3d.save(slice3d.Volume(DATA, slice3d.Grid(DATA.shape, AFFINE)), tmp_path / "n.nii.gz")
    with pytest.raises(InputError, match="is it an image"):
        slice3d.load_segmentation(tmp_path / "n.nii.gz")


def test_failed_writing_leaves_the_old_file(tmp_path, source, monkeypatch):
    path = tmp_path / "v.nii.gz"
    path.write_bytes(b"old")

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slice3d.io.nifti.packed", broken)
    with pytest.raises(InputError, match="No space left"):
        slice3d.save(source, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["v.nii.gz"]
    with pytest.raises(InputError, match="does not exist"):
        slice3d.save(source, tmp_path / "no" / "v.nii.gz")


@pytest.mark.parametrize("members", [1, 2])
def test_gzip_in_several_members_or_with_a_tail_is_read(tmp_path, members):
    slice3d.save(slice3d.Volume(DATA, slice3d.Grid(DATA.shape, AFFINE)), tmp_path / "v.nii")
    content = (tmp_path / "v.nii").read_bytes()
    half = len(content) // 2 if members == 2 else len(content)
    parts = gzip.compress(content[:half]) + (gzip.compress(content[half:]) if members == 2 else b"")
    for name, tail in (("a.nii.gz", b""), ("b.nii.gz", gzip.compress(b"more"))):
        (tmp_path / name).write_bytes(parts + tail)
        np.testing.assert_array_equal(slice3d.load(tmp_path / name).data, DATA)
    for n in range(len(parts) // 3, len(parts) - 9, len(parts) // 7):
        (tmp_path / "c.nii.gz").write_bytes(parts[:n])
        with pytest.raises(InputError, match="copy it again"):
            slice3d.load(tmp_path / "c.nii.gz")


def test_volumes_travel_between_processes(source):
    import pickle

    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.data, source.data)
    assert again.source.slices[2].sop_instance == source.source.slices[2].sop_instance


def test_dicom_in_memory_is_not_copied(source):
    """The array is the decoder's own buffer, read-only."""
    assert not source.data.flags.writeable
    assert source.data.base is not None
    buffer = io.BytesIO()
    np.save(buffer, source.data)
    with pytest.raises(ValueError, match="read-only"):
        source.data[0, 0, 0] = 1


def test_volume_files_are_listed_from_their_headers(tmp_path, monkeypatch):
    """Colours, complex numbers and four dimensions are listed with a finding; voxels are never read."""
    pictures = np.zeros((5, 7, 9), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(pictures, np.eye(4)), tmp_path / "rgb.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 7, 9), np.complex64), np.eye(4)), tmp_path / "complex.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 7, 9, 4), np.int16), np.diag([2, 2, 3, 1])), tmp_path / "four.nii")
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    sitk.WriteImage(image, str(tmp_path / "plain.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True), str(tmp_path / "v.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.float32)), str(tmp_path / "flat.mha"))

    def unread(*_):
        raise AssertionError("voxels were read")

    monkeypatch.setattr("slice3d.io.nifti._values", unread)
    monkeypatch.setattr("slice3d.io.itk._read", unread)
    listed = {p.name: slice3d.scan(p).series[0] for p in tmp_path.iterdir()}
    assert listed["plain.mha"].shape == (6, 5, 4)
    assert listed["four.nii"].shape == (5, 7, 9)
    assert {n: e.picked for n, e in listed.items()} == {
        "rgb.nii": False, "complex.nii.gz": False, "four.nii": True, "plain.mha": True, "v.nrrd": False,
        "flat.mha": False,
    }  # fmt: skip
    codes = {n: [f.code for f in e.findings] for n, e in listed.items()}
    assert "several-volumes" in codes["four.nii"]
    assert all("not-a-volume" in codes[n] for n in ("rgb.nii", "complex.nii.gz", "v.nrrd", "flat.mha"))
    monkeypatch.undo()
    for name, entry in listed.items():
        if entry.picked:
            assert slice3d.load(tmp_path / name).grid.shape == entry.shape
        else:
            with pytest.raises(InputError):
                slice3d.load(tmp_path / name)


def test_unknown_unit_of_length_is_reported(tmp_path):
    content = bytearray(nibabel.Nifti1Image(DATA, AFFINE).to_bytes())
    content[123] = 4
    (tmp_path / "odd.nii").write_bytes(bytes(content))
    assert [f.details for f in slice3d.load(tmp_path / "odd.nii").findings if f.code == "units"] == [{"code": 4}]
