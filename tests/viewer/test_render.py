"""Off-screen rendering: orientation, depth in mm, cameras that lead back to the surface."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slice3d.errors import InputError
from slice3d.mesh import Mesh
from slice3d.viewer import render as drawing
from slice3d.viewer.render import (
    DEPTH_STEP_MM,
    RenderSettings,
    depth_map,
    missing_library,
    opengl_problem,
    render,
    turntable,
)

needs_opengl = pytest.mark.skipif(bool(opengl_problem()), reason=opengl_problem() or "OpenGL works")
SMALL = RenderSettings(size=(160, 120))


def box(
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    name: str = "liver",
    color: tuple[int, int, int] = (255, 0, 0),
) -> Mesh:
    corner = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return Mesh(corner * np.subtract(high, low) + low, faces, name=name, color=color)


RIGHT_LOW = box((20, -10, 500), (60, 30, 520))
LEFT_HIGH = box((-60, -10, 560), (-20, 30, 600), "spleen", (0, 0, 255))


@needs_opengl
@pytest.mark.parametrize(
    ("view", "red_column", "red_row"),
    [("anterior", "left", "low"), ("posterior", "right", "low"), ("superior", "right", ""), ("inferior", "left", "")],
)
def test_views_show_the_patient_the_way_they_say(view: str, red_column: str, red_row: str) -> None:
    picture, _ = render([RIGHT_LOW, LEFT_HIGH], view=view, settings=SMALL)
    assert picture.shape == (120, 160, 3)
    red = (picture[..., 0].astype(int) - picture[..., 2] > 60).nonzero()
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 60).nonzero()
    assert len(red[0]) > 100
    assert len(blue[0]) > 100
    assert (red[1].mean() < blue[1].mean()) == (red_column == "left")
    if red_row:
        assert red[0].mean() > blue[0].mean()


@needs_opengl
@pytest.mark.parametrize("perspective", [True, False])
def test_depth_and_camera_lead_back_to_the_surface(perspective: bool) -> None:
    settings = RenderSettings(size=(200, 150), perspective=perspective)
    depth, camera = depth_map([RIGHT_LOW], view="anterior", settings=settings)
    points = camera.unproject(depth)
    hit = points[depth > 0]
    assert len(hit) > 500
    front = hit[np.abs(hit[:, 1] - 30) < 0.2]
    assert len(front) > 0.6 * len(hit)  # what is not the front face is another face of the same box
    outside = np.maximum(RIGHT_LOW.bounds_mm[0] - hit, hit - RIGHT_LOW.bounds_mm[1]).max(axis=1)
    assert outside.max() < 0.5
    pixel, distance = camera.project(front)
    rows, columns = np.nonzero((depth > 0) & (np.abs(points[..., 1] - 30) < 0.2))
    np.testing.assert_allclose(pixel, np.stack([columns, rows], axis=1), atol=1e-6)
    np.testing.assert_allclose(distance, depth[rows, columns], atol=1e-6)


@needs_opengl
def test_depth_file_is_16_bit_with_its_camera(tmp_path: Path) -> None:
    depth, camera = depth_map([RIGHT_LOW], settings=SMALL)
    note = drawing.write_depth(depth, camera, tmp_path / "depth.png")
    pixels = np.asarray(Image.open(tmp_path / "depth.png"))
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels * DEPTH_STEP_MM, depth, atol=DEPTH_STEP_MM / 2 + 1e-9)
    described = json.loads(note.read_text())
    assert described["depth_mm_per_step"] == DEPTH_STEP_MM
    assert np.shape(described["world_to_camera"]) == (4, 4)
    assert described["projection"] == "perspective"


@needs_opengl
def test_turntable_turns_and_is_the_same_each_time(tmp_path: Path) -> None:
    frames = list(turntable([RIGHT_LOW, LEFT_HIGH], frames=4, settings=SMALL))
    again = list(turntable([RIGHT_LOW, LEFT_HIGH], frames=4, settings=SMALL))
    assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 1
    drawing.write_turntable(iter(frames), tmp_path / "turn.gif")
    with Image.open(tmp_path / "turn.gif") as animation:
        assert animation.n_frames == 4
    drawing.write_png(frames[0], tmp_path / "one.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "one.png")), frames[0])
    with pytest.raises(InputError, match="no turntable format"):
        drawing.write_turntable(iter(frames), tmp_path / "turn.avi")


def test_mp4_by_an_independent_decoder(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg writes .mp4 and is optional")
    av = pytest.importorskip("av", reason="PyAV decodes .mp4 here")
    rows, columns = np.mgrid[:96, :128]
    frames = [np.stack([2 * rows, columns, np.full_like(rows, 40 * n)], axis=-1).astype(np.uint8) for n in range(5)]
    drawing.write_turntable(iter(frames), tmp_path / "turn.mp4", frames_per_second=12.0)
    with av.open(str(tmp_path / "turn.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(12.0)
        decoded = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
    assert len(decoded) == 5
    for n, (found, written) in enumerate(zip(decoded, frames, strict=True)):
        assert found.shape == written.shape
        assert np.abs(found - written).mean() < 10, n  # lossy, but upright, in order and in these colours


def test_mp4_without_its_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawing.sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(drawing.MissingExtraError, match=r"pip install imageio-ffmpeg, or write \.gif"):
        drawing.write_turntable(iter([np.zeros((16, 16, 3), np.uint8)] * 2), tmp_path / "turn.mp4")
    assert not list(tmp_path.iterdir())


@needs_opengl
def test_bad_requests_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'anterior'"):
        render([RIGHT_LOW], view="anteriour", settings=SMALL)
    with pytest.raises(InputError, match="no surface"):
        render([Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))])
    with pytest.raises(InputError, match="frames"):
        next(turntable([RIGHT_LOW], frames=1))
    with pytest.raises(InputError, match="does not exist"):
        drawing.write_png(np.zeros((20, 20, 3), np.uint8), tmp_path / "no" / "x.png")


def test_settings_are_checked() -> None:
    for bad in ({"size": (2, 2)}, {"opacity": 0.0}, {"angle_deg": 0.0}):
        with pytest.raises(InputError):
            RenderSettings(**bad)  # type: ignore[arg-type]


def test_missing_opengl_names_the_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    opengl_problem.cache_clear()
    monkeypatch.setattr(drawing, "_loads", lambda library: "GL.so.1" in library and "EGL" not in library)
    monkeypatch.setattr(drawing.sys, "platform", "linux")
    try:
        assert "apt-get install libegl1" in opengl_problem()
        assert "libEGL.so.1 not found" in opengl_problem()
        with pytest.raises(drawing.MissingExtraError, match="libegl1"):
            render([RIGHT_LOW], settings=SMALL)
    finally:
        opengl_problem.cache_clear()
    assert "libgl1" in missing_library(["libGL.so.1"])
