from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slice3d import io
from slice3d.cli.view import view
from slice3d.errors import InputError, MissingExtraError
from tests.viewer.study import study

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ipyniivue") is None, reason="ipyniivue (extra viewer) is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("view")
    volume, segmentation, meshes = study()
    io.save(volume, out / "ct.nii.gz")
    io.save(segmentation, out / "seg.nii.gz")
    io.save(meshes["liver"], out / "liver.stl")
    return out


def _run(*arguments: object) -> object:
    app = typer.Typer()
    app.command()(view)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_view_makes_a_page(folder: Path) -> None:
    ran = _run(folder / "ct.nii.gz", folder / "seg.nii.gz", folder / "liver.stl", "--out", folder / "page.html")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert '"name": "liver"' in text
    assert "open it in a browser" in ran.output


def test_view_of_a_study_alone(folder: Path) -> None:
    ran = _run(folder / "ct.nii.gz", "--out", folder / "alone.html", "--quiet")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert ran.output == ""
    assert (folder / "alone.html").stat().st_size > 1e6


def test_bad_input_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = _run(folder / "ct.nii.gz", folder / "seg.nii.gz", folder / "ct.nii.gz")
    assert isinstance(two.exception, InputError)
    assert "got 2 segmentations" in str(two.exception)
    gone = _run(folder / "ct.nii.gz", folder / "gone.stl")
    assert isinstance(gone.exception, InputError)
    assert "gone.stl" in str(gone.exception)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    assert isinstance(_run(folder / "ct.nii.gz").exception, MissingExtraError)
