"""`slice3d segment dicomweb://…` and back, through the command line, against a real archive."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

import slice3d
from slice3d.cli.main import main
from slice3d.io.meshes_dicom import read_encapsulated
from slice3d.pacs import Auth, fetched, push
from tests.inference.builders import write_threshold_package
from tests.pacs import orthanc

AUTH = Auth(user=orthanc.USER, password=orthanc.PASSWORD)


def _call(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["slice3d", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("SLICE3D_DICOMWEB_USER", orthanc.USER)
    monkeypatch.setenv("SLICE3D_DICOMWEB_PASSWORD", orthanc.PASSWORD)
    return monkeypatch


@pytest.fixture
def model(patch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An installed model that is quick, and differs on every study: whatever is dense it calls liver."""
    patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_threshold_package(tmp_path / "cache" / "slice3d" / "models" / "dense", 90.0).name


@pytest.fixture(scope="module")
def address(archive: int, study: Path) -> str:
    root = f"dicomweb+http://127.0.0.1:{archive}/dicom-web"
    push(sorted(study.iterdir()), root, auth=AUTH)
    uid = pydicom.dcmread(next(study.iterdir()), stop_before_pixels=True).StudyInstanceUID
    return f"{root}/studies/{uid}"


def test_there_and_back(address: str, study: Path, model: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    root, uid = address.split("/studies/")
    out, direct = tmp_path / "out", tmp_path / "direct"
    options = ["--organ", "liver", "--model", model, "--no-report", "--quiet"]
    patch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    import tempfile

    patch.setattr(tempfile, "tempdir", None)
    assert _call(patch, "segment", address, "--out", out, "--dicom-seg", "--dicom-stl", *options) == 0
    assert _call(patch, "segment", study, "--out", direct, *options) == 0
    assert [p for p in (tmp_path / "tmp").rglob("*") if "slice3d" in p.name or p.suffix == ".dcm"] == []
    mine = slice3d.load_segmentation(direct / "segmentation.nii.gz")
    assert np.array_equal(slice3d.load_segmentation(out / "segmentation.nii.gz").labels, mine.labels)
    assert 0 < np.count_nonzero(mine.mask("liver")) < mine.labels.size

    before = {p.name for p in out.iterdir()}
    assert {"segmentation.dcm", "liver.dcm"} <= before
    assert _call(patch, "push", out, "--to", root, "--quiet") == 0
    volume = slice3d.load(study)
    with fetched(address, auth=AUTH) as folder:
        # the archive may hold results of earlier tests on the same study: ours are told by their instance UIDs
        stored_as = {_instance(p): p for p in folder.iterdir()}
        back = slice3d.load_segmentation(stored_as[_instance(out / "segmentation.dcm")], reference=volume)
        (mesh,) = read_encapsulated(stored_as[_instance(out / "liver.dcm")])
        stored = pydicom.dcmread(stored_as[_instance(out / "liver.dcm")], stop_before_pixels=True)
        assert (str(stored.StudyInstanceUID), str(stored.PatientID)) == (uid, str(_first(study).PatientID))
    assert np.array_equal(back.mask("liver"), mine.mask("liver"))
    assert mesh.volume_ml == pytest.approx(float(slice3d.surface(mine, "liver").volume_ml), rel=1e-3)


def test_an_archive_as_a_cohort_is_fetched_once(
    address: str, model: str, tmp_path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = address.split("/studies/")[0]
    call = ["batch", f"{root}?ModalitiesInStudy=CT", "--organ", "liver", "--model", model, "--memory", "3GiB", "--json"]
    (tmp_path / "tmp").mkdir()
    patch.setenv("TMPDIR", str(tmp_path / "tmp"))
    counts = []
    for _ in range(2):
        capsys.readouterr()
        assert _call(patch, *call, "--dicom-seg", "--out", tmp_path / "out") == 0
        counts.append(json.loads(capsys.readouterr().out))
    assert [(c["done"], c["reused"], c["failed"]) for c in counts] == [(1, 0, 0), (0, 1, 0)]
    (case,) = (tmp_path / "out" / "cases").iterdir()
    assert {"segmentation.dcm", "liver.stl", "case.json"} <= {p.name for p in case.iterdir()}
    assert [p for p in (tmp_path / "tmp").rglob("*") if "slice3d" in p.name or p.suffix == ".dcm"] == []
    assert address.split("/studies/")[1] not in (tmp_path / "out" / "cohort.csv").read_text()


def _instance(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def _first(study: Path) -> pydicom.Dataset:
    return pydicom.dcmread(next(study.iterdir()), stop_before_pixels=True)


def test_an_archive_that_says_no_leaves_nothing(
    address: str, tmp_path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patch.setenv("SLICE3D_DICOMWEB_PASSWORD", "wrong")
    assert _call(patch, "segment", address, "--organ", "liver", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "SLICE3D_DICOMWEB_TOKEN" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dicomweb://pacs.invalid/dicom-web?PatientName=DOE", "names no study"),
        ("dicomweb+http://pacs.invalid/dicom-web/studies/1.2", "this machine alone"),
        ("dicomweb://user:pw@pacs.invalid/dicom-web/studies/1.2", "SLICE3D_DICOMWEB_TOKEN"),
    ],
)
def test_addresses_that_cannot_be_used(
    text: str, words: str, tmp_path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(patch, "segment", text, "--organ", "liver", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert "DOE" not in error
    assert "pw" not in error


def test_a_folder_may_be_called_like_a_scheme(study: Path, tmp_path: Path) -> None:
    from slice3d.cohort import find_cases

    (tmp_path / "dicomweb" / "one").mkdir(parents=True)
    (case,) = find_cases(str(tmp_path / "dicomweb"))
    assert case.source.endswith("one")
