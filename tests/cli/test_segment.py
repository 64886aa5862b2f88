"""`slice3d segment` around the network, which is stubbed: references, JSON, interruptions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import slice3d
from slice3d.cli.main import main
from slice3d.findings import Finding
from slice3d.resample import apply_moves, axis_moves, moved_grid
from tests.builders import oblique_grid

GRID = oblique_grid((17, 15, 12))


def _labels() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:11, 5:12, 3:8] = 1
    return labels


def _stub(volume: slice3d.Volume, *_: object, **__: object) -> slice3d.Segmentation:
    odd = Finding("odd", "looks odd", details={"share": float("nan"), "count": np.int32(3), "at": np.arange(2)})
    metadata = {"structures": ("liver",), "expected_dice": {"liver": float("nan")}, "mean": np.float32("inf")}
    return slice3d.Segmentation(_labels(), volume.grid, {1: "liver"}, findings=(odd,), metadata=metadata)


def _never(*_: object, **__: object) -> slice3d.Segmentation:
    pytest.fail("the network ran before the reference was looked at")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "ct.nii.gz"
    slice3d.save(slice3d.Volume(np.arange(np.prod(GRID.shape), dtype=np.int16).reshape(GRID.shape), GRID), path)
    return path


def _call(patch: pytest.MonkeyPatch, segment: object, *arguments: object) -> int:
    patch.setattr("slice3d.pipeline.segment", segment)
    patch.setattr(sys, "argv", ["slice3d", "segment", *map(str, arguments), "--organ", "liver", "--no-report"])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def _strict(text: str) -> dict:  # type: ignore[type-arg]
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_nan_wherever_it_came_from(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _call(monkeypatch, _stub, study, "--out", out, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    finding = _strict(printed.out)["findings"][-1]
    assert finding["details"] == {"share": None, "count": 3, "at": [0, 1]}
    assert _strict((out / "manifest.json").read_text())["model"]["mean"] is None
    assert _strict((out / "metrics.json").read_text())["structures"]["liver"]["expected_dice"] is None


def test_quiet_prints_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, _stub, study, "--out", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_reference_with_turned_axes_is_the_same_reference(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = axis_moves(GRID, "ASL")
    turned = slice3d.Segmentation(apply_moves(_labels(), *moves), moved_grid(GRID, *moves), {1: "liver"})
    slice3d.save(turned, tmp_path / "reference.seg.nrrd")
    out = tmp_path / "out"
    assert _call(monkeypatch, _stub, study, "--out", out, "--reference", tmp_path / "reference.seg.nrrd", "-q") == 0
    scores = json.loads((out / "metrics.json").read_text())["structures"]["liver"]["reference"]
    assert scores["dice"] == 1.0
    assert scores["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "grid", "says"),
    [("Leber", GRID, "the reference holds"), ("liver", GRID.with_spacing((1.0, 1.0, 5.0)), "evaluate --resample")],
)
def test_an_unusable_reference_is_refused_before_the_network_runs(
    name: str,
    grid: slice3d.Grid,
    says: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:4, 2:4, 2:4] = 1
    slice3d.save(slice3d.Segmentation(labels, grid, {1: name}), tmp_path / "reference.seg.nrrd")
    code = _call(monkeypatch, _never, study, "--out", tmp_path / "out", "--reference", tmp_path / "reference.seg.nrrd")
    err = capsys.readouterr().err
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_one_line_and_leaves_earlier_results(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> slice3d.Segmentation:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    (out / "liver.stl").write_text("an earlier result")
    assert _call(monkeypatch, interrupted, study, "--out", out) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("slice3d: stopped")
    assert printed.err.count("\n") == 1
    assert [p.name for p in out.iterdir()] == ["liver.stl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct.nii.gz", "out"]


def test_output_that_the_terminal_cannot_show_is_no_failure(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert _call(monkeypatch, _stub, study, "--out", tmp_path / "out") == 0
    narrow.flush()
    assert b"surface" in narrow.buffer.getvalue()  # type: ignore[attr-defined]
