from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.io import load_segmentation
from slice3d.samples import StudyPaths, write_study

COMMITTED = Path(__file__).parents[2] / "sample_data"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyPaths:
    return write_study(tmp_path_factory.mktemp("sample") / "study")


def _hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix in {".dcm", ".json"}
    }


def test_committed_study_is_what_the_code_makes(study: StudyPaths) -> None:
    made, committed = _hashes(study.truth.parent), _hashes(COMMITTED)
    assert len(made) == 227
    assert made == committed
    # Compressed bytes depend on the zlib at hand, their content must not.
    fresh, stored = load_segmentation(study.truth), load_segmentation(COMMITTED / "truth.nii.gz")
    assert np.array_equal(fresh.labels, stored.labels)
    assert fresh.grid == stored.grid
    assert stored.values("liver") == (1, 9)
    assert set(stored.structures) >= {"liver", "liver_tumor", "kidneys", "lungs", "bone", "aorta", "body"}
    assert sum(p.stat().st_size for p in COMMITTED.rglob("*") if p.is_file()) < 8e6


def test_same_seed_same_bytes_other_seed_other_identity(tmp_path: Path) -> None:
    coarse = (9.0, 9.0, 30.0)
    a = write_study(tmp_path / "a", seed=3, spacing_mm=coarse)
    b = write_study(tmp_path / "b", seed=3, spacing_mm=coarse)
    c = write_study(tmp_path / "c", seed=4, spacing_mm=coarse)
    assert _hashes(a.truth.parent) == _hashes(b.truth.parent)
    import pydicom

    first, other = (pydicom.dcmread(p.dicom / "IM0001.dcm") for p in (a, c))
    assert first.StudyInstanceUID != other.StudyInstanceUID
    assert first.SOPInstanceUID != other.SOPInstanceUID


def test_an_independent_reader_sees_the_truth(study: StudyPaths) -> None:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(study.dicom)))
    image = reader.Execute()
    truth = SimpleITK.ReadImage(str(study.truth))
    assert image.GetSize() == truth.GetSize() == (192, 192, 226)
    assert image.GetSpacing() == pytest.approx((2.3, 2.3, 3.0))
    assert image.GetOrigin() == pytest.approx(truth.GetOrigin(), abs=1e-3)
    assert image.GetDirection() == pytest.approx(truth.GetDirection(), abs=1e-6)
    hu, labels = SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(truth)
    exact = json.loads(study.volumes.read_text(encoding="utf-8"))
    codes = exact["labels"]
    for name, expected in (("liver", 110), ("spleen", 120), ("kidney_left", 180), ("lung_right", -850)):
        assert np.median(hu[labels == codes[name]]) == pytest.approx(expected, abs=3), name
    liver_x = np.argwhere(labels == codes["liver"]).mean(axis=0)[2]
    assert image.TransformContinuousIndexToPhysicalPoint((liver_x, 0.0, 0.0))[0] < -30  # ITK is LPS: right is negative
    voxel_ml = np.prod(image.GetSpacing()) / 1000
    liver_ml = np.isin(labels, exact["groups"]["liver"]).sum() * voxel_ml
    assert liver_ml == pytest.approx(exact["volumes_ml"]["liver"], rel=0.01)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian dicom3tools) is not installed")
def test_files_satisfy_the_standards_validator(study: StudyPaths) -> None:
    for number in (1, 113, 226):
        ran = subprocess.run(
            ["dciodvfy", str(study.dicom / f"IM{number:04d}.dcm")], capture_output=True, text=True, check=False
        )
        assert ran.stdout.split() + ran.stderr.split() == ["CTImage"], ran.stderr


@pytest.mark.skipif(shutil.which("dcmdjpls") is None, reason="dcmdjpls (Debian dcmtk) is not installed")
def test_another_codec_decodes_the_same_pixels(study: StudyPaths, tmp_path: Path) -> None:
    import pydicom

    source = study.dicom / "IM0120.dcm"
    subprocess.run(["dcmdjpls", str(source), str(tmp_path / "plain.dcm")], check=True, capture_output=True)
    assert np.array_equal(pydicom.dcmread(source).pixel_array, pydicom.dcmread(tmp_path / "plain.dcm").pixel_array)


def test_numbers_run_downwards_and_positions_tell_the_truth(study: StudyPaths) -> None:
    import pydicom

    top, bottom = (pydicom.dcmread(study.dicom / f"IM{n:04d}.dcm", stop_before_pixels=True) for n in (1, 226))
    assert (top.InstanceNumber, bottom.InstanceNumber) == (1, 226)
    assert top.ImagePositionPatient[2] - bottom.ImagePositionPatient[2] == pytest.approx(225 * 3.0)


def test_existing_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(InputError, match="not an empty folder"):
        write_study(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_command_generates_again_and_refuses_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer
    from typer.testing import CliRunner

    from slice3d.cli.sample import sample
    from slice3d.samples import study as module

    real = module.torso
    monkeypatch.setattr(
        module, "torso", lambda phantom, **options: real(phantom, **options | {"spacing_mm": (9.0, 9.0, 30.0)})
    )
    app = typer.Typer()
    app.command()(sample)
    out = tmp_path / "made"
    first = CliRunner().invoke(app, [str(out), "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.output)["volumes_ml"]["liver"] == pytest.approx(1833.3, abs=0.5)
    before = _hashes(out)
    (out / "notes.md").write_text("mine", encoding="utf-8")
    assert CliRunner().invoke(app, [str(out), "--quiet"]).exit_code == 0
    assert _hashes(out) == before
    assert (out / "notes.md").exists()
    refused = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(refused.exception, InputError)
