"""`slice3d mesh` and `slice3d render`: every suffix, the print gate's exit code, and one line for each bad request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slice3d import Grid, Segmentation, load_segmentation, save
from slice3d.io.meshes import MESH_READERS, MESH_WRITERS
from slice3d.viewer.render import opengl_problem

SAMPLE = Path(__file__).parents[2] / "sample_data"
needs_opengl = pytest.mark.skipif(bool(opengl_problem()), reason=opengl_problem() or "OpenGL works")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball, a sheet one voxel thin, and a structure without voxels, on an oblique anisotropic grid."""
    shape = (30, 33, 19)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    values = (np.linalg.norm((index - (12, 14, 8)) * (1.0, 1.2, 2.0), axis=-1) < 9).astype(np.uint8)
    values[5:24, 6:26, 16] = 2
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0] * (1.0, 1.2, 2.0)
    affine[:3, 3] = (40, -70, 600)
    names = {1: "liver", 2: "spleen", 3: "pancreas"}
    path = tmp_path_factory.mktemp("labels") / "labels.nii.gz"
    save(Segmentation(values, Grid(shape, affine), names), path)
    return path


@pytest.mark.parametrize("suffix", sorted(MESH_WRITERS))
def test_each_suffix_is_written(suffix: str, labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / f"liver{suffix}"
    code, printed, err = slice3d("mesh", labels, "--structure", "liver", "--out", out, "--print-ready", "--json")
    assert (code, err) == (0, "")
    told = json.loads(printed)
    assert told["outputs"] == [out.name]
    row = told["structures"]["liver"]
    voxels = load_segmentation(labels).volume_ml("liver")
    assert row["check"]["passed"] is True
    assert row["measurements"]["volume_ml"] == pytest.approx(voxels, rel=0.02)
    assert out.stat().st_size > 100
    if suffix in MESH_READERS:
        (mesh,) = MESH_READERS[suffix](out)
        assert mesh.volume_ml == pytest.approx(row["measurements"]["volume_ml"], rel=1e-4)
        np.testing.assert_allclose(mesh.bounds_mm, row["measurements"]["bounds_mm"], atol=1e-3)


def test_a_folder_gets_one_file_for_each_structure_with_voxels(labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    code, printed, _ = slice3d("mesh", labels, "--out", tmp_path / "parts", "--print-ready")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["liver.stl", "spleen.stl"]
    assert "pancreas: empty" in printed
    assert "pancreas has no voxels" in printed
    assert printed.count("fit to print") == 2


def test_fewer_triangles_without_a_word(labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "liver.stl"
    code, printed, _ = slice3d("mesh", labels, "-s", "liver", "--out", out, "--triangles", 300, "--quiet")
    assert (code, printed) == (0, "")
    assert 84 + 50 * 100 < out.stat().st_size <= 84 + 50 * 350


def test_remeshing_and_wall_thickness(labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "liver.vtp"
    asked = ("-s", "liver", "--out", out, "--remesh-mm", "3", "--wall-thickness", "--print-ready")
    code, printed, _ = slice3d("mesh", labels, *asked, "--json")
    assert code == 0
    row = json.loads(printed)["structures"]["liver"]
    assert "remeshed" in [f["code"] for f in row["findings"]]
    (mesh,) = MESH_READERS[".vtp"](out)
    # a ball of 9 mm radius: the largest ball inside that touches its points is nearly itself, less what is uneven
    assert 14 < np.median(mesh.scalars["wall_thickness_mm"]) < 18.5
    edges = np.linalg.norm(mesh.vertices[mesh.faces] - mesh.vertices[np.roll(mesh.faces, -1, axis=1)], axis=-1)
    assert np.median(edges) == pytest.approx(3, rel=0.3)


def test_a_target_that_is_missed_is_said(labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    asked = ("-s", "liver", "--out", tmp_path / "x.stl", "--max-error-mm", "1e-6")
    code, printed, _ = slice3d("mesh", labels, *asked)
    assert code == 0
    assert "none could go" in printed


@pytest.mark.parametrize(
    ("more", "word"), [(("spleen", "--min-wall-mm", "8"), "thinnest wall"), (("pancreas",), "no voxels")]
)
def test_what_cannot_be_printed_ends_with_4(
    more: tuple[str, ...], word: str, labels: Path, tmp_path: Path, slice3d
) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "liver.stl"
    out.write_text("an earlier result")
    code, printed, err = slice3d("mesh", labels, "--out", out, "--print-ready", "-s", "liver", "-s", *more)
    assert (code, printed) == (4, "")
    assert err.count("\n") == 1
    assert "not fit to print" in err
    assert word in err
    assert out.read_text() == "an earlier result"


def test_a_repair_that_changes_the_shape_ends_with_4(labels: Path, tmp_path: Path, slice3d, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The surface comes out with a hole torn into it, whose mending takes a third of the body away."""
    from slice3d import surface

    whole = surface.surfaces

    def torn(*args: object, **kwargs: object) -> dict[str, object]:
        from dataclasses import replace

        out = whole(*args, **kwargs)
        mesh = out["liver"]
        along = mesh.vertices[mesh.faces].mean(axis=1)[:, 2]
        kept = along < np.quantile(along, 0.6)
        return {"liver": replace(mesh, faces=mesh.faces[kept])}

    monkeypatch.setattr(surface, "surfaces", torn)
    code, _, err = slice3d("mesh", labels, "--out", tmp_path / "liver.stl", "--print-ready", "-s", "liver")
    assert code == 4
    assert "volume is off by" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("-s", "livr", "--out", "x.stl"), "did you mean 'liver'?"),
        (("-s", "kidney_left", "--out", "x.stl"), "it holds: liver, spleen, pancreas"),
        (("-s", " , ", "--out", "x.stl"), "--structure names nothing"),
        (("-s", "pancreas", "--out", "x.stl"), "no surface to write"),
        (("-s", "liver", "--out", "x.xyz"), "suffix .xyz"),
        (("-s", "liver", "--out", "no/x.stl"), "create it first"),
        (("-s", "liver", "--out", "file/sub"), "--out"),
        (("-s", "liver,spleen", "--out", "x.vtp"), "one structure"),
        (("-s", "liver", "--out", "x.stl", "--triangles", "3"), "at least 4"),
        (("-s", "liver", "--out", "x.stl", "--smoothing-mm", "-1"), "smoothing_mm"),
        (("-s", "liver", "--out", "x.stl", "--min-wall-mm", "2"), "--print-ready"),
        (("-s", "liver", "--out", "x.stl", "--wall-thickness"), ".vtp"),
        (("-s", "liver", "--out", ".", "--wall-thickness"), ".vtp"),
        (("-s", "liver", "--out", "x.stl", "--remesh-mm", "2", "--triangles", "90"), "leave out --triangles"),
        (("-s", "liver", "--out", "x.stl", "--remesh-mm", "-2"), "positive length"),
        (("-s", "liver", "--out", "x.stl", "--remesh-mm", "1e-3"), "choose a larger one"),
    ],
)
def test_bad_requests_give_one_line(
    arguments: tuple[str, ...], word: str, labels: Path, tmp_path: Path, slice3d, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    code, printed, err = slice3d("mesh", labels, *arguments)
    assert (code, printed) == (2, "")
    assert err.count("\n") == 1
    assert word in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_missing_labels(tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    for command in ("mesh", "render"):
        code, _, err = slice3d(command, tmp_path / "nothing.nii.gz", "--out", tmp_path / "x.png")
        assert code == 2
        assert err.count("\n") == 1


def test_sample_liver_and_tumour_against_their_equations(tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    exact = json.loads((SAMPLE / "truth.json").read_text())["volumes_ml"]
    asked = "liver,spleen,kidney_left,kidney_right,liver_tumor"
    code, printed, _ = slice3d("mesh", SAMPLE / "truth.nii.gz", "-s", asked, "--out", tmp_path / "a.glb", "--json")
    assert code == 0
    rows = json.loads(printed)["structures"]
    assert list(rows) == asked.split(",")
    for name, row in rows.items():
        assert row["measurements"]["volume_ml"] == pytest.approx(exact[name], rel=0.02), name
        assert abs(row["check"]["volume_drift"]) < 0.005, name


@needs_opengl
def test_render_from_meshes_and_labels(labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    mesh = tmp_path / "liver.dcm"
    assert slice3d("mesh", labels, "-s", "liver", "--out", mesh, "-q")[0] == 0
    code, printed, _ = slice3d("render", mesh, "--depth", "--out", tmp_path / "d.png", "--size", 96, "--json")
    assert code == 0
    assert json.loads(printed)["outputs"] == ["d.png", "d.json"]
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.size == (96, 96)
        assert np.asarray(picture).max() > 255  # 16 bit
    code, _, _ = slice3d("render", labels, "-s", "liver", "--out", tmp_path / "t.gif", "--size", 64, "--frames", 3)
    assert code == 0
    with Image.open(tmp_path / "t.gif") as animation:
        assert animation.n_frames == 3


@needs_opengl
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--out", "t.jpg"), "expected .png"),
        (("--out", "t.gif", "--depth"), "expected .png"),
        (("--out", "t.png", "--view", "front"), "no view"),
        (("--out", "t.png", "-s", "livr"), "did you mean 'liver'?"),
        (("--out", "t.png", "-s", "pancreas"), "no surface"),
        (("--out", "no/t.png", "-s", "liver"), "create it first"),
        (("--out", "t.png", "--size", "5", "-s", "liver"), "16 to 8192"),
    ],
)
def test_render_says_what_is_wrong(
    arguments: tuple[str, ...], word: str, labels: Path, tmp_path: Path, slice3d, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    code, _, err = slice3d("render", labels, *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert word in err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Debian's package names")
def test_render_without_opengl_names_the_debian_package(labels: Path, tmp_path: Path) -> None:
    """A process of its own, in which the dynamic loader finds a libEGL that it cannot load."""
    broken = tmp_path / "lib"
    broken.mkdir()
    for name in ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so"):
        (broken / name).write_text("not a library")
    command = "import sys; from slice3d.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", command, "render", str(labels), "-s", "liver", "--out", str(tmp_path / "x.png")],
        env={**os.environ, "LD_LIBRARY_PATH": str(broken)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "libEGL.so.1 not found" in done.stderr
    assert "apt-get install libegl1" in done.stderr
    assert not (tmp_path / "x.png").exists()


def test_render_names_the_meshes_it_takes(tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.ply").write_text("ply")
    code, _, err = slice3d("render", tmp_path / "a.ply", "--out", tmp_path / "a.png")
    assert code == 2
    assert "write it as .stl" in err


def test_margins_and_cuts_are_measured(labels: Path, tmp_path: Path, slice3d) -> None:  # type: ignore[no-untyped-def]
    names = ("-s", "liver,spleen", "--margin", "liver,spleen")
    segmentation = load_segmentation(labels)
    middle = np.argwhere(segmentation.mask("liver")).mean(axis=0)
    through = ",".join(f"{v:.6f}" for v in (*segmentation.grid.to_world(middle), *segmentation.grid.directions[:, 0]))
    code, printed, _ = slice3d("mesh", labels, *names, "--cut", through, "--out", tmp_path / "a.glb", "--json")
    assert code == 0
    found = json.loads(printed)
    (gap,) = found["margins"]
    # the ball's lowest slice and the sheet's are 16 - 8 slices of 2 mm apart, less the radius and half the sheet
    assert gap["distance_mm"] == pytest.approx(16 - 9 - 1, abs=1.0)
    assert not gap["overlap"]
    assert np.linalg.norm(np.subtract(gap["point_a_mm"], gap["point_b_mm"])) == pytest.approx(
        gap["distance_mm"], abs=1e-6
    )
    parts = found["structures"]["liver"]["cut"]
    whole = found["structures"]["liver"]["measurements"]["volume_ml"]
    assert parts["resected_ml"] + parts["remnant_ml"] == pytest.approx(whole, rel=1e-6)
    assert parts["resected_ml"] == pytest.approx(whole / 2, rel=0.03)
    code, printed, _ = slice3d("mesh", labels, *names, "--cut", through, "--out", tmp_path / "a.glb")
    assert code == 0
    assert "liver to spleen: " in printed
    assert "on the side that the plane looks to" in printed


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--margin", "liver"), "two different structures"),
        (("--margin", "liver,liver"), "two different structures"),
        (("--margin", "liver,livr"), "did you mean"),
        (("--margin", "liver,spleen"), "name it under --structure too"),
        (("--cut", "1,2,3"), "six numbers"),
        (("--cut", "1,2,3,a,0,1"), "six numbers"),
        (("--cut", "1,2,3,nan,0,1"), "six numbers"),
        (("--cut", "1,2,3,0,0,0"), "not zero"),
    ],
)
def test_margins_and_cuts_say_what_is_wrong(
    more: tuple[str, ...], word: str, labels: Path, tmp_path: Path, slice3d
) -> None:  # type: ignore[no-untyped-def]
    code, _, err = slice3d("mesh", labels, "-s", "liver", "--out", tmp_path / "a.stl", *more)
    assert code == 2
    assert err.count("\n") == 1
    assert word in err
    assert not list(tmp_path.iterdir())
