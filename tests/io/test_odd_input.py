"""What sloppy exporters, careless copies and hostile senders write, beyond what a damaged file holds."""

from __future__ import annotations

import gzip
import shutil
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

import slice3d
from slice3d.cli.info import describe
from slice3d.errors import GeometryError, InputError
from tests.io.dicom_files import asymmetric, enhanced, oblique, series, write
from tests.io.test_segmentation_files import circle, structure_set

AFFINE = oblique()
DATA = asymmetric((9, 7, 5))


def codes(volume):
    return [f.code for f in volume.findings]


def one_uid(datasets):
    for dataset in datasets:
        dataset.SOPInstanceUID = datasets[0].SOPInstanceUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return datasets


def joined(first, second):
    for dataset in second:
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = first[0].SeriesInstanceUID, first[0].StudyInstanceUID
    return [*first, *second]


def test_one_instance_uid_for_all_slices_loses_none(tmp_path):
    volume = slice3d.load(write(one_uid(series(DATA, AFFINE)), tmp_path / "study"))
    np.testing.assert_array_equal(volume.data, DATA)
    assert codes(volume) == ["shared-instance-uid"]
    labels = slice3d.Segmentation(np.ones(DATA.shape, np.uint8), volume.grid, {1: "liver"})
    with pytest.raises(InputError, match="share 1 SOPInstanceUIDs"):
        slice3d.save(labels, tmp_path / "seg.dcm", source=volume)


def test_echoes_between_each_other_are_not_mixed(tmp_path):
    first = series(DATA, AFFINE, modality="MR", extra={"EchoTime": 10})
    second = series(DATA[::-1], AFFINE, modality="MR", at=np.arange(5) + 0.5, extra={"EchoTime": 80})
    folder = write(joined(first, second), tmp_path / "study", shuffle=2)
    volume = slice3d.load(folder)
    np.testing.assert_array_equal(volume.data, DATA)
    assert [s.label for s in slice3d.scan(folder)] == [{"EchoTime": 10.0}, {"EchoTime": 80.0}]
    np.testing.assert_array_equal(slice3d.load(folder, series="1.2").data, DATA[::-1])


def test_stations_side_by_side_are_not_mixed(tmp_path):
    """Sagittal spines come in stations that share every position along the normal."""
    further = AFFINE.copy()
    further[:3, 3] += AFFINE[:3, 1] * 7
    first, second = series(DATA, AFFINE, modality="MR"), series(DATA[::-1], further, modality="MR")
    both = joined(first, second)
    for number, dataset in enumerate(both):
        k = number % 5
        dataset.InstanceNumber = 2 * k + 1 + ((number >= 5) ^ (k % 2))
    folder = write(both, tmp_path / "study")
    found = slice3d.io.load_4d(folder)
    assert [codes(v)[-1] for v in found] == ["several-volumes"] * 2
    by_place = sorted(found, key=lambda v: not v.grid.matches(slice3d.Grid(DATA.shape, AFFINE)))
    np.testing.assert_array_equal(by_place[0].data, DATA)
    np.testing.assert_array_equal(by_place[1].data, DATA[::-1])


def test_equal_volumes_are_taken_in_order_and_for_no_invented_reason(tmp_path):
    first = series(DATA, AFFINE, modality="MR", extra={"EchoTime": 10})
    second = series(DATA, oblique(origin_mm=(-31.0, 17.0, 240.0000001)), modality="MR", extra={"EchoTime": 80})
    listing = slice3d.scan(write(joined(first, second), tmp_path / "study"))
    assert (listing.picked, listing.why) == ("1.1", "it comes first of 2 alike")


def test_images_that_do_not_fit_the_others_are_reported(tmp_path):
    datasets = series(asymmetric((9, 7, 12)), AFFINE)
    for dataset in datasets[3:5]:
        dataset.PixelSpacing = ["1.3", "0.75"]
    volume = slice3d.load(write(datasets, tmp_path / "study"), series="1")
    finding = next(f for f in volume.findings if f.code == "several-sizes")
    assert finding.details["images"] == [10, 2]


@pytest.mark.parametrize("place", ["1e9", "1e30", "1e308"])
@pytest.mark.filterwarnings("error")
def test_positions_beyond_any_scanner_are_refused(tmp_path, place):
    datasets = series(DATA, AFFINE)
    datasets[4].ImagePositionPatient = ["0", "0", place]
    folder = write(datasets, tmp_path / "study")
    with pytest.raises(GeometryError, match="expected a place inside a scanner"):
        slice3d.load(folder, series="1")


