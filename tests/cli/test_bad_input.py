"""Each kind of bad input gives one line (found, expected, remedy), the right exit code, and leaves the output alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slice3d import Volume, save
from tests.builders import oblique_grid


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "liver.stl").write_text("an earlier result")
    return folder


def _one_line(err: str) -> str:
    assert err.count("\n") == 1, err
    assert err.startswith("slice3d: ")
    assert "Traceback" not in err
    return err


def _untouched(out: Path) -> None:
    assert [p.name for p in out.iterdir()] == ["liver.stl"]
    assert (out / "liver.stl").read_text() == "an earlier result"
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".slice3d-")]


def _ct(path: Path, **kwargs: object) -> Path:
    data = np.zeros((5, 7, 11), np.int16)
    save(Volume(data, oblique_grid(), **kwargs), path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "garbage"])
def test_no_study(kind: str, tmp_path: Path, out: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    study = tmp_path / "study"
    if kind != "missing":
        study.mkdir()
    if kind == "text":
        (study / "readme.txt").write_text("no images here")
    if kind == "garbage":
        (study / "1.dcm").write_bytes(bytes(range(256)) * 9)
    code, _, err = slice3d("segment", study, "--organ", "liver", "--out", out)
    assert code == 2
    assert "study" in _one_line(err)
    _untouched(out)


def test_unknown_organ_lists_what_there_is(tmp_path: Path, out: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    study = _ct(tmp_path / "ct.nii.gz")
    code, _, err = slice3d("segment", study, "--organ", "livver", "--out", out)
    assert code == 2
    assert "did you mean 'liver'?" in _one_line(err)
    assert "spleen" in err
    _untouched(out)


def test_unknown_model(tmp_path: Path, out: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    study = _ct(tmp_path / "ct.nii.gz")
    code, _, err = slice3d("segment", study, "--organ", "liver", "--model", "ct-torsoo", "--out", out)
    assert code == 3
    assert "ct-torso" in _one_line(err)
    _untouched(out)


def test_unwritable_output(tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    study = _ct(tmp_path / "ct.nii.gz")
    (tmp_path / "file").write_text("")
    code, _, err = slice3d("segment", study, "--organ", "liver", "--out", tmp_path / "file")
    assert code == 2
    assert "--out" in _one_line(err)
    code, _, err = slice3d("segment", study, "--organ", "liver", "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "cannot write" in _one_line(err)


def test_a_reference_of_something_else(tmp_path: Path, out: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    study = _ct(tmp_path / "ct.nii.gz")
    code, _, err = slice3d(
        "segment", study, "--organ", "liver", "--out", out, "--reference", tmp_path / "nothing.nii.gz"
    )
    assert code == 2
    assert "nothing.nii.gz" in _one_line(err)
    _untouched(out)


def test_no_organ_at_all(tmp_path: Path, out: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    code, _, err = slice3d("segment", _ct(tmp_path / "ct.nii.gz"), "--organ", " , ", "--out", out)
    assert code == 2
    assert "--organ liver" in _one_line(err)


def test_version_and_help(slice3d) -> None:  # type: ignore[no-untyped-def]
    code, printed, _ = slice3d("--version")
    assert code == 0
    assert printed.startswith("slice3d ")
    code, printed, _ = slice3d("--help")
    assert code == 0
    for command in ("segment", "info", "models", "sample", "evaluate", "mesh"):
        assert command in printed
