"""Off-screen pictures of surfaces with VTK: views, turntables, and depth maps with their camera. No display is needed."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import InputError, MissingExtraError
from slice3d.mesh import Mesh
from slice3d.progress import Progress, silent

# view → (direction from the patient to the camera, direction that is up in the picture), world RAS
VIEWS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "anterior": ((0, 1, 0), (0, 0, 1)),
    "posterior": ((0, -1, 0), (0, 0, 1)),
    "left": ((-1, 0, 0), (0, 0, 1)),
    "right": ((1, 0, 0), (0, 0, 1)),
    "superior": ((0, 0, 1), (0, 1, 0)),
    "inferior": ((0, 0, -1), (0, 1, 0)),
}
# Depth images hold this many mm per step; 0 means that nothing was hit. 65535 steps reach 3.2 m.
DEPTH_STEP_MM = 0.05
# the shared libraries of EGL and of OSMesa, in the order of preference
_DRIVERS = (("libEGL.so.1",), ("libOSMesa.so.8", "libOSMesa.so"))
_PACKAGES = {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1"}


@dataclass(frozen=True)
class RenderSettings:
    """size: (width, height) in pixels. background: RGB 0…255. opacity: 0…1 of every surface.

    perspective: a pinhole camera of `angle_deg` (height of the picture), else parallel rays. margin: free space around
    the surfaces, as part of their size.
    """

    size: tuple[int, int] = (800, 800)
    background: tuple[int, int, int] = (255, 255, 255)
    opacity: float = 1.0
    perspective: bool = True
    angle_deg: float = 30.0
    margin: float = 0.06

    def __post_init__(self) -> None:
        if min(self.size) < 16 or max(self.size) > 8192:
            raise InputError(f"picture size is {self.size}; expected 16 to 8192 pixels each way")
        if not 0 < self.opacity <= 1:
            raise InputError(f"opacity is {self.opacity}; expected above 0 and up to 1")
        if not 1 <= self.angle_deg <= 120:
            raise InputError(f"angle_deg is {self.angle_deg}; expected 1 to 120 degrees")


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera in world RAS mm.

    world_to_camera: (4, 4); the camera looks along its +z, x to the right of the picture, y down (the usual computer
    vision frame). intrinsics: (3, 3) pixels: (u, v, w) = intrinsics · camera point, pixel = (u / w, v / w), with the
    centre of the first pixel at (0, 0). For parallel rays w is 1 and intrinsics scale mm to pixels.
    """

    world_to_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    size: tuple[int, int]
    perspective: bool

    def project(self, points_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N, 2) pixels (column, row) and (N,) depth in mm of world points (N, 3)."""
        local = points_mm @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        scaled = local / local[:, 2:] if self.perspective else np.column_stack([local[:, :2], np.ones(len(local))])
        return (scaled @ self.intrinsics.T)[:, :2], local[:, 2]

    def unproject(self, depth_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(rows, columns, 3) world points of a depth image in mm; NaN where nothing was hit."""
        rows, columns = np.mgrid[: depth_mm.shape[0], : depth_mm.shape[1]]
        pixel = np.stack([columns, rows, np.ones_like(rows)], axis=-1).astype(np.float64)
        ray = pixel @ np.linalg.inv(self.intrinsics).T
        depth = np.where(depth_mm > 0, depth_mm, np.nan)[..., None]
        local = ray * depth if self.perspective else np.concatenate([ray[..., :2] + 0 * depth, depth], axis=-1)
        inverse = np.linalg.inv(self.world_to_camera)
        out: NDArray[np.float64] = local @ inverse[:3, :3].T + inverse[:3, 3]
        return out

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that says what its numbers mean."""
        return {
            "frame": "world RAS mm; camera x right, y down, z forward; pixel centre of the first pixel is (0, 0)",
            "world_to_camera": self.world_to_camera.tolist(),
            "intrinsics": self.intrinsics.tolist(),
            "width": self.size[0],
            "height": self.size[1],
            "projection": "perspective" if self.perspective else "parallel",
        }


def render(
    meshes: Mesh | Sequence[Mesh], *, view: str = "anterior", settings: RenderSettings | None = None
) -> tuple[NDArray[np.uint8], Camera]:
    """(rows, columns, 3) picture and its camera. Raises `InputError` for an unknown view or empty meshes,
    `MissingExtraError` where no OpenGL is installed."""
    settings = settings or RenderSettings()
    with _stage(meshes, settings) as stage:
        stage.look(view)
        return stage.picture(), stage.camera()


def depth_map(
    meshes: Mesh | Sequence[Mesh], *, view: str = "anterior", settings: RenderSettings | None = None
) -> tuple[NDArray[np.float64], Camera]:
    """(rows, columns) distance in mm from the camera's plane to the first surface, 0 where there is none; its camera."""
    settings = settings or RenderSettings()
    with _stage(meshes, settings) as stage:
        stage.look(view)
        return stage.depth(), stage.camera()