def test_whole_numbers_beyond_32_bits_do_not_wrap(tmp_path):
    data = np.abs(DATA) + 30000
    datasets = series(data, AFFINE, slope=None)
    for dataset in datasets:
        dataset.RescaleSlope, dataset.RescaleIntercept = 100_000, 0
    volume = slice3d.load(write(datasets, tmp_path / "study"))
    np.testing.assert_allclose(volume.data, data * 1e5, rtol=1e-6)


def test_falling_rescale_with_padding_keeps_its_values(tmp_path):
    data = np.abs(DATA.astype(np.int64)) + 18000
    datasets = series(data, AFFINE, slope=None, extra={"PixelPaddingValue": 20000})
    for dataset in datasets:
        dataset.RescaleSlope, dataset.RescaleIntercept = -2, 0
    volume = slice3d.load(write(datasets, tmp_path / "study"))
    np.testing.assert_array_equal(volume.data, data * -2)


def test_dose_is_in_gray(tmp_path):
    datasets = series(np.abs(DATA), AFFINE, slope=None, extra={"DoseGridScaling": "0.001"})
    volume = slice3d.load(write(datasets, tmp_path / "study"))
    np.testing.assert_allclose(volume.data, np.abs(DATA) * 0.001, rtol=1e-6)


def test_frames_in_any_order_keep_their_own_scale(tmp_path):
    order, slopes = np.array([3, 0, 4, 1, 2]), np.arange(1, 6)
    dataset = enhanced(DATA, AFFINE)
    frames = [dataset.PerFrameFunctionalGroupsSequence[n] for n in order]
    for frame, slope in zip(frames, slopes, strict=True):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = int(slope), -1024 * int(slope), "HU"
        frame.PixelValueTransformationSequence = [item]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").reshape(5, 7, 9)[order].tobytes()
    volume = slice3d.load(write([dataset], tmp_path / "study"))
    np.testing.assert_array_equal(volume.data, DATA.astype(int) * slopes[np.argsort(order)])
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-6)


def test_probabilities_reach_the_border_of_the_slices(tmp_path):
    volume = slice3d.load(write(series(DATA, AFFINE, at=np.array([0, 1, 2, 4, 5])), tmp_path / "study"))
    ones = np.ones(volume.grid.shape, np.uint8)
    fields = {"liver": np.full(volume.grid.shape, 0.8, np.float32)}
    labels = slice3d.Segmentation(ones, volume.grid, {1: "liver"}, probabilities=fields)
    slice3d.save(labels, tmp_path / "seg.dcm", source=volume, kind="fractional")
    found = slice3d.load_segmentation(tmp_path / "seg.dcm", reference=volume)
    acquired = ~volume.synthesised.all(axis=(0, 1))
    assert found.probabilities["liver"][:, :, acquired].min() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("slices", [[2], [0, 4, 12], [3, 9]])
def test_sparse_structures_keep_their_volume(tmp_path, slices):
    """Slices without labels are left out of a SEG; thickness and declared distance of the source are lies."""
    datasets = series(asymmetric((9, 7, 14)), AFFINE, extra={"SliceThickness": "9", "SpacingBetweenSlices": "1"})
    volume = slice3d.load(write(datasets, tmp_path / "study"))
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[2:5, 1:4, slices] = 1
    given = slice3d.Segmentation(labels, volume.grid, {1: "liver"})
    slice3d.save(given, tmp_path / "seg.dcm", source=volume)
    found = slice3d.load_segmentation(tmp_path / "seg.dcm")
    assert found.volume_ml("liver") == pytest.approx(given.volume_ml("liver"))


def test_results_after_the_study_was_moved(tmp_path):
    volume = slice3d.load(write(series(DATA, AFFINE), tmp_path / "study"))
    shutil.rmtree(tmp_path / "study")
    labels = slice3d.Segmentation(np.ones(DATA.shape, np.uint8), volume.grid, {1: "liver"})
    with pytest.raises(InputError, match="cannot be read any more"):
        slice3d.save(labels, tmp_path / "seg.dcm", source=volume)
    with pytest.raises(InputError, match="cannot be read any more"):
        slice3d.save(volume, tmp_path / "series")
    assert not list(tmp_path.iterdir())


