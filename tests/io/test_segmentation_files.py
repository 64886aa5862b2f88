"""Segmentations go back onto the acquired slices and come back from every file kind."""

from __future__ import annotations

import re
import warnings

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import slice3d
from slice3d import anatomy
from slice3d.errors import GeometryError, InputError
from tests.io.dicom_files import LPS, asymmetric, enhanced, image, oblique, series, slice_affine, write
from tests.io.tools import validate

AFFINE = oblique()
SHAPE = (16, 12, 8)
NAMES = {1: "liver", 2: "kidney_left", 5: "liver_tumor"}


def labelled(grid):
    """Three boxes of different sizes, nothing symmetric."""
    labels = np.zeros(grid.shape, np.uint8)
    i, j, k = grid.shape
    labels[i // 8 : i // 2, j // 6 : j // 2, 0 : k // 2] = 1
    labels[i // 2 + 1 : i - 2, j // 2 : j - 1, k // 3 : k - 1] = 2
    labels[i // 8 + 1 : i // 4 + 1, j // 6 + 1 : j // 3, 1 : max(2, k // 4)] = 5
    return slice3d.Segmentation(labels, grid, NAMES, groups={"liver": (1, 5)})


@pytest.fixture
def volume(tmp_path):
    return slice3d.load(write(series(asymmetric(SHAPE), AFFINE), tmp_path / "study", shuffle=1))


@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_dicom_seg_round_trip(tmp_path, volume, kind):
    given_ = labelled(volume.grid)
    path = tmp_path / "seg.dcm"
    slice3d.save(given_, path, source=volume, kind=kind)
    found = slice3d.load_segmentation(path, reference=volume)
    assert found.grid.matches(volume.grid)
    for name in ("liver", "kidney_left", "liver_tumor"):
        np.testing.assert_array_equal(found.mask(name), given_.mask(name), err_msg=name)
    alone = slice3d.load_segmentation(path)
    for name in ("liver", "kidney_left", "liver_tumor"):
        assert alone.volume_ml(name) == pytest.approx(given_.volume_ml(name), rel=1e-4)
        world = alone.grid.to_world(np.argwhere(alone.mask(name))).mean(axis=0)
        np.testing.assert_allclose(world, volume.grid.to_world(np.argwhere(given_.mask(name))).mean(axis=0), atol=1e-3)


def test_dicom_seg_as_highdicom_reads_it(tmp_path, volume):
    given_ = labelled(volume.grid)
    slice3d.save(given_, tmp_path / "seg.dcm", source=volume)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    sources = [item.sop_instance for item in volume.source.slices]
    for number in seg.segment_numbers:
        description = seg.get_segment_description(number)
        name = description.segment_label
        pixels = seg.get_pixels_by_source_instance(
            sources, segment_numbers=[number], assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(pixels[..., 0].transpose(2, 1, 0) > 0, given_.mask(name))
        structure = anatomy.STRUCTURES[name]
        assert description.segmented_property_type.value == structure.code
        assert description.segmented_property_type.scheme_designator == "SCT"
        assert description.segmented_property_category.value == (
            "49755003" if structure.kind == "lesion" else "91723000"
        )
        colour = hd.color.CIELabColor.from_dicom_value(description.RecommendedDisplayCIELabValue).to_rgb()
        assert np.abs(np.array(colour) - structure.color).max() <= 2
    left = next(d for d in seg.SegmentSequence if d.SegmentLabel == "kidney_left")
    assert left.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"


def test_dicom_seg_as_pydicom_alone_reads_it(tmp_path, volume):
    """No SEG library: frames, positions and references by hand."""
    given_ = labelled(volume.grid)
    slice3d.save(given_, tmp_path / "seg.dcm", source=volume)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    headers = {d.SOPInstanceUID: d for d in volume.source.datasets()}
    count = dict.fromkeys(given_.structures, 0)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        name = seg.SegmentSequence[number - 1].SegmentLabel
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(position, np.array(headers[reference].ImagePositionPatient, float), atol=1e-6)
        k = round(float(volume.grid.to_index(position * (-1, -1, 1))[2]))
        np.testing.assert_array_equal(frame.T > 0, given_.mask(name)[:, :, k])
        count[name] += int(frame.sum())
    assert count == {name: int(given_.mask(name).sum()) for name in given_.structures}
    assert seg.PatientID == "ID-12345"
    assert seg.StudyInstanceUID == next(iter(headers.values())).StudyInstanceUID


@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_dicom_seg_is_valid(tmp_path, volume, kind):
    slice3d.save(labelled(volume.grid), tmp_path / "seg.dcm", source=volume, kind=kind)
    assert validate(tmp_path / "seg.dcm") == []


def test_labelmap_seg_is_valid_but_for_what_the_validator_does_not_know(tmp_path, volume):
    slice3d.save(labelled(volume.grid), tmp_path / "seg.dcm", source=volume, kind="labelmap")
    # the Debian dciodvfy predates Supplement 243 (Label Map Segmentation)
    unknown = ("Information Object Not found", "SegmentNumber not monotonically increasing")
    assert [e for e in validate(tmp_path / "seg.dcm") if not any(u in e for u in unknown)] == []


def test_labelmap_seg_is_valid_by_the_rules_of_the_older_object(tmp_path, volume):
    """What both kinds of SEG share is checked by declaring the file the kind that dciodvfy knows."""
    slice3d.save(labelled(volume.grid), tmp_path / "seg.dcm", source=volume, kind="labelmap")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SegmentationStorage
    dataset.save_as(tmp_path / "older.dcm")
    # Supplement 243: this type, background as segment 0, and the segment in the pixels instead of the frame's header
    changed = (
        "Unrecognized enumerated value <LABELMAP>",
        "of attribute <Segment Number>",
        "SegmentNumber not monotonically increasing",
        "SegmentIdentificationSequence",
    )
    errors = validate(tmp_path / "older.dcm")
    assert any(changed[0] in e for e in errors)
    assert [e for e in errors if not any(u in e for u in changed)] == []


@pytest.mark.parametrize(
    ("kept", "thickness", "guessed"), [((1, 2, 3), "2", False), ((0, 2, 4), "2", True), ((2,), "2", True)]
)
def test_seg_whose_slice_distance_is_a_guess_says_so(tmp_path, kept, thickness, guessed):
    """A foreign SEG without the distance of all slices, in which slices without labels are left out."""
    folder = tmp_path / "study"
    volume = slice3d.load(write(series(np.zeros((8, 6, 5), np.int16), oblique((0.7, 1.3, 2.0))), folder))
    labels = np.zeros((8, 6, 5), np.uint8)
    labels[2:6, 1:5, list(kept)] = 1
    path = tmp_path / "seg.dcm"
    slice3d.save(slice3d.Segmentation(labels, volume.grid, {1: "liver"}), path, source=volume)
    dataset = pydicom.dcmread(path)
    for groups in (dataset.SharedFunctionalGroupsSequence[0], *dataset.PerFrameFunctionalGroupsSequence):
        for measures in groups.get("PixelMeasuresSequence", []):
            measures.SliceThickness = thickness
            if "SpacingBetweenSlices" in measures:
                del measures.SpacingBetweenSlices
    dataset.save_as(path)
    found = slice3d.load_segmentation(path)
    assert ("slice-distance-guessed" in [f.code for f in found.findings]) == guessed
    sure = slice3d.load_segmentation(path, reference=volume)
    assert "slice-distance-guessed" not in [f.code for f in sure.findings]
    np.testing.assert_array_equal(sure.labels, labels)


def tilted_study(folder, places=tuple(range(8)), degrees=18.5):
    """A study whose planes lean against the direction in which they are stacked."""
    lean = np.radians(degrees)
    affine = oblique((0.9, 0.8, 4.0), (0, 0, 0), (20, 10, 20))
    affine[:3, 1] = 0.8 * np.array([0, -np.cos(lean), np.sin(lean)])
    uids = {"series": generate_uid(), "study": generate_uid()}
    stored = (asymmetric((30, 26, len(places))).astype(int) + 1024).astype(np.uint16)
    files = [image(stored[:, :, n].T, slice_affine(affine, k), number=n, **uids) for n, k in enumerate(places)]
    return slice3d.load(write(files, folder))


@pytest.mark.parametrize("places", [tuple(range(8)), (0, 1, 2, 4, 5, 7.5, 8.25, 10)])
@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_labels_of_a_tilted_or_uneven_study_land_on_its_own_slices(tmp_path, places, kind):
    volume = tilted_study(tmp_path / "study", places)
    assert volume.grid.shape != (30, 26, len(places))
    # a ball in world coordinates, voxelised on the repaired grid
    centre, radius = volume.grid.to_world((np.array(volume.grid.shape) - 1) / 2), 9.0
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.grid.shape), indexing="ij"), -1)
    distance = np.linalg.norm(volume.grid.to_world(index) - centre, axis=-1)
    given_ = slice3d.Segmentation((distance < radius).astype(np.uint8), volume.grid, {1: "liver"})
    slice3d.save(given_, tmp_path / "seg.dcm", source=volume, kind=kind)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    by_position = {tuple(np.round(np.array(d.ImagePositionPatient, float), 4)): d for d in volume.source.datasets()}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert frames.any()
    wrong = total = 0
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        # every frame lies exactly on an acquired slice, and its pixels are the ball cut by that slice's plane
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        assert tuple(np.round(position, 4)) in by_position
        orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        row, column = np.indices(frame.shape)
        points = position + column[..., None] * orientation[:3] * 0.9 + row[..., None] * orientation[3:] * 0.8
        truth = np.linalg.norm(points * (-1, -1, 1) - centre, axis=-1)
        # nearest-voxel labels may be off by half a voxel of the repaired grid
        reach = 0.5 * np.linalg.norm(volume.grid.spacing_mm) + 0.01
        clear = np.abs(truth - radius) > reach
        wrong += int(((frame > 0) != (truth < radius))[clear].sum())
        total += int((truth < radius).sum())
    assert total > 200
    assert wrong == 0
    found = slice3d.load_segmentation(tmp_path / "seg.dcm", reference=volume)
    overlap = (
        2
        * (found.mask("liver") & given_.mask("liver")).sum()
        / (found.mask("liver").sum() + given_.mask("liver").sum())
    )
    assert overlap > (0.97 if places == tuple(range(8)) else 0.8)
    alone = slice3d.load_segmentation(tmp_path / "seg.dcm")
    assert alone.grid.is_orthogonal
    np.testing.assert_allclose(alone.grid.to_world(np.argwhere(alone.mask("liver"))).mean(axis=0), centre, atol=1.5)
    assert any(f.code == "resampled" for f in alone.findings)


def test_super_resolved_labels_go_back_to_the_thick_slices(tmp_path, volume):
    fine = volume.grid.with_spacing((0.7, 1.3, 1.0))
    given_ = labelled(fine)
    slice3d.save(given_, tmp_path / "seg.dcm", source=volume)
    found = slice3d.load_segmentation(tmp_path / "seg.dcm", reference=volume)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.grid.shape), indexing="ij"), -1)
    nearest = np.floor(fine.to_index(volume.grid.to_world(index)) + 0.5).astype(int)
    for name in ("liver", "kidney_left", "liver_tumor"):
        np.testing.assert_array_equal(found.mask(name), given_.mask(name)[tuple(np.moveaxis(nearest, -1, 0))])


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_seg_of_a_multiframe_study(tmp_path, kind):
    volume = slice3d.load(write([enhanced(asymmetric(SHAPE), AFFINE)], tmp_path / "study"))
    given_ = labelled(volume.grid)
    slice3d.save(given_, tmp_path / "seg.dcm", source=volume, kind=kind)
    found = slice3d.load_segmentation(tmp_path / "seg.dcm", reference=volume)
    for name in ("liver", "kidney_left", "liver_tumor"):
        np.testing.assert_array_equal(found.mask(name), given_.mask(name))
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    groups = seg.PerFrameFunctionalGroupsSequence[0]
    assert (
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        == volume.source.slices[0].sop_instance
    )