def turntable(
    meshes: Mesh | Sequence[Mesh],
    *,
    frames: int = 36,
    settings: RenderSettings | None = None,
    progress: Progress = silent,
) -> Iterator[NDArray[np.uint8]]:
    """`frames` pictures of one turn around the patient's long axis, starting from anterior."""
    if not 2 <= frames <= 720:
        raise InputError(f"frames is {frames}; expected 2 to 720")
    settings = settings or RenderSettings()
    with _stage(meshes, settings) as stage:
        for frame in range(frames):
            angle = 2 * np.pi * frame / frames
            stage.aim((float(np.sin(angle)), float(np.cos(angle)), 0.0), (0.0, 0.0, 1.0))
            progress("turntable", (frame + 1) / frames)
            yield stage.picture()


class _Stage:
    def __init__(self, meshes: Sequence[Mesh], settings: RenderSettings, window: Any, renderer: Any) -> None:
        self.settings = settings
        self.window = window
        self.renderer = renderer
        points = np.concatenate([m.vertices for m in meshes])
        self.centre = (points.min(axis=0) + points.max(axis=0)) / 2
        self.radius = float(np.linalg.norm(points - self.centre, axis=1).max()) * (1 + settings.margin) + 1e-3

    def look(self, view: str) -> None:
        if view not in VIEWS:
            raise InputError(f"no view {view!r}{anatomy.suggest(view, VIEWS)}; expected one of {', '.join(VIEWS)}")
        self.aim(*VIEWS[view])

    def aim(self, towards: Sequence[float], up: Sequence[float]) -> None:
        camera = self.renderer.GetActiveCamera()
        half = np.deg2rad(self.settings.angle_deg) / 2
        width, height = self.settings.size
        narrow = np.arctan(np.tan(half) * min(1.0, width / height))
        distance = self.radius / np.sin(narrow)
        camera.SetFocalPoint(*self.centre)
        camera.SetPosition(*(self.centre + distance * np.asarray(towards, dtype=np.float64)))
        camera.SetViewUp(*up)
        camera.SetViewAngle(self.settings.angle_deg)
        camera.SetParallelProjection(not self.settings.perspective)
        camera.SetParallelScale(self.radius / min(1.0, width / height))
        camera.SetClippingRange(max(distance - self.radius, distance * 1e-3), distance + self.radius)

    def picture(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._grab(depth=False)[..., :3])

    def depth(self) -> NDArray[np.float64]:
        z = self._grab(depth=True)[..., 0].astype(np.float64)
        near, far = self.renderer.GetActiveCamera().GetClippingRange()
        depth = near * far / (far - z * (far - near)) if self.settings.perspective else near + z * (far - near)
        return np.where(z < 1.0, depth, 0.0)

    def _grab(self, *, depth: bool) -> NDArray[Any]:
        """(rows, columns, channels) of the window, first row on top."""
        from vtkmodules.util.numpy_support import vtk_to_numpy
        from vtkmodules.vtkRenderingCore import vtkWindowToImageFilter

        self.window.SetMultiSamples(0 if depth else 8)
        self.window.Render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        if depth:
            grab.SetInputBufferTypeToZBuffer()
        else:
            grab.SetInputBufferTypeToRGB()
        grab.Update()
        width, height = self.settings.size
        values = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        out: NDArray[Any] = values.reshape(height, width, -1)[::-1].copy()
        return out

    def camera(self) -> Camera:
        camera = self.renderer.GetActiveCamera()
        matrix = camera.GetViewTransformMatrix()
        view = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        # OpenGL looks along -z with y up.
        world_to_camera = np.diag([1.0, -1.0, -1.0, 1.0]) @ view
        width, height = self.settings.size
        if self.settings.perspective:
            focal = height / 2 / np.tan(np.deg2rad(self.settings.angle_deg) / 2)
        else:
            focal = height / 2 / camera.GetParallelScale()
        intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
        return Camera(world_to_camera, intrinsics, self.settings.size, self.settings.perspective)


