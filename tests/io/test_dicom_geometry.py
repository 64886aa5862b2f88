"""Voxels and positions survive the way through DICOM, and every irregularity is measured, repaired or refused."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import slice3d
from slice3d.errors import GeometryError, InputError
from slice3d.io import load_4d
from tests.io.dicom_files import asymmetric, enhanced, image, oblique, series, slice_affine, write

spacings = st.tuples(*[st.floats(0.3, 8.0)] * 3)
angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3)
origins = st.tuples(*[st.floats(-500, 500)] * 3)


def codes(volume: slice3d.Volume) -> set[str]:
    return {f.code for f in volume.findings}


@given(spacings, angles, origins, st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_random_oblique_grids_come_back(spacing_mm, turn, origin_mm, seed):
    affine = oblique(spacing_mm, turn, origin_mm)
    data = asymmetric((6, 5, 4), seed)
    with tempfile.TemporaryDirectory() as folder:
        volume = slice3d.load(write(series(data, affine), Path(folder), shuffle=seed))
    assert volume.data.dtype == np.int16
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)
    assert not codes(volume)


@given(angles, st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_enhanced_multiframe_comes_back(turn, seed):
    affine, data = oblique((0.9, 1.4, 2.5), turn), asymmetric((6, 5, 4), seed)
    with tempfile.TemporaryDirectory() as folder:
        volume = slice3d.load(write([enhanced(data, affine)], Path(folder)))
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)


def test_header_distances_are_not_believed(tmp_path):
    affine, data = oblique((1, 1, 2.5)), asymmetric()
    lies = {"SliceThickness": "5", "SpacingBetweenSlices": "7"}
    volume = slice3d.load(write(series(data, affine, extra=lies), tmp_path))
    assert volume.grid.spacing_mm[2] == pytest.approx(2.5, abs=1e-6)
    assert codes(volume) == {"overlapping-slices"}
    overlap = volume.findings[0]
    assert overlap.severity == "info"
    assert overlap.details["thickness_mm"] == 5


def ramp(affine, shape, places, direction):
    """HU that equals the world coordinate along `direction` × 10: linear interpolation keeps it exact."""
    i, j, k = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), places, indexing="ij")
    world = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return world @ direction * 10


def assert_world(volume, direction, tolerance_mm=0.05 + 0.051):
    """Every voxel that was measured holds its own world coordinate (values are rounded to 0.1 mm)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.grid.shape), indexing="ij"), axis=-1)
    expected = volume.grid.to_world(index) @ direction
    found = volume.data / 10.0
    inside = volume.data > -1024
    assert inside.mean() > 0.4
    assert np.abs(found - expected)[inside].max() < tolerance_mm


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("angle", [-24.0, 3.0, 18.5])
def test_tilted_gantry_is_resampled_where_the_planes_were(tmp_path, direction, angle):
    affine = oblique((0.8, 0.7, 4.0), (0, 0, 0), (20, 10, 20))
    # the stack runs along z while the planes lean: a shear along the column direction
    lean = np.radians(angle)
    sheared = affine.copy()
    sheared[:3, 1] = 0.7 * np.array([0, -np.cos(lean), np.sin(lean)])
    shape, places = (20, 24, 9), np.arange(9)
    data = ramp(sheared, shape, places, np.array(direction, float))
    uids = {"series": generate_uid(), "study": generate_uid()}
    files = [
        image((np.rint(data[:, :, k].T) + 1024).astype(np.uint16), slice_affine(sheared, k), number=k, **uids)
        for k in range(9)
    ]
    volume = slice3d.load(write(files, tmp_path))
    tilt = next(f for f in volume.findings if f.code == "gantry-tilt")
    assert tilt.details["tilt_deg"] == pytest.approx(abs(angle), abs=0.01)
    assert volume.grid.is_orthogonal
    assert_world(volume, np.array(direction, float))
    assert volume.synthesised is not None
    with pytest.raises(GeometryError, match=r"sheared by .*on_tilt='resample'"):
        slice3d.load(tmp_path, on_tilt="refuse")