def test_series_is_not_written_over_a_file_nor_rounded_to_nothing(tmp_path):
    volume = slice3d.load(write(series(np.abs(DATA), AFFINE, modality="MR", slope=None), tmp_path / "study"))
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        slice3d.save(volume, tmp_path / "out")
    small = slice3d.Volume((volume.data / 3000).astype(np.float32), volume.grid, "MR", source=volume.source)
    with pytest.raises(InputError, match="rounded to whole numbers"):
        slice3d.save(small, tmp_path / "small")


def test_contours_far_apart_are_not_joined(tmp_path):
    volume = slice3d.load(write(series(asymmetric((20, 18, 20)), AFFINE), tmp_path / "study"))
    lines = {"liver": [circle(volume.grid, k, (9, 9), 4) for k in (3, 15)]}
    path = tmp_path / "rs.dcm"
    structure_set(volume, lines).save_as(path, enforce_file_format=True)
    found = slice3d.load_segmentation(path, reference=volume)
    assert np.flatnonzero(found.labels.any(axis=(0, 1))).tolist() == [3, 15]


@pytest.mark.parametrize("what", ["number", "reference", "points"])
def test_damaged_structure_sets_are_refused(tmp_path, what):
    volume = slice3d.load(write(series(asymmetric((20, 18, 5)), AFFINE), tmp_path / "study"))
    dataset = structure_set(volume, {"liver": [circle(volume.grid, 2, (9, 9), 4)]})
    if what == "number":
        del dataset.StructureSetROISequence[0].ROINumber
    elif what == "reference":
        del dataset.ROIContourSequence[0].ReferencedROINumber
    else:
        del dataset.ROIContourSequence[0].ContourSequence[0].ContourData
    dataset.save_as(tmp_path / "rs.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="damaged RTSTRUCT"):
        slice3d.load_segmentation(tmp_path / "rs.dcm", reference=volume)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_headers_do_not_reach_outside_their_folder(tmp_path, name):
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "sent"
    folder.mkdir()
    fields = ["ObjectType = Image", "NDims = 3", "DimSize = 4 4 4", "ElementSpacing = 1 1 1", "ElementType = MET_UCHAR"]
    (folder / "v.mhd").write_text("\n".join([*fields, f"ElementDataFile = {name}", ""]))
    fields = ["NRRD0004", "type: uchar", "dimension: 3", "sizes: 4 4 4", "encoding: raw"]
    (folder / "v.nhdr").write_text("\n".join([*fields, f"data file: {name}", ""]))
    for header in ("v.mhd", "v.nhdr"):
        with pytest.raises(InputError, match="outside its folder"):
            slice3d.load(folder / header)


def test_small_files_do_not_take_much_memory(tmp_path):
    """Twice 16 GB are promised; a deflate stream that small cannot hold them."""
    grid = slice3d.Grid((2, 3, 4), AFFINE)
    slice3d.save(slice3d.Volume(np.zeros((2, 3, 4), np.int16), grid), tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(bytes(content)))
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 2000 2000 2000", "encoding: gzip", "endian: little"]
    (tmp_path / "v.nrrd").write_bytes("\n".join([*lines, "", ""]).encode() + gzip.compress(bytes(1000)))
    for name in ("v.nii.gz", "v.nrrd"):
        with pytest.raises(InputError, match="is truncated: its header promises"):
            slice3d.load(tmp_path / name)


def test_linked_folders_and_endless_names(tmp_path):
    write(series(DATA, AFFINE), tmp_path / "elsewhere")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="links that lead out"):
        slice3d.load(tmp_path / "study")
    with pytest.raises(InputError, match="cannot be reached"):
        slice3d.load(tmp_path / ("a" * 5000))


def test_number_types_that_formats_do_not_know(tmp_path):
    grid = slice3d.Grid(DATA.shape, AFFINE)
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        slice3d.save(slice3d.Volume(DATA.astype(np.float16), grid), tmp_path / f"v{suffix}")
        found = slice3d.load(tmp_path / f"v{suffix}")
        np.testing.assert_array_equal(found.data, DATA.astype(np.float16))
        assert found.modality == ""
    with pytest.raises(InputError, match="expected 32-bit integers"):
        slice3d.save(slice3d.Volume(DATA.astype(np.int64) * 10**10, grid), tmp_path / "v.nii")


def test_listing_says_what_a_series_is(tmp_path):
    extra = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    listing = slice3d.scan(write(series(DATA, AFFINE, extra=extra), tmp_path / "study"))
    assert "(derived)" in describe(listing.series[0])