@contextmanager
def _stage(meshes: Mesh | Sequence[Mesh], settings: RenderSettings) -> Iterator[_Stage]:
    listed = [m for m in ([meshes] if isinstance(meshes, Mesh) else meshes) if len(m.faces)]
    if not listed:
        raise InputError("there is no surface to show; expected at least one mesh with faces")
    window = _window(settings)
    try:
        renderer = _scene(listed, settings)
        window.AddRenderer(renderer)
        yield _Stage(listed, settings, window, renderer)
    finally:
        window.Finalize()


def _window(settings: RenderSettings) -> Any:
    """An off-screen window. Raises `MissingExtraError` naming the Debian packages where OpenGL is not there."""
    problem = opengl_problem()
    if problem:
        raise MissingExtraError(problem)
    window = offscreen_window()
    window.SetSize(*settings.size)
    return window


def offscreen_window() -> Any:
    """A VTK window that needs no display: EGL on Linux (OSMesa where that is all there is), the platform's own elsewhere."""
    from vtkmodules import vtkRenderingOpenGL2

    kinds = [getattr(vtkRenderingOpenGL2, name, None) for name in ("vtkEGLRenderWindow", "vtkOSOpenGLRenderWindow")]
    found = [kind for kind, names in zip(kinds, _DRIVERS, strict=True) if kind is not None and any(map(_loads, names))]
    if sys.platform.startswith("linux") and found:
        window = found[0]()
    else:
        from vtkmodules.vtkRenderingCore import vtkRenderWindow

        window = vtkRenderWindow()
    window.SetOffScreenRendering(True)
    return window


_PROBE = """
from slice3d.viewer.render import offscreen_window
window = offscreen_window()
window.SetSize(16, 16)
window.Render()
raise SystemExit(0 if window.SupportsOpenGL() else 9)
"""


@lru_cache(maxsize=1)
def opengl_problem() -> str:
    """Why off-screen rendering does not work here, in one line, or an empty string.

    Without EGL or OSMesa, VTK ends the whole process instead of raising; so the libraries are looked for first, and a
    first small picture is drawn in a process of its own.
    """
    if sys.platform.startswith("linux"):
        missing = [name for name in _PACKAGES if not _loads(name)]
        if missing and not any(map(_loads, _DRIVERS[1])):
            return missing_library(missing)
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return missing_library([], type(error).__name__)
    return "" if done.returncode == 0 else missing_library([], f"a first picture failed with code {done.returncode}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def missing_library(libraries: Sequence[str], reason: str = "") -> str:
    """One line that says which Debian packages provide the OpenGL libraries that could not be loaded."""
    packages = [_PACKAGES[name] for name in libraries] or ["libegl1", "libgl1", "libgl1-mesa-dri"]
    found = f"{', '.join(libraries)} not found" if libraries else reason
    return (
        f"off-screen rendering is not possible here ({found}); expected OpenGL with EGL or OSMesa; "
        f"on Debian: apt-get install {' '.join(packages)}"
    )


def _scene(meshes: Sequence[Mesh], settings: RenderSettings) -> Any:
    from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper, vtkRenderer

    renderer = vtkRenderer()
    renderer.SetBackground(*(c / 255 for c in settings.background))
    if settings.opacity < 1:
        renderer.SetUseDepthPeeling(True)
    for mesh in meshes:
        mapper = vtkPolyDataMapper()
        mapper.SetInputData(_polydata(mesh))
        mapper.ScalarVisibilityOff()
        actor = vtkActor()
        actor.SetMapper(mapper)
        look = actor.GetProperty()
        look.SetColor(*(c / 255 for c in (mesh.color or anatomy.color(mesh.name))))
        look.SetOpacity(settings.opacity)
        look.SetInterpolationToPhong()
        look.SetSpecular(0.15)
        look.SetSpecularPower(20)
        renderer.AddActor(actor)
    return renderer


def _polydata(mesh: Mesh) -> Any:
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
    from vtkmodules.vtkFiltersCore import vtkPolyDataNormals

    points, cells, data = vtkPoints(), vtkCellArray(), vtkPolyData()
    points.SetDataTypeToDouble()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(mesh.vertices), deep=True))
    offsets = numpy_to_vtkIdTypeArray(np.arange(0, 3 * len(mesh.faces) + 1, 3, dtype=np.int64), deep=True)
    cells.SetData(offsets, numpy_to_vtkIdTypeArray(np.ascontiguousarray(mesh.faces).reshape(-1), deep=True))
    data.SetPoints(points)
    data.SetPolys(cells)
    normals = vtkPolyDataNormals()
    normals.SetInputData(data)
    normals.SplittingOff()
    normals.ConsistencyOff()
    normals.Update()
    return normals.GetOutput()


