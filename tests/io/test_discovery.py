"""What lies under a path: studies, series, pictures, damaged files; and which of them a person would load."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

import slice3d
from slice3d.cli.main import main
from slice3d.errors import InputError
from tests.io.dicom_files import asymmetric, enhanced, oblique, series, write

AFFINE = oblique()
SECRETS = ("Secret", "Person", "ID-12345", "19700102", "20200102")


def study(**changes):
    """One CT series of 9 slices."""
    data = asymmetric((8, 6, 9))
    datasets = series(
        data, AFFINE, study=changes.pop("study", None), extra={"SeriesDescription": "Abdomen 4.0", **changes}
    )
    return data, datasets


def test_listing_of_a_mixed_folder(tmp_path):
    uid = generate_uid()
    data, main = study(study=uid)
    write(main, tmp_path / "S1")
    localizer = series(asymmetric((8, 6, 2)), oblique((1, 1, 50)), study=uid,
                       extra={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesNumber": 2})  # fmt: skip
    write(localizer, tmp_path / "S2")
    capture = series(
        asymmetric((8, 6, 1)), AFFINE, study=uid, extra={"SeriesNumber": 3, "ImageType": ["DERIVED", "SECONDARY"]}
    )
    for dataset in capture:
        del dataset.ImagePositionPatient
        dataset.Modality = "SC"
    write(capture, tmp_path / "S3")
    report = capture[0].copy()
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    report.Modality, report.SeriesNumber, report.SeriesInstanceUID = "SR", 4, generate_uid()
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    write([report], tmp_path / "S4")
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\x00\x05\x00CS\xff")
    listing = slice3d.scan(tmp_path)
    assert [(s.kind, s.modality) for s in listing] == [
        ("volume", "CT"),
        ("volume", "CT"),
        ("picture", "SC"),
        ("other", "SR"),
    ]
    assert [s.role for s in listing] == ["acquired", "localiser", "secondary capture", ""]
    assert listing.picked == "1"
    assert [s.picked for s in listing] == [True, False, False, False]
    assert listing.series[0].shape == data.shape
    assert listing.series[0].orientation == slice3d.load(tmp_path, series="1").grid.orientation
    assert listing.series[2].problem
    document = json.dumps(listing.to_dict())
    assert not any(secret in document for secret in (*SECRETS, str(tmp_path), uid))
    volume = slice3d.load(tmp_path)
    np.testing.assert_array_equal(volume.data, data)
    picked = next(f for f in volume.findings if f.code == "series-picked")
    assert "not a localiser" in picked.message
    assert any(f.code == "damaged-files" for f in volume.findings)
    assert not any(secret in repr((volume.findings, volume.metadata)) for secret in SECRETS)


@pytest.mark.parametrize("selector", ["2", "thin", "uid"])
def test_series_can_be_named(tmp_path, selector):
    uid = generate_uid()
    _, main = study(study=uid)
    thin = series(
        asymmetric((8, 6, 9), 5), AFFINE, study=uid, extra={"SeriesNumber": 2, "SeriesDescription": "Abdomen THIN"}
    )
    write([*main, *thin], tmp_path)
    wanted = thin[0].SeriesInstanceUID if selector == "uid" else selector
    np.testing.assert_array_equal(slice3d.load(tmp_path, series=wanted).data, asymmetric((8, 6, 9), 5))
    with pytest.raises(InputError, match=r"no series match 'lung'; expected one of: 1: CT 'Abdomen 4.0' 8×6×9"):
        slice3d.load(tmp_path, series="lung")
    with pytest.raises(InputError, match="2 series match 'abdomen'"):
        slice3d.load(tmp_path, series="abdomen")


@pytest.mark.parametrize("what", ["patients", "studies", "modalities"])
def test_guessing_is_refused_where_it_would_be_dangerous(tmp_path, what):
    uid = generate_uid()
    _, main = study(study=uid)
    extra = {"PatientID": "ANOTHER"} if what == "patients" else {}
    other = series(asymmetric((8, 6, 9)), AFFINE, study=generate_uid() if what == "studies" else uid,
                   modality="MR" if what == "modalities" else "CT", extra=extra)  # fmt: skip
    write([*main, *other], tmp_path)
    with pytest.raises(InputError, match=rf"volumes of 2 {what}.*--series: 1: .*; 2: ") as caught:
        slice3d.load(tmp_path)
    assert "\n" not in str(caught.value)
    listing = slice3d.scan(tmp_path)
    assert listing.picked == ""
    assert what in listing.why
    assert slice3d.load(tmp_path, series="2").grid.shape == (8, 6, 9)


def test_pet_beside_ct_is_no_riddle(tmp_path):
    uid = generate_uid()
    data, main = study(study=uid)
    write([*main, *series(asymmetric((8, 6, 20)), AFFINE, study=uid, modality="PT")], tmp_path)
    np.testing.assert_array_equal(slice3d.load(tmp_path).data, data)


def test_soft_tissue_is_taken_before_bone_and_acquired_before_derived(tmp_path):
    uid = generate_uid()
    kinds = [
        {"ConvolutionKernel": "B70f", "SeriesNumber": 1},
        {"ConvolutionKernel": "B30f", "SeriesNumber": 2, "SeriesDescription": "soft"},
        {"ConvolutionKernel": "B30f", "SeriesNumber": 3, "ImageType": ["DERIVED", "SECONDARY", "MPR"]},
    ]
    for kind in kinds:
        write(series(asymmetric((8, 6, 9)), AFFINE, study=uid, extra=kind), tmp_path / str(kind["SeriesNumber"]))
    volume = slice3d.load(tmp_path)
    assert volume.metadata["SeriesDescription"] == "soft"


def test_zip_is_read_in_place(tmp_path):
    data, main = study()
    write(main, tmp_path / "study")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in (tmp_path / "study").iterdir():
            packed.write(file, f"a/b/{file.name}")
        packed.writestr("__MACOSX/a/._x", b"noise")
        packed.writestr("readme.txt", "hello")
    before = sorted(tmp_path.rglob("*"))
    listing = slice3d.scan(archive)
    assert listing.series[0].shape == data.shape
    volume = slice3d.load(archive)
    np.testing.assert_array_equal(volume.data, data)
    assert sorted(tmp_path.rglob("*")) == before
    # what was loaded from a .zip can still be written back
    labels = np.zeros(data.shape, np.uint8)
    labels[2:5, 1:4, 3:6] = 1
    slice3d.save(slice3d.Segmentation(labels, volume.grid, {1: "liver"}), tmp_path / "seg.dcm", source=volume)
    assert slice3d.load_segmentation(tmp_path / "seg.dcm").volume_ml("liver") == pytest.approx(
        27 * volume.grid.voxel_volume_mm3 / 1000
    )


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_zip_with_names_that_lead_outside_is_refused(tmp_path, name):
    archive = tmp_path / "s.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(InputError, match="outside the archive"):
        slice3d.scan(archive)


def test_zip_bombs_are_refused(tmp_path):
    archive = tmp_path / "s.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", bytes(100 * 2**20))
    with pytest.raises(InputError, match="expands"):
        slice3d.scan(archive)


def test_damaged_and_encrypted_zip(tmp_path):
    _, main = study()
    archive = tmp_path / "s.zip"
    buffer = io.BytesIO()
    main[0].save_as(buffer, enforce_file_format=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", buffer.getvalue())
    content = bytearray(archive.read_bytes())
    flipped = content.copy()
    flipped[60:200] = bytes(140)
    archive.write_bytes(flipped)
    with pytest.raises(InputError):
        slice3d.load(archive)
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError):
        slice3d.load(archive)
    locked = content.copy()
    for position in (6, locked.index(b"PK\x01\x02") + 8):
        locked[position] |= 1
    archive.write_bytes(locked)
    with pytest.raises(InputError):
        slice3d.load(archive)


def test_dicomdir(tmp_path):
    data, main = study()
    media = FileSet()
    for dataset in main:
        media.add(dataset)
    media.write(tmp_path / "cd")
    media._stage["t"].cleanup()  # else its finalizer warns at some later time, in some other test
    listing = slice3d.scan(tmp_path / "cd" / "DICOMDIR")
    assert listing.files == 9
    np.testing.assert_array_equal(slice3d.load(tmp_path / "cd" / "DICOMDIR").data, data)
    np.testing.assert_array_equal(slice3d.load(tmp_path / "cd").data, data)
    victim = next(p for p in sorted((tmp_path / "cd").rglob("*")) if p.is_file() and p.name != "DICOMDIR")
    victim.unlink()
    volume = slice3d.load(tmp_path / "cd" / "DICOMDIR")
    assert any(f.code == "dicomdir-incomplete" for f in volume.findings)


def test_single_files(tmp_path):
    data, main = study()
    write([enhanced(data, AFFINE)], tmp_path / "m")
    np.testing.assert_array_equal(slice3d.load(tmp_path / "m" / "IM0000").data, data)
    write(main, tmp_path / "s")
    assert slice3d.load(tmp_path / "s" / "IM0000").grid.shape == (8, 6, 1)


def test_files_without_preamble_are_read(tmp_path):
    data, main = study()
    for n, dataset in enumerate(main):
        buffer = io.BytesIO()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True, enforce_file_format=True)
        whole = buffer.getvalue()
        length = 132 + 12 + int.from_bytes(whole[140:144], "little")
        (tmp_path / f"{n}").write_bytes(whole[length:])
    np.testing.assert_array_equal(slice3d.load(tmp_path).data, data)


def test_listing_reads_headers_only(tmp_path, monkeypatch):
    """Of 2000 files with 512 kB of pixels each, less than 64 kB per file is read."""
    _, main = study()
    dataset = main[0]
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = bytes(512 * 512 * 2)
    write([dataset], tmp_path / "one")
    content = (tmp_path / "one" / "IM0000").read_bytes()
    place = content.index(dataset.SOPInstanceUID.encode())
    (tmp_path / "many").mkdir()
    header = len(content) - 512 * 512 * 2
    for n in range(2000):
        fresh = bytearray(content[:header])
        mark = f"{n:05d}".encode()
        for start in (place, content.index(dataset.SOPInstanceUID.encode(), place + 1)):
            end = start + len(dataset.SOPInstanceUID)
            fresh[end - 5 : end] = mark
        with (tmp_path / "many" / f"{n}").open("wb") as file:
            file.write(fresh)
            file.truncate(len(content))  # a sparse file: the pixels cost no disk
    read = []
    original = Path.open

    def counting(self, *args, **kwargs):
        stream = original(self, *args, **kwargs)
        if "many" in self.parts:
            raw = stream.read
            stream = _Counting(stream, raw, read)
        return stream

    monkeypatch.setattr(Path, "open", counting)
    listing = slice3d.scan(tmp_path / "many")
    assert listing.files == 2000
    assert sum(read) < 2000 * 64 * 1024


class _Counting:
    """A stream that notes how much was read from it."""

    def __init__(self, stream, raw, read):
        self._stream, self._raw, self._read = stream, raw, read

    def read(self, *args):
        data = self._raw(*args)
        self._read.append(len(data))
        return data

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stream.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: p, "is empty"),
        (lambda p: (p / "a.txt").write_text("x") and p, "none is DICOM"),
        (lambda p: (p / "a.txt").write_text("x") and p / "a.txt", "neither DICOM"),
    ],
)
def test_nothing_to_load_is_one_clear_line(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as caught:
        slice3d.load(make(tmp_path))
    text = str(caught.value)
    assert "\n" not in text
    assert "expected" in text
    assert str(tmp_path) not in text


def test_a_folder_of_other_volumes_says_what_to_name(tmp_path):
    volume = slice3d.Volume(asymmetric(), slice3d.Grid((9, 7, 5), AFFINE))
    for name in ("a.nii.gz", "b.nii.gz"):
        slice3d.save(volume, tmp_path / name)
    with pytest.raises(InputError, match=r"no DICOM but 2 volume files such as a\.nii\.gz; .* name it"):
        slice3d.load(tmp_path)


def test_a_study_without_pixels_says_so(tmp_path):
    _, main = study()
    for dataset in main:
        del dataset.PixelData
    with pytest.raises(InputError, match=r"9 DICOM files without image pixels \(CT\)"):
        slice3d.load(write(main, tmp_path))
    listing = slice3d.scan(tmp_path)
    assert listing.picked == ""
    assert "without image pixels" in listing.why


@pytest.mark.parametrize("names", [(), ("notes.txt", "readme")])
def test_a_folder_without_dicom_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, names):
    folder = tmp_path / "nothing"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("no study")
    for options in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["slice3d", "info", str(folder), *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        out = capsys.readouterr()
        assert out.out == ""
        assert out.err.startswith("slice3d: nothing ")
        assert out.err.count("\n") == 1