@pytest.mark.parametrize(
    ("places", "code", "step"),
    [
        ([0, 1, 2, 4, 5, 6], "missing-slices", 1.0),
        ([0, 1, 4, 5], "missing-slices", 1.0),
        ([0, 1, 2, 3, 3.3, 5, 6.7, 8.4], "variable-spacing", 1.0),
        ([0, 0.9, 2.1, 3.2, 3.9, 5.1], "variable-spacing", None),
    ],
)
def test_uneven_slices_are_resampled_along_true_positions(tmp_path, places, code, step):
    affine = oblique((0.8, 0.9, 3.0), (0.1, 0.2, -0.3), (20, 10, 20))
    normal = affine[:3, 2] / 3.0
    data = ramp(affine, (8, 9, len(places)), np.array(places), normal)
    volume = slice3d.load(write(series(np.rint(data), affine, at=np.array(places)), tmp_path, shuffle=3))
    assert {code, "resampled"} <= codes(volume)
    if step:
        assert volume.grid.spacing_mm[2] == pytest.approx(3.0 * step, abs=1e-6)
    assert_world(volume, normal)
    # planes on acquired positions are measured, the others are marked
    depth = np.arange(volume.grid.shape[2]) * volume.grid.spacing_mm[2] / 3.0
    on_slice = np.abs(depth[:, None] - np.array(places)).min(axis=1) < 0.006
    np.testing.assert_array_equal(volume.synthesised.all(axis=(0, 1)), ~on_slice)
    with pytest.raises(GeometryError, match="on_gap='resample'"):
        slice3d.load(tmp_path, on_gap="refuse")


def test_missing_slice_is_counted_in_millimetres(tmp_path):
    volume = slice3d.load(
        write(series(asymmetric((5, 6, 5)), oblique((1, 1, 2)), at=np.array([0, 1, 3, 4, 6])), tmp_path)
    )
    finding = next(f for f in volume.findings if f.code == "missing-slices")
    assert finding.details["missing"] == 2
    assert finding.details["largest_mm"] == pytest.approx(4)
    assert finding.details["gaps_start_at_mm"] == [2.0, 8.0]


def test_duplicates_are_told_apart(tmp_path):
    affine, data = oblique(), asymmetric()
    files = series(data, affine)
    write(files, tmp_path / "a")
    write(files[1:3], tmp_path / "b")
    volume = slice3d.load(tmp_path)
    np.testing.assert_array_equal(volume.data, data)
    finding = next(f for f in volume.findings if f.code == "duplicate-files")
    assert finding.details["files"] == 2
    # the same place twice, with another instance UID and other pixels
    other = image(files[2].pixel_array + 1, slice_affine(affine, 2), number=99, series=files[0].SeriesInstanceUID,
                  study=files[0].StudyInstanceUID)  # fmt: skip
    volume = slice3d.load(write([*files, other], tmp_path / "c"))
    np.testing.assert_array_equal(volume.data, data)
    assert "duplicate-positions" in codes(volume)


def test_several_orientations_become_several_volumes(tmp_path):
    uids = {"series": generate_uid(), "study": generate_uid()}
    first, second = oblique(angles=(0, 0, 0)), oblique(angles=(np.pi / 2, 0, 0))
    a, b = asymmetric((6, 5, 4), 1), asymmetric((6, 5, 7), 2)
    files = [*series(a, first, **uids), *series(b, second, **uids)]
    for n, dataset in enumerate(files):
        dataset.InstanceNumber = n
    write(files, tmp_path, shuffle=4)
    listing = slice3d.scan(tmp_path)
    assert [s.key for s in listing] == ["1.1", "1.2"]
    for key, data, affine in (("1.1", a, first), ("1.2", b, second)):
        volume = slice3d.load(tmp_path, series=key)
        np.testing.assert_array_equal(volume.data, data)
        np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)
        assert "several-orientations" in codes(volume)