def test_images_that_were_cut_off_are_reported(tmp_path):
    datasets = series(asymmetric((9, 7, 9)), AFFINE)
    del datasets[2].PixelData
    folder = write(datasets, tmp_path / "study")
    (folder / "IM0004").write_bytes((folder / "IM0004").read_bytes()[:450])
    volume = slice3d.load(folder)
    assert {"images-without-pixels", "damaged-files", "missing-slices"} <= set(codes(volume))


def test_names_typed_into_descriptions_do_not_come_out(tmp_path):
    extra = {
        "SeriesDescription": "thorax SECRET, Person",
        "StudyDescription": "CT of ID-12345",
        "ProtocolName": "secret",
    }
    folder = write(series(DATA, AFFINE, extra=extra), tmp_path / "study")
    shown = repr(slice3d.scan(folder).to_dict()) + repr(dict(slice3d.load(folder).metadata))
    assert "thorax" in shown
    for word in ("secret", "person", "12345"):
        assert word not in shown.lower()


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("Phantom^Torso", "Synthetic torso phantom", "Synthetic torso phantom"),
        ("Abdomen^Zqx", "Abdomen portal, zqx", "Abdomen portal, …"),
        ("Lee^Jo", "thorax of Jo Lee, sleep study", "thorax of … …, sleep study"),
        ("Qarn-Zelp^Ada", "knee zelp", "knee …"),
    ],
)
def test_ordinary_words_stay_in_descriptions_and_names_do_not(tmp_path, name, text, shown):
    folder = write(series(DATA, AFFINE, extra={"PatientName": name, "StudyDescription": text}), tmp_path / "study")
    assert slice3d.scan(folder).studies[0].description == shown


def test_instance_uids_that_only_the_preamble_kept_are_used(tmp_path):
    datasets = series(DATA, AFFINE)
    folder = write(datasets, tmp_path / "study")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(path)
    volume = slice3d.load(folder)
    labels = slice3d.Segmentation(np.ones(DATA.shape, np.uint8), volume.grid, {1: "liver"})
    slice3d.save(labels, tmp_path / "seg.dcm", source=volume)
    written = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {i.ReferencedSOPInstanceUID for i in written} == {d.SOPInstanceUID for d in datasets}


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_seg_belongs_to_a_study_and_a_series(tmp_path, keyword):
    datasets = series(DATA, AFFINE)
    for dataset in datasets:
        setattr(dataset, keyword, "")
    volume = slice3d.load(write(datasets, tmp_path / "study"))
    labels = slice3d.Segmentation(np.ones(DATA.shape, np.uint8), volume.grid, {1: "liver"})
    with pytest.raises(InputError, match=f"carry no {keyword}"):
        slice3d.save(labels, tmp_path / "seg.dcm", source=volume)


def test_a_panic_of_the_decoder_is_an_error_like_others(tmp_path, monkeypatch):
    class PanicException(BaseException):  # as pyo3_runtime's, which cannot be imported
        pass

    def panic(*_):
        raise PanicException("index out of range")

    dataset = series(DATA, AFFINE)[0]
    dataset.compress(RLELossless, generate_instance_uid=False)
    folder = write([dataset], tmp_path / "study")
    monkeypatch.setattr("rle.rle.decode_frame", panic)
    with pytest.raises(InputError, match="damaged"):
        slice3d.load(folder)


@pytest.mark.parametrize(
    ("keyword", "named"),
    [
        ("ImagePositionPatient", "slice positions"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "pixel spacing"),
    ],
)
def test_missing_geometry_is_named(tmp_path, keyword, named):
    files = series(DATA, AFFINE)
    for file in files:
        setattr(file, keyword, None)
    folder = write(files, tmp_path / "study")
    with pytest.raises(InputError, match=f"without {named}"):
        slice3d.load(folder)
    with pytest.raises(GeometryError, match=f"without {named}.*expected ImagePositionPatient"):
        slice3d.load(folder, series="1")


def test_labels_of_volumes_are_shown_without_needless_digits(tmp_path):
    files = [*series(DATA, AFFINE, series="1.2", study="1.3"), *series(DATA, AFFINE, series="1.2", study="1.3")]
    for number, file in enumerate(files):
        file.AcquisitionNumber, file.InstanceNumber = 12 + number // DATA.shape[2], number + 1
    labels = [entry.label for entry in slice3d.scan(write(files, tmp_path / "study"))]
    assert repr(labels) == "[{'AcquisitionNumber': 12}, {'AcquisitionNumber': 13}]"
