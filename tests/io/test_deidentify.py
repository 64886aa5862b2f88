"""PS3.15 Basic Profile: identifiers planted in every attribute of its table, at every depth, are gone; the images
stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import slice3d
from slice3d.errors import InputError
from slice3d.io.dicom.deidentify import Deidentifier, _profile, deidentify
from slice3d.samples.study import write_study

TEXT, UID, DATE, NUMBER = "ZQXDOE", "1.2.826.0.1.777.4242", "19540817", 424242
MARKS = (TEXT.encode(), UID.encode(), DATE.encode(), b"424242", b"1954-08-17")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "s", spacing_mm=(16.0, 16.0, 40.0)).dicom


def _plant(dataset: Any, depth: int = 0) -> int:
    """An identifier in every attribute of the profile's table, in sequences too; how many."""
    planted = 0
    for tag in sorted(_profile()[0]):
        vr = pydicom.datadict.dictionary_VR(tag) if pydicom.datadict.dictionary_has_tag(tag) else ""
        if tag >> 16 in (0x0000, 0x0002) or (tag in dataset and vr == "UI"):
            continue
        value: Any = {
            "UI": f"{UID}.{tag}", "DA": DATE, "DT": f"{DATE}120000", "TM": "042424.2", "AS": "042Y",
            "UR": f"urn:{TEXT}", "PN": f"{TEXT}^JANE", "DS": str(NUMBER), "IS": str(NUMBER),
            "OB": TEXT.encode(), "UN": TEXT.encode(),
        }.get(vr, TEXT if vr in ("LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS") else None)  # fmt: skip
        if vr == "SQ" and depth < 2:
            item = Dataset()
            planted += _plant(item, depth + 2)
            item.ContentQualification = "RESEARCH"
            value = Sequence([item])
        if value is not None:
            dataset.add_new(tag, vr, value)
            planted += 1
    return planted


def _identified(path: Path) -> Any:
    dataset = pydicom.dcmread(path)
    assert _plant(dataset) > 600
    item = Dataset()  # a sequence that the profile keeps
    _plant(item, 2)
    dataset.AnatomicRegionSequence = Sequence([item])
    block = dataset.private_block(0x0029, f"{TEXT} HEADER", create=True)
    block.add_new(1, "LO", TEXT)
    dataset.add_new(0x00091001, "UN", TEXT.encode())
    dataset.add_new(0x50000010, "OW", TEXT.encode())  # a curve: a repeating group
    dataset.add_new(0x60004000, "LT", TEXT)
    dataset.add_new(0x0008FFF0, "LO", TEXT)  # no such attribute
    dataset.preamble = (TEXT * 30).encode()[:128]
    dataset.file_meta.SourceApplicationEntityTitle = TEXT
    dataset.BodyPartExamined = "HEAD"
    return dataset


def test_every_planted_identifier_is_gone_and_the_images_stay(study: Path, tmp_path: Path) -> None:
    source = tmp_path / f"{TEXT}^JANE"
    source.mkdir()
    for path in study.iterdir():
        _identified(path).save_as(source / f"{TEXT}_{path.name}", enforce_file_format=True)
    assert any(mark in p.read_bytes() for p in source.iterdir() for mark in MARKS[:3])
    findings = deidentify(source, tmp_path / "out")
    first = pydicom.dcmread(next(study.iterdir()))
    own = [str(first[name].value).encode() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")]
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert not [mark for mark in (*MARKS, *own) if mark in content], path.name
        assert TEXT not in path.name
    assert {f.code for f in findings} == {"recognisable-face"}
    had, got = slice3d.load(study), slice3d.load(tmp_path / "out")
    np.testing.assert_array_equal(got.data, had.data)
    np.testing.assert_allclose(got.grid.affine, had.grid.affine)
    one = pydicom.dcmread(next((tmp_path / "out").iterdir()))
    assert one.PatientIdentityRemoved == "YES"
    assert one.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert one.RecognizableVisualFeatures == "YES"
    assert len({pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "out").iterdir()}) == len(list(study.iterdir()))
    assert len({pydicom.dcmread(p).SeriesInstanceUID for p in (tmp_path / "out").iterdir()}) == 1


def test_the_key_decides_the_pseudonyms(study: Path) -> None:
    dataset = pydicom.dcmread(next(study.iterdir()))
    first, again, other = (Deidentifier(k * 32).dataset(dataset) for k in (b"a", b"a", b"b"))
    assert first.StudyInstanceUID == again.StudyInstanceUID != other.StudyInstanceUID
    assert first.PatientID == again.PatientID != other.PatientID
    assert first.StudyInstanceUID.is_valid
    assert dataset.PatientID == "SLICE3D-PHANTOM", "the original was changed"
    assert "a" * 8 not in repr(Deidentifier(b"a" * 32))


def test_references_between_files_stay_consistent(study: Path, tmp_path: Path) -> None:
    volume = slice3d.load(study)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[3:8, 4:9, 2:5] = 1
    folder = tmp_path / "in"
    folder.mkdir()
    for path in study.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    slice3d.save(slice3d.Segmentation(labels, volume.grid, {1: "liver"}), folder / "seg.dcm", source=volume)
    deidentify(folder, tmp_path / "out")
    sets = [pydicom.dcmread(p) for p in sorted((tmp_path / "out").iterdir())]
    (seg,) = [d for d in sets if d.Modality == "SEG"]
    images = {d.SOPInstanceUID for d in sets if d.Modality == "CT"}
    referenced = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced
    assert referenced <= images
    assert seg.FrameOfReferenceUID == next(d for d in sets if d.Modality == "CT").FrameOfReferenceUID


def test_reports_and_strangers_are_left_out(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    first = pydicom.dcmread(next(study.iterdir()))
    first.save_as(folder / "ct.dcm")
    first.Modality = "SR"
    first.save_as(folder / "sr.dcm")
    (folder / "notes.txt").write_text(TEXT)
    findings = deidentify(folder, tmp_path / "out")
    assert [f.details for f in findings] == [{"files": 2}]
    with pytest.raises(InputError, match="not an empty folder"):
        deidentify(folder, tmp_path / "out")
    (folder / "ct.dcm").unlink()
    with pytest.raises(InputError, match="no DICOM image"):
        deidentify(folder, tmp_path / "out2")


def test_text_in_pixels_is_warned_of(study: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(next(study.iterdir()))
    dataset.Modality = "US"
    dataset.save_as(tmp_path / "us.dcm")
    (finding,) = deidentify(tmp_path / "us.dcm", tmp_path / "out")
    assert finding.code == "burned-in-text"


def test_an_item_in_two_sequences_is_replaced_once(study: Path) -> None:
    dataset: Any = pydicom.dcmread(next(study.iterdir()))
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    series = Dataset()
    series.ReferencedInstanceSequence = Sequence([item])
    dataset.ReferencedSeriesSequence, dataset.SourceImageSequence = Sequence([series]), Sequence([item])
    result = Deidentifier(b"k" * 32).dataset(dataset)
    inner = result.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert inner.ReferencedSOPInstanceUID == result.SOPInstanceUID
    assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == result.SOPInstanceUID
    assert item.ReferencedSOPInstanceUID == dataset.SOPInstanceUID != result.SOPInstanceUID