@pytest.mark.parametrize(
    ("keyword", "values", "label"),
    [
        ("EchoTime", [2.5, 7.5], "EchoTime"),
        ("DiffusionBValue", [0.0, 500.0, 1000.0], "DiffusionBValue"),
        ("TemporalPositionIdentifier", [1, 2, 3], "TemporalPositionIndex"),
        ("TriggerTime", [0.0, 120.0], "TriggerTime"),
        ("AcquisitionNumber", [1, 2], "AcquisitionNumber"),
    ],
)
def test_phases_echoes_and_b_values_become_volumes(tmp_path, keyword, values, label):
    uids = {"series": generate_uid(), "study": generate_uid()}
    affine = oblique()
    volumes = [asymmetric((6, 5, 4), n) for n in range(len(values))]
    files = []
    for data, value in zip(volumes, values, strict=True):
        files += series(data, affine, modality="MR", **uids, extra={keyword: value})
    for n, dataset in enumerate(files):
        dataset.InstanceNumber = n
        dataset.AcquisitionTime = f"1011{n:02d}"  # differs from slice to slice and tells nothing
    write(files, tmp_path, shuffle=1)
    loaded = load_4d(tmp_path)
    assert len(loaded) == len(values)
    for got, data in zip(loaded, volumes, strict=True):
        np.testing.assert_array_equal(got.data, data)
        assert "several-volumes" in codes(got)
    assert [next(iter(s.label)) for s in slice3d.scan(tmp_path)] == [label] * len(values)
    np.testing.assert_array_equal(slice3d.load(tmp_path, series="1.2").data, volumes[1])


def test_repetitions_without_a_reason_follow_the_image_numbers(tmp_path):
    uids = {"series": generate_uid(), "study": generate_uid()}
    affine = oblique()
    volumes = [asymmetric((6, 5, 4), n) for n in range(2)]
    files = [*series(volumes[0], affine, **uids), *series(volumes[1], affine, **uids)]
    for n, dataset in enumerate(files):
        dataset.InstanceNumber = n
    loaded = load_4d(write(files, tmp_path, shuffle=2))
    for got, data in zip(loaded, volumes, strict=True):
        np.testing.assert_array_equal(got.data, data)
    assert any("no header says why" in f.message for f in loaded[0].findings)


def test_multi_echo_in_one_enhanced_file(tmp_path):
    affine, data = oblique(), asymmetric((6, 5, 8))
    groups = []
    for k in range(8):
        echo = Dataset()
        echo.EffectiveEchoTime = 3.0 + 5.0 * (k // 4)
        groups.append({"MREchoSequence": echo})
    dataset = enhanced(data, affine, modality="MR", groups=groups)
    for k, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence = dataset.PerFrameFunctionalGroupsSequence[k % 4].PlanePositionSequence
    loaded = load_4d(write([dataset], tmp_path))
    np.testing.assert_array_equal(loaded[0].data, data[..., :4])
    np.testing.assert_array_equal(loaded[1].data, data[..., 4:])


def test_one_slice_says_that_its_thickness_is_not_measured(tmp_path):
    volume = slice3d.load(write(series(asymmetric((6, 5, 1)), oblique((1, 1, 3))), tmp_path))
    assert volume.grid.shape == (6, 5, 1)
    finding = next(f for f in volume.findings if f.code == "single-slice")
    assert finding.details["assumed_mm"] == 3


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 0.5, 0.5, 0]),
        ("PixelSpacing", [0, 0]),
        ("PixelSpacing", [-1, 1]),
    ],
)
def test_impossible_geometry_is_refused(tmp_path, keyword, value):
    with pytest.raises(InputError, match="expected"):
        slice3d.load(write(series(asymmetric(), oblique(), extra={keyword: value}), tmp_path))


def test_pictures_without_positions_are_no_volume(tmp_path):
    files = series(asymmetric(), oblique())
    for dataset in files:
        del dataset.ImagePositionPatient
    with pytest.raises(InputError, match="without slice positions"):
        slice3d.load(write(files, tmp_path))


def test_slices_far_apart_do_not_allocate_the_gap(tmp_path):
    files = series(asymmetric((6, 5, 4)), oblique((1, 1, 1)), at=np.array([0, 1, 2, 5_000_000]))
    with pytest.raises(GeometryError, match="lie together"):
        slice3d.load(write(files, tmp_path))


def test_wide_holes_are_not_bridged(tmp_path):
    data = np.full((6, 5, 8), 40, dtype=np.int16)
    places = np.array([0, 1, 2, 3, 40, 41, 42, 43])
    volume = slice3d.load(write(series(data, oblique((1, 1, 2)), at=places), tmp_path))
    assert volume.grid.shape == (6, 5, 44)
    assert set(np.unique(volume.data[..., 4:40])) == {-1024}
    assert volume.synthesised[..., 4:40].all()
    assert not volume.synthesised[..., :4].any()