def test_fractional_seg_keeps_probabilities(tmp_path, volume):
    field = np.linspace(0, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    given_ = slice3d.Segmentation(
        (field > 0.5).astype(np.uint8), volume.grid, {1: "liver"}, probabilities={"liver": field}
    )
    slice3d.save(given_, tmp_path / "seg.dcm", source=volume, kind="fractional")
    found = slice3d.load_segmentation(tmp_path / "seg.dcm", reference=volume)
    assert np.abs(found.probabilities["liver"] - field).max() <= 0.5 / 255 + 1e-6


@given(st.tuples(*[st.floats(-3.1, 3.1)] * 3), st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_seg_on_random_oblique_grids(tmp_path_factory, turn, seed):
    folder = tmp_path_factory.mktemp("seg")
    volume = slice3d.load(
        write(series(asymmetric((7, 6, 5), seed), oblique(angles=turn)), folder / "study", shuffle=seed)
    )
    labels = np.random.default_rng(seed).integers(0, 4, (7, 6, 5)).astype(np.uint8)
    given_ = slice3d.Segmentation(labels, volume.grid, {1: "liver", 2: "spleen", 3: "bone"})
    slice3d.save(given_, folder / "seg.dcm", source=volume)
    np.testing.assert_array_equal(slice3d.load_segmentation(folder / "seg.dcm", reference=volume).labels, labels)


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd", ".mha"])
def test_label_files_round_trip(tmp_path, suffix):
    grid = slice3d.Grid(SHAPE, AFFINE)
    given_ = labelled(grid)
    path = tmp_path / f"labels{suffix}"
    slice3d.save(given_, path)
    found = slice3d.load_segmentation(path)
    np.testing.assert_array_equal(found.labels, given_.labels)
    assert found.grid.matches(grid, tolerance_mm=1e-3)
    assert dict(found.names) == NAMES
    assert found.mask("liver").sum() == given_.mask("liver").sum()


def test_metaimage_carries_many_names_that_itk_reads_too(tmp_path):
    names = {n: f"part_{n}" for n in range(1, 151)}
    labels = np.arange(160, dtype=np.uint8).reshape(8, 5, 4) % 151
    path = tmp_path / "labels.mha"
    slice3d.save(slice3d.Segmentation(labels, slice3d.Grid(labels.shape, oblique()), names), path)
    found = slice3d.load_segmentation(path)
    assert dict(found.names) == names
    np.testing.assert_array_equal(found.labels, labels)
    assert dict(slice3d.load_segmentation(path, names={3: "liver"}).names) == {**names, 3: "liver"}
    import SimpleITK as sitk

    read = sitk.ReadImage(str(path))
    assert read.GetMetaData("Segment2_Name") == names[3]
    assert read.GetMetaData("Segment2_LabelValue") == "3"


def test_seg_nrrd_says_what_slicer_needs(tmp_path):
    grid = slice3d.Grid(SHAPE, AFFINE)
    slice3d.save(labelled(grid), tmp_path / "a.seg.nrrd")
    head = (tmp_path / "a.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
    fields = dict(line.split(":=", 1) for line in head.splitlines() if ":=" in line)
    assert head.startswith("NRRD0004")
    assert "space: left-posterior-superior" in head
    assert fields["Segment1_Name"] == "kidney_left"
    assert fields["Segment1_LabelValue"] == "2"
    assert [round(float(c) * 255) for c in fields["Segment1_Color"].split()] == list(anatomy.color("kidney_left"))
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in fields["Segment1_Tags"]
    import SimpleITK as sitk

    read = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_allclose(np.array(read.GetOrigin()) * (-1, -1, 1), AFFINE[:3, 3], atol=1e-6)


def test_overlapping_layers_of_slicer_are_understood(tmp_path):
    grid = slice3d.Grid((6, 5, 4), oblique())
    first, second = np.zeros((6, 5, 4), np.uint8), np.zeros((6, 5, 4), np.uint8)
    first[1:5, 1:4, 1:3] = 1
    second[3:6, 2:5, 0:2] = 1
    lps = LPS @ grid.affine
    vectors = " ".join("(" + ",".join(repr(float(x)) for x in lps[:3, n]) + ")" for n in range(3))
    head = [
        "NRRD0004", "type: unsigned char", "dimension: 4", "space: left-posterior-superior", "sizes: 2 6 5 4",
        f"space directions: none {vectors}", "kinds: list domain domain domain", "endian: little", "encoding: raw",
        "space origin: (" + ",".join(repr(float(x)) for x in lps[:3, 3]) + ")",
        "Segment0_ID:=a", "Segment0_Name:=liver", "Segment0_LabelValue:=1", "Segment0_Layer:=0",
        "Segment1_ID:=b", "Segment1_Name:=tumor", "Segment1_LabelValue:=1", "Segment1_Layer:=1",
    ]  # fmt: skip
    (tmp_path / "o.seg.nrrd").write_bytes(
        "\n".join(head).encode() + b"\n\n" + np.stack([first, second]).tobytes(order="F")
    )
    found = slice3d.load_segmentation(tmp_path / "o.seg.nrrd")
    np.testing.assert_array_equal(found.mask("liver"), first > 0)
    np.testing.assert_array_equal(found.mask("tumor"), second > 0)
    assert found.grid.matches(grid, tolerance_mm=1e-6)


def test_codes_are_those_of_the_standard():
    """Every code that DICOM's own tables know means there what it means here."""
    from pydicom.sr._concepts_dict import concepts

    official: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for code, (meaning, _) in entries.items():
            official.setdefault(code, set()).add(meaning.lower())
    known = 0
    for structure in anatomy.STRUCTURES.values():
        meanings = official.get(structure.code)
        if meanings:
            known += 1
            words = set(re.findall("[a-z0-9]+", structure.meaning.lower()))
            assert any(words & set(re.findall("[a-z0-9]+", m)) for m in meanings), (structure.name, meanings)
    assert known > 0.9 * len(anatomy.STRUCTURES)


def structure_set(volume, contours):
    """An RTSTRUCT with {name: [(N, 3) RAS points, …]} that refers to the series of `volume`."""
    header = volume.source.datasets()[0]
    out = Dataset()
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.SOPClassUID = out.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    out.Modality, out.StudyInstanceUID, out.SeriesInstanceUID = "RTSTRUCT", header.StudyInstanceUID, generate_uid()
    out.PatientID, out.PatientName, out.PatientBirthDate = header.PatientID, header.PatientName, header.PatientBirthDate
    series_item, study_item, frame_item = Dataset(), Dataset(), Dataset()
    series_item.SeriesInstanceUID = header.SeriesInstanceUID
    study_item.RTReferencedSeriesSequence = [series_item]
    frame_item.RTReferencedStudySequence = [study_item]
    out.ReferencedFrameOfReferenceSequence = [frame_item]
    rois, drawn = [], []
    for number, (name, lines) in enumerate(contours.items(), start=1):
        roi, holder = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        holder.ReferencedROINumber = number
        items = []
        for points in lines:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            item.ContourData = [f"{x:.6g}" for x in (points * (-1, -1, 1)).ravel()]
            items.append(item)
        holder.ContourSequence = items
        rois.append(roi)
        drawn.append(holder)
    out.StructureSetROISequence, out.ROIContourSequence = rois, drawn
    return out


def circle(grid, k, centre, radius_mm):
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    offset = np.stack(
        [np.cos(angle) * radius_mm / grid.spacing_mm[0], np.sin(angle) * radius_mm / grid.spacing_mm[1]], 1
    )
    return grid.to_world(np.column_stack([offset + centre, np.full(90, k)]))


def test_rtstruct_on_the_series_it_was_drawn_on(tmp_path):
    affine = oblique((0.8, 1.1, 3.0), (0.1, -0.2, 0.3))
    volume = slice3d.load(write(series(asymmetric((60, 50, 9)), affine), tmp_path / "study"))
    grid = volume.grid
    rings = [circle(grid, k, (30, 22), 15) for k in range(2, 7)] + [circle(grid, k, (30, 22), 6) for k in range(2, 7)]
    dots = [circle(grid, k, (33, 20), 4) for k in range(3, 5)]
    path = tmp_path / "study" / "RS.dcm"
    structure_set(volume, {"Liver": rings, "GTV": dots}).save_as(path, enforce_file_format=True)
    found = slice3d.load_segmentation(path)
    assert found.grid.matches(grid)
    # a ring between two circles: area to within the pixel size
    assert found.volume_ml("liver") == pytest.approx(np.pi * (15**2 - 6**2) * 5 * 3 / 1000, rel=0.02)
    assert found.volume_ml("tumor") == pytest.approx(np.pi * 4**2 * 2 * 3 / 1000, rel=0.06)
    index = np.stack(np.meshgrid(np.arange(60), np.arange(50), indexing="ij"), -1)
    distance = np.linalg.norm((index - (30, 22)) * grid.spacing_mm[:2], axis=-1)
    clear = (np.abs(distance - 15) > 0.1) & (np.abs(distance - 6) > 0.1)
    expected = (distance < 15) & (distance > 6)
    for k in range(9):
        mask = found.mask("liver")[:, :, k]
        np.testing.assert_array_equal(mask[clear], (expected if 2 <= k <= 6 else np.zeros_like(expected))[clear])
    by_reference = slice3d.load_segmentation(path, reference=volume)
    np.testing.assert_array_equal(by_reference.labels, found.labels)


def test_rtstruct_without_its_images_says_what_it_needs(tmp_path):
    volume = slice3d.load(write(series(asymmetric((20, 20, 5)), AFFINE), tmp_path / "study"))
    lines = {"liver": [circle(volume.grid, 2, (9, 9), 4)]}
    (tmp_path / "alone").mkdir()
    structure_set(volume, lines).save_as(tmp_path / "alone" / "rs.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="reference="):
        slice3d.load_segmentation(tmp_path / "alone" / "rs.dcm")
    sideways = slice3d.Volume(np.zeros((20, 20, 5), np.int16), slice3d.Grid((20, 20, 5), oblique(angles=(1.2, 0.4, 0))))
    with pytest.raises(GeometryError, match="drawn on its slices"):
        slice3d.load_segmentation(tmp_path / "alone" / "rs.dcm", reference=sideways)


def test_seg_needs_a_dicom_source(tmp_path, volume):
    plain = slice3d.Volume(volume.data, volume.grid)
    with pytest.raises(InputError, match="not loaded from DICOM"):
        slice3d.save(labelled(volume.grid), tmp_path / "a.dcm", source=plain)
    with pytest.raises(InputError, match="source="):
        slice3d.save(labelled(volume.grid), tmp_path / "a.dcm")
    assert list(tmp_path.glob("a.dcm*")) == []


def test_source_without_instance_uids_is_refused(tmp_path):
    datasets = series(asymmetric(SHAPE), AFFINE)
    for dataset in datasets:
        dataset.SOPInstanceUID = ""
    folder = tmp_path / "s"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n, dataset in enumerate(datasets):
            del dataset.file_meta.MediaStorageSOPInstanceUID
            pydicom.dcmwrite(folder / f"{n}", dataset, implicit_vr=False, little_endian=True)
    volume = slice3d.load(folder)
    with pytest.raises(InputError, match="no SOPInstanceUID"):
        slice3d.save(labelled(volume.grid), tmp_path / "a.dcm", source=volume)


def test_empty_segmentation_is_written_and_read(tmp_path, volume):
    empty = slice3d.Segmentation(np.zeros(SHAPE, np.uint8), volume.grid, {1: "liver"})
    slice3d.save(empty, tmp_path / "a.dcm", source=volume)
    found = slice3d.load_segmentation(tmp_path / "a.dcm", reference=volume)
    assert found.structures == ("liver",)
    assert not found.mask("liver").any()


def test_listed_structure_without_contours_is_empty(tmp_path):
    volume = slice3d.load(write(series(asymmetric((20, 20, 5)), AFFINE), tmp_path / "study"))
    path = tmp_path / "study" / "rs.dcm"
    drawn = [circle(volume.grid, k, (9, 9), 4) for k in (1, 2)]
    structure_set(volume, {"Liver": drawn, "Spleen": []}).save_as(path, enforce_file_format=True)
    found = slice3d.load_segmentation(path)
    assert found.structures == ("liver", "spleen")
    assert found.mask("liver").any()
    assert not found.mask("spleen").any()
    structure_set(volume, {"Liver": []}).save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match="no closed contour"):
        slice3d.load_segmentation(path)


def test_slices_left_out_of_a_seg_are_not_the_border_of_the_scan(tmp_path):
    """highdicom, like most writers, stores only slices with labels; the structure does not end at the scan there."""
    pixels = np.zeros((24, 20, 12), np.int16)
    volume = slice3d.load(write(series(pixels, oblique((1.0, 1.1, 2.0))), tmp_path / "study"))
    labels = np.zeros(pixels.shape, np.uint8)
    labels[6:18, 5:15, 3:9] = 1
    sources = volume.source.datasets()
    described = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="liver",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Liver,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    depth = [volume.grid.to_index(np.array(s.ImagePositionPatient, float) * (-1, -1, 1))[2] for s in sources]
    frames = np.stack([labels[:, :, round(k)].T for k in depth])
    path = tmp_path / "seg.dcm"
    names = ("m", "m", "1", "1")
    hd.seg.Segmentation(
        sources, frames, hd.seg.SegmentationTypeValues.BINARY, [described], generate_uid(), 1, generate_uid(), 1, *names
    ).save_as(path)
    assert len(pydicom.dcmread(path).PerFrameFunctionalGroupsSequence) == 6
    found = slice3d.load_segmentation(path)
    assert "empty-slices-left-out" in [f.code for f in found.findings]
    assert not found.mask("liver")[:, :, [0, -1]].any()
    assert slice3d.surface(found, "liver").findings == ()
    whole = slice3d.load_segmentation(path, reference=volume)
    assert "empty-slices-left-out" not in [f.code for f in whole.findings]
    np.testing.assert_array_equal(whole.labels, labels)
    np.testing.assert_allclose(
        slice3d.surface(found, "liver").bounds_mm, slice3d.surface(whole, "liver").bounds_mm, atol=1e-3
    )