def write_png(picture: NDArray[np.uint8], path: Path) -> None:
    """An RGB picture as PNG."""
    from PIL import Image

    _replace(path, lambda part: Image.fromarray(picture).save(part, format="PNG"))


def write_depth(depth_mm: NDArray[np.float64], camera: Camera, path: Path) -> Path:
    """A 16-bit PNG (`DEPTH_STEP_MM` per step, 0 = nothing) and, beside it, the camera as JSON; returns the latter's path."""
    from PIL import Image

    steps = depth_mm / DEPTH_STEP_MM
    if steps.max(initial=0) > 65535:
        raise InputError(
            f"depth of {depth_mm.max():.0f} mm does not fit; expected up to {65535 * DEPTH_STEP_MM:.0f} mm"
        )
    pixels = np.where(depth_mm > 0, np.maximum(np.round(steps), 1), 0).astype(np.uint16)
    _replace(path, lambda part: Image.fromarray(pixels).save(part, format="PNG"))
    note = path.with_suffix(".json")
    described = {"depth_mm_per_step": DEPTH_STEP_MM, "nothing": 0, **camera.to_dict()}
    _replace(note, lambda part: part.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8"))
    return note


def write_turntable(frames: Iterator[NDArray[np.uint8]], path: Path, *, frames_per_second: float = 12.0) -> None:
    """An animated .gif, or an .mp4 where the package imageio with its ffmpeg plugin is installed."""
    pictures = list(frames)
    if path.suffix.lower() == ".gif":
        from PIL import Image

        images = [Image.fromarray(p).quantize(128) for p in pictures]
        options = {
            "save_all": True,
            "append_images": images[1:],
            "duration": round(1000 / frames_per_second),
            "loop": 0,
        }
        _replace(path, lambda part: images[0].save(part, format="GIF", **options))
    elif path.suffix.lower() == ".mp4":
        try:
            import imageio_ffmpeg
        except ImportError as error:
            raise MissingExtraError(
                "an .mp4 needs the package imageio-ffmpeg, which is not installed; pip install imageio-ffmpeg, or write .gif"
            ) from error
        _replace(path, lambda part: _mp4(imageio_ffmpeg, pictures, part, frames_per_second))
    else:
        raise InputError(f"{path.name!r} is no turntable format; expected .gif or .mp4")


def _mp4(module: Any, pictures: Sequence[NDArray[np.uint8]], path: Path, rate: float) -> None:
    height, width = pictures[0].shape[:2]
    writer = module.write_frames(
        str(path), (width, height), fps=rate, macro_block_size=2, output_params=["-f", "mp4"], ffmpeg_log_level="error"
    )
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()


def _replace(path: Path, write: Any) -> None:
    import secrets

    if not path.parent.is_dir():
        raise InputError(
            f"folder {path.parent.name!r} does not exist; expected one to write {path.name} into; create it first"
        )
    part = path.parent / f".{path.name[:40]}.{secrets.token_hex(6)}.part"
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path.name}: {error.strerror or error}; choose a folder you may write to"
        ) from error
    finally:
        part.unlink(missing_ok=True)