def test_repair_holds_the_result_and_a_few_slices(tmp_path):
    """Beyond the array and its mask of estimated voxels only some slices are in memory at a time."""
    data = np.zeros((256, 256, 120), np.int16) + np.arange(120, dtype=np.int16)
    folder = write(series(data, oblique(), at=np.delete(np.arange(121), 60)), tmp_path / "study")
    slice3d.load(folder)
    tracemalloc.start()
    volume = slice3d.load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.synthesised is not None
    # the acquired slices as a whole would be as large as the array
    assert peak < 1.3 * volume.data.nbytes + volume.synthesised.nbytes + 4 * 2**20


def test_widest_type_of_any_slice_holds_for_all(tmp_path):
    """Slices are repaired a few at a time; one far on with fractions makes the whole array floating."""
    data = asymmetric((6, 5, 40))
    files = series(data, oblique(), at=np.delete(np.arange(41), 20))
    files[37].RescaleSlope = 0.5
    volume = slice3d.load(write(files, tmp_path / "study"))
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data[..., :20], data[..., :20])
    np.testing.assert_array_equal(volume.data[..., 38], 0.5 * (data[..., 37] + 1024.0) - 1024)
    np.testing.assert_array_equal(volume.data[..., 40], data[..., 39])


def phases(at, numbers, **changes):
    """Slices at `at` mm with instance numbers, and what else is the same for all."""
    files = series(asymmetric((6, 5, len(at))), oblique((0.7, 1.3, 1.0)), at=np.array(at, float))
    for file, number in zip(files, numbers, strict=True):
        file.InstanceNumber = number
        for keyword, value in changes.items():
            setattr(file, keyword, value)
    return files


def test_phases_between_each_other_are_told_apart_by_their_order(tmp_path):
    """Two phases 3 mm apart, the second 1.1 mm further on; nothing but the image numbers says so."""
    first, second = np.arange(8) * 3.0, np.arange(8) * 3.0 + 1.1
    folder = write(phases([*first, *second], range(1, 17)), tmp_path / "study", shuffle=1)
    found = load_4d(folder)
    assert [v.grid.shape for v in found] == [(6, 5, 8)] * 2
    assert [round(v.grid.spacing_mm[2], 6) for v in found] == [3.0, 3.0]
    values = asymmetric((6, 5, 16))
    np.testing.assert_array_equal(found[0].data, values[..., :8])
    np.testing.assert_array_equal(found[1].data, values[..., 8:])
    assert all("several-volumes" in [f.code for f in v.findings] for v in found)


def test_one_stack_of_alternating_distances_stays_one(tmp_path):
    """The same places imaged in one sweep are one volume with varying distances."""
    places = sorted([*np.arange(8) * 3.0, *(np.arange(8) * 3.0 + 1.1)])
    found = load_4d(write(phases(places, range(1, 17)), tmp_path / "study", shuffle=1))
    assert len(found) == 1
    assert "variable-spacing" in [f.code for f in found[0].findings]


def test_an_interleaved_acquisition_of_even_slices_stays_one(tmp_path):
    """Odd slices first, then even ones, as MR is acquired: one volume."""
    order = [1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 8, 16]
    found = load_4d(write(phases(np.arange(16) * 3.0, order), tmp_path / "study", shuffle=1))
    assert [v.grid.shape for v in found] == [(6, 5, 16)]


def test_phases_that_nothing_tells_apart_are_refused(tmp_path):
    """Two images at every position and no image numbers: any choice would mix the phases."""
    folder = write(phases([0, 3, 6, 9, 0, 3, 6, 9], [0] * 8), tmp_path / "study", shuffle=2)
    listed = slice3d.scan(folder).series
    assert [entry.picked for entry in listed] == [False]
    with pytest.raises(InputError, match=r"2 images at every slice position.*export each phase"):
        slice3d.load(folder)
    with pytest.raises(InputError, match="2 images at every slice position"):
        slice3d.load(folder, series="1")
