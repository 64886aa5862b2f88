"""`--dry-run` says what a run would do, and does nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import slice3d
from slice3d.cli.console import duration
from slice3d.cli.main import main
from slice3d.inference import Engine, Estimate
from tests.builders import oblique_grid

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slice3d", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[slice3d.Grid]:
    """The grids whose needs were asked for; the network is not run."""
    seen: list[slice3d.Grid] = []

    def estimate(engine: Engine, grid: slice3d.Grid, **_: object) -> Estimate:
        seen.append(grid)
        return Estimate(40, 2.5, 1.25, 8.0, "cpu", "float32", 2)

    monkeypatch.setattr("slice3d.inference.estimate", estimate)
    return seen


def _ct(path: Path) -> slice3d.Grid:
    grid = oblique_grid((17, 15, 12))
    slice3d.save(slice3d.Volume(np.zeros(grid.shape, np.int16), grid, modality="CT"), path)
    return grid


def test_plan_names_series_model_memory_and_time_and_writes_nothing(
    tmp_path: Path, call: Call, grids: list[slice3d.Grid]
) -> None:
    grid = _ct(tmp_path / "ct.nii.gz")
    before = sorted(tmp_path.iterdir())
    ask = ("segment", tmp_path / "ct.nii.gz", "--organ", "liver,kidneys", "--out", tmp_path / "out", "--dry-run")
    code, printed, err = call(*ask)
    assert (code, err) == (0, "")
    for part in ("17×15×12", "ct-torso", "CC-BY", "liver, kidneys", "1.2 GiB", "8.0 GiB", "2 min", "40 runs of 2.50 s"):
        assert part in printed
    assert "nothing was written" in printed
    code, printed, _ = call(*ask, "--json", "--no-report", "--dicom-seg")
    told = json.loads(printed)
    assert told["model"]["name"] == "ct-torso"
    assert told["structures"] == ["liver", "kidneys"]
    assert told["network_s"] == 100.0
    assert told["run_s"] >= told["network_s"]
    assert told["run_memory_gib"] >= told["network_memory_gib"]
    assert "liver.stl" in told["outputs"]
    assert "segmentation.dcm" in told["outputs"]
    assert "report.html" not in told["outputs"]
    assert sorted(tmp_path.iterdir()) == before
    assert grids[0].shape == grid.shape
    assert np.allclose(grids[0].spacing_mm, grid.spacing_mm, atol=1e-3)
    assert grids[0].orientation == grid.orientation


def test_plan_refuses_what_the_run_would_refuse(tmp_path: Path, call: Call, grids: list[slice3d.Grid]) -> None:
    _ct(tmp_path / "ct.nii.gz")
    for arguments, code, says in (
        ((tmp_path / "ct.nii.gz", "--organ", "livver"), 2, "did you mean 'liver'?"),
        ((tmp_path / "ct.nii.gz", "--organ", "liver", "--model", "none"), 3, "no model 'none'"),
        ((tmp_path / "ct.nii.gz", "--organ", "liver", "--series", "9"), 2, "choose it with --series"),
        ((tmp_path / "gone", "--organ", "liver"), 2, "gone"),
    ):
        got, _, err = call("segment", *arguments, "--out", tmp_path / "out", "--dry-run")
        assert got == code
        assert err.count("\n") == 1
        assert says in err
    assert not grids


def test_outputs_of_a_plan_are_those_of_a_run(
    tmp_path: Path, call: Call, grids: list[slice3d.Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = _ct(tmp_path / "ct.nii.gz")
    labels = np.zeros(grid.shape, np.uint8)
    labels[4:11, 5:12, 3:8] = 1
    result = slice3d.Segmentation(labels, grid, {1: "liver"}, metadata={"structures": ("liver",)})
    monkeypatch.setattr("slice3d.pipeline.segment", lambda volume, *_, **__: result)
    ask = ("segment", tmp_path / "ct.nii.gz", "--organ", "liver", "--out", tmp_path / "out", "--json")
    told = json.loads(call(*ask, "--dry-run")[1])["outputs"]
    made = json.loads(call(*ask)[1])["outputs"]
    assert told == made == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_batch_says_what_each_study_holds_by_number(tmp_path: Path, call: Call) -> None:
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    _ct(cohort / "Doe_Jane.nii.gz")
    (cohort / "Roe_Richard").mkdir()
    (cohort / "Roe_Richard" / "Roe.txt").write_text("no images")
    ask = ("batch", cohort, "--organ", "liver", "--out", tmp_path / "out", "--dry-run")
    code, printed, _ = call(*ask)
    assert code == 0
    assert "1 of 2 studies can be used; nothing was written" in printed
    assert not re.search("Doe|Roe", printed)
    told = json.loads(call(*ask, "--json")[1])
    assert told["ready"] == 1
    assert [bool(case["problem"]) for case in told["cases"]] == [False, True]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (3599, "1 h 0 min"), (4800, "1 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
