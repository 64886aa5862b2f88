from __future__ import annotations

import hashlib
import html
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from slice3d import io
from slice3d.cli.view import view
from slice3d.errors import GeometryError, InputError, MissingExtraError
from slice3d.grid import Grid
from slice3d.resample import resample_labels
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


def test_the_page_says_what_it_was_made_from(folder: Path) -> None:
    ran = _run(folder / "ct.nii.gz", folder / "seg.nii.gz", folder / "liver.stl", "--out", folder / "whole.html")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    text = (folder / "whole.html").read_text(encoding="utf-8")
    seen = html.unescape(
        re.sub(r"<[^>]+>", "|", text[text.index('id="numbers-title"') : text.index('class="licence"')])
    )
    # labels without a surface are not left out because another one has a surface; each is one piece
    assert re.search(r"Spleen\|+[\d.,]+\|+–\|+–\|+1\|", seen)
    assert re.search(r"Liver\|+[\d.,]+\|+[\d.,]+\|+[\d.,]+\|+1\|", seen)
    assert hashlib.sha256((folder / "seg.nii.gz").read_bytes()).hexdigest() in seen
    assert "seg.nii" not in seen


def test_labels_on_another_grid_are_said(folder: Path) -> None:
    _, segmentation, _ = study()
    coarse = Grid((20, 15, 12), segmentation.grid.affine @ np.diag([2, 2, 1, 1.0]))
    io.save(resample_labels(segmentation, grid=coarse), folder / "coarse.nii.gz")
    ran = _run(folder / "ct.nii.gz", folder / "coarse.nii.gz", "--out", folder / "coarse.html")
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert "labels-resampled" in (folder / "coarse.html").read_text(encoding="utf-8")


def test_what_belongs_to_another_study_is_refused(folder: Path) -> None:
    _, segmentation, meshes = study()
    away = segmentation.grid.affine.copy()
    away[2, 3] += 1000
    io.save(replace(segmentation, grid=Grid(segmentation.grid.shape, away)), folder / "away.nii.gz")
    ran = _run(folder / "ct.nii.gz", folder / "away.nii.gz", "--out", folder / "away.html")
    assert isinstance(ran.exception, GeometryError)
    assert "no labelled voxel of away.nii.gz" in str(ran.exception)
    for shift, code in ((1000, None), (30, "surface-outside"), (0, "")):
        moved = replace(meshes["liver"], vertices=np.add(meshes["liver"].vertices, [0, 0, shift]))
        io.save(moved, folder / "moved.stl")
        ran = _run(folder / "ct.nii.gz", folder / "moved.stl", "--out", folder / "moved.html")
        if code is None:
            assert isinstance(ran.exception, GeometryError)
            assert not (folder / "moved.html").exists()
        else:
            assert ran.exit_code == 0, (ran.output, ran.exception)
            assert ("surface-outside" in (folder / "moved.html").read_text(encoding="utf-8")) == bool(code)


def test_bad_input_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = _run(folder / "ct.nii.gz", folder / "seg.nii.gz", folder / "ct.nii.gz")
    assert isinstance(two.exception, InputError)
    assert "got 2 segmentations" in str(two.exception)
    gone = _run(folder / "ct.nii.gz", folder / "gone.stl")
    assert isinstance(gone.exception, InputError)
    assert "gone.stl" in str(gone.exception)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    assert isinstance(_run(folder / "ct.nii.gz").exception, MissingExtraError)
