"""`preview.png`: three slice planes with outlines, the surfaces, volumes and findings on one picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.mesh import Mesh
from slice3d.viewer.colors import fractions, structure_color
from slice3d.viewer.planes import PLANES, Hanging, best_slice, hanging, voxels_by_slice, window
from slice3d.viewer.surfaces import draw_surfaces
from slice3d.viewer.words import in_font, plain, title_of
from slice3d.volume import Segmentation, Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Image = NDArray[np.uint8]

_BACKGROUND, _TEXT, _FAINT = "#101418", "#e8ecf0", "#8b98a5"
_BACKGROUND_RGB = (16, 20, 24)
_MARKS = {"error": ("✖", "#ff6b6b"), "warning": ("▲", "#ffc857"), "info": ("●", "#7fb4ff")}
_SCALES_MM = (200, 100, 50, 20, 10, 5, 2, 1)
_AIR_HU, _LEAST_ROOM_MM = -500, 8.0
_MOST_STRUCTURES, _MOST_FINDINGS = 16, 6
NOTE = "Outlines and surfaces are estimates. Not a medical device: check against the images."


@dataclass(frozen=True)
class _Scene:
    volume: Volume
    segmentation: Segmentation
    structures: tuple[str, ...]
    counts: tuple[Mapping[str, NDArray[np.int64]], ...]
    limits: tuple[float, float]


def preview(
    volume: Volume,
    segmentation: Segmentation,
    meshes: Mapping[str, Mesh] | Iterable[Mesh] = (),
    path: str | Path | None = None,
    *,
    findings: Sequence[Finding] = (),
) -> Image:
    """Draw axial, coronal and sagittal slices with outlines, the surfaces, volumes in ml and `findings`.

    Slices hang in the radiological convention, in the slice that shows most of the structures. The structures are those
    of `meshes`, and the labels that none of them holds. Returns (rows, columns, 3) uint8 and writes a PNG when
    `path` is given. Raises `InputError` when the grids differ or `path` cannot be written.
    """
    if not segmentation.grid.matches(volume.grid):
        raise InputError("segmentation and volume lie on different grids; expected the same; resample one of them")
    surfaces = mesh_list(meshes)
    scene = _scene(volume, segmentation, surfaces)
    image = _draw(scene, surfaces, findings)
    if path is not None:
        _write_png(image, Path(path))
    return image


def mesh_list(meshes: Mapping[str, Mesh] | Iterable[Mesh]) -> list[Mesh]:
    """Meshes as a list, each named; a mapping's key wins over the mesh's own name."""
    from dataclasses import replace

    if isinstance(meshes, Mapping):
        return [replace(mesh, name=name) for name, mesh in meshes.items()]
    return list(meshes)


def shown_structures(segmentation: Segmentation, meshes: Sequence[Mesh]) -> tuple[str, ...]:
    """What to outline: the structures that have a surface, and every other label; groups only when asked for by a mesh."""
    named = dict.fromkeys(mesh.name for mesh in meshes if mesh.name in segmentation.structures)
    covered = {value for name in named for value in segmentation.values(name)}
    return (*named, *(segmentation.names[v] for v in sorted(segmentation.names) if v not in covered))


def _scene(volume: Volume, segmentation: Segmentation, meshes: Sequence[Mesh]) -> _Scene:
    structures = shown_structures(segmentation, meshes)
    return _Scene(volume, segmentation, structures, voxels_by_slice(segmentation), window(volume, structures))


def _write_png(image: Image, path: Path) -> None:
    from PIL import Image as Pictures

    try:
        Pictures.fromarray(image).save(path, format="PNG")
    except OSError as error:
        reason = error.strerror or "write failed"
        raise InputError(f"cannot write {path.name}: {reason}; choose a folder you may write to") from error


def _draw(scene: _Scene, meshes: Sequence[Mesh], findings: Sequence[Finding]) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10), dpi=100, facecolor=_BACKGROUND)
    canvas: Any = FigureCanvasAgg(figure)
    rows = figure.add_gridspec(
        2, 3, width_ratios=(1, 1, 0.62), left=0.01, right=0.985, top=0.93, bottom=0.035, wspace=0.03, hspace=0.07
    )
    for plane, cell in zip(PLANES, (rows[0, 0], rows[0, 1], rows[1, 0]), strict=True):
        _draw_plane(figure.add_subplot(cell), scene, hanging(scene.volume.grid, plane))
    _draw_surfaces(figure.add_subplot(rows[1, 1]), meshes)
    _draw_legend(figure.add_subplot(rows[:, 2]), scene, findings)
    _text(figure, 0.012, 0.972, _headline(scene.volume), color=_TEXT, size=13, weight="bold", va="center")
    _text(figure, 0.985, 0.014, NOTE, color=_FAINT, size=9, ha="right", va="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _text(where: Any, x: float, y: float, text: str, **style: Any) -> Any:
    # parse_math off: a "$" in a file's own words must not be read as a formula.
    return where.text(x, y, in_font(text), family="DejaVu Sans", parse_math=False, **style)


def _headline(volume: Volume) -> str:
    shape = " × ".join(str(n) for n in volume.grid.shape)
    spacing = " × ".join(f"{s:.3g}" for s in volume.grid.spacing_mm)
    return f"{volume.modality or 'Image'} · {shape} voxels · {spacing} mm"


def _draw_plane(ax: Axes, scene: _Scene, how: Hanging) -> None:
    grid = scene.volume.grid
    index = best_slice(dict(scene.counts[how.axis]), scene.structures, grid.shape[how.axis] // 2)
    picture = how.picture(scene.volume.data, index)
    height, width = picture.shape[0] * how.row_mm, picture.shape[1] * how.column_mm
    low, high = scene.limits
    ax.imshow(
        picture,
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=(0, width, height, 0),
        interpolation="bilinear",
        aspect="equal",
    )
    seen = [name for name in scene.structures if scene.counts[how.axis][name][index]]
    labels = how.picture(scene.segmentation.labels, index)
    cuts = {name: np.isin(labels, scene.segmentation.values(name)) for name in seen}
    for name, cut in cuts.items():
        _outline(ax, cut, how, name)
        inner = [other for other_name, other in cuts.items() if other_name != name and other.sum() < cut.sum()]
        _name_inside(ax, cut & ~np.any([np.zeros_like(cut), *inner], axis=0), how, name)
    top, bottom, left, right = _crop(picture, scene.volume.modality)
    ax.set_xlim(left * how.column_mm, right * how.column_mm)
    ax.set_ylim(bottom * how.row_mm, top * how.row_mm)
    ax.set_axis_off()
    _annotate(ax, how, _position(scene.volume, how, index))


def _position(volume: Volume, how: Hanging, index: int) -> str:
    """`S 123.0 mm`: where the middle of the slice lies, with the letter of its side."""
    middle = [(n - 1) / 2 for n in volume.grid.shape]
    middle[how.axis] = index
    world = volume.grid.world_axes[how.axis]
    value = float(volume.grid.to_world(middle)[world])
    return f"{'RAS'[world] if value >= 0 else 'LPI'[world]} {abs(value):.1f} mm"


def _crop(picture: NDArray[Any], modality: str) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) in pixels: a CT picture without the air around the patient."""
    rows, columns = picture.shape
    if modality == "CT":
        matter = picture > _AIR_HU
        across, down = np.flatnonzero(matter.any(axis=0)), np.flatnonzero(matter.any(axis=1))
        if len(across) and len(down):
            return int(down[0]), int(down[-1]) + 1, int(across[0]), int(across[-1]) + 1
    return 0, rows, 0, columns


def _outline(ax: Axes, cut: NDArray[np.bool_], how: Hanging, name: str) -> None:
    from matplotlib.patheffects import Normal, withStroke

    # A border of zeros closes outlines that run into the edge of the picture.
    framed = np.pad(cut.astype(np.float32), 1)
    x = (np.arange(framed.shape[1]) - 0.5) * how.column_mm
    y = (np.arange(framed.shape[0]) - 0.5) * how.row_mm
    lines = ax.contour(x, y, framed, levels=[0.5], colors=[fractions(structure_color(name))], linewidths=1.3)
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="#00000090"), Normal()])


def _name_inside(ax: Axes, cut: NDArray[np.bool_], how: Hanging, name: str) -> None:
    from matplotlib.patheffects import withStroke
    from scipy.ndimage import distance_transform_edt

    if name == "body" or not cut.any():
        return
    framed = np.pad(cut, 1)
    # The name stands where the cross-section is thickest, and only where it has room.
    depth = distance_transform_edt(framed, sampling=(how.row_mm, how.column_mm))
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    if depth[row, column] >= _LEAST_ROOM_MM:
        x, y = (column - 0.5) * how.column_mm, (row - 0.5) * how.row_mm
        _text(ax, x, y, title_of(name), color=fractions(structure_color(name)), size=8.5, ha="center",
              va="center", clip_on=True, path_effects=[withStroke(linewidth=2.2, foreground="black")])  # fmt: skip


def _annotate(ax: Axes, how: Hanging, position: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="#000000")]
    inside = ax.transAxes
    letters = ((0.015, 0.5, how.left, "left", "center"), (0.985, 0.5, how.right, "right", "center"),
               (0.5, 0.985, how.top, "center", "top"), (0.5, 0.02, how.bottom, "center", "bottom"))  # fmt: skip
    for x, y, letter, ha, va in letters:
        _text(
            ax, x, y, letter, color="#ffe08a", size=13, weight="bold", ha=ha, va=va, path_effects=halo, transform=inside
        )
    caption = f"{how.plane.capitalize()}  {position}"
    _text(ax, 0.0, 1.008, caption, color=_FAINT, size=10, va="bottom", transform=inside)
    _scale_bar(ax, 1.0)


def _scale_bar(ax: Axes, unit_mm: float) -> None:
    """A bar of a round length; `unit_mm` is what one unit of the axes' data coordinates measures."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="#000000")]
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    length = next((s for s in _SCALES_MM if s <= (x1 - x0) * unit_mm * 0.4), _SCALES_MM[-1])
    left, base = x0 + (x1 - x0) * 0.03, y0 + (y1 - y0) * 0.03
    end = left + length / unit_mm
    ax.plot([left, end], [base, base], color="white", linewidth=3, solid_capstyle="butt", path_effects=halo)
    _text(ax, left, y0 + (y1 - y0) * 0.045, f"{length} mm", color="white", size=9, va="bottom", path_effects=halo)


def _draw_surfaces(ax: Axes, meshes: Sequence[Mesh]) -> None:
    ax.set_axis_off()
    box = ax.get_position()
    figure: Any = ax.figure
    size = (int(box.width * figure.bbox.width), int(box.height * figure.bbox.height))
    picture = draw_surfaces(meshes, size=size, background=_BACKGROUND_RGB)
    inside = ax.transAxes
    if picture is None:
        _text(ax, 0.5, 0.5, "no surface was made", color=_FAINT, size=12, ha="center", va="center", transform=inside)
        return
    ax.imshow(picture.pixels, interpolation="nearest", aspect="equal")
    _text(ax, 0.0, 1.008, "Surfaces from the front", color=_FAINT, size=10, va="bottom", transform=inside)
    for x, letter, ha in ((0.015, "R", "left"), (0.985, "L", "right")):
        _text(ax, x, 0.5, letter, color="#ffe08a", size=13, weight="bold", ha=ha, va="center", transform=inside)
    _scale_bar(ax, picture.pixel_mm)


def _draw_legend(ax: Axes, scene: _Scene, findings: Sequence[Finding]) -> None:
    from matplotlib.patches import Rectangle

    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_ylim(1, 0)
    y = 0.012
    _text(ax, 0.0, y, "Volume of the labelled voxels", color=_FAINT, size=10, va="center")
    voxel_ml = scene.volume.grid.voxel_volume_mm3 / 1000
    for name in scene.structures[:_MOST_STRUCTURES]:
        y += 0.031
        count = int(scene.counts[0][name].sum())
        ax.add_patch(Rectangle((0.0, y - 0.009), 0.05, 0.018, color=fractions(structure_color(name))))
        _text(ax, 0.08, y, textwrap.shorten(title_of(name), 26, placeholder="…"), color=_TEXT, size=11, va="center")
        amount = f"{millilitres(count * voxel_ml)} ml" if count else "not found"
        _text(ax, 1.0, y, amount, color=_TEXT if count else _MARKS["warning"][1], size=11, ha="right", va="center")
    more = len(scene.structures) - _MOST_STRUCTURES
    if more > 0:
        y += 0.031
        _text(ax, 0.08, y, f"and {more} more, see metrics.json", color=_FAINT, size=10, va="center")
    _draw_findings(ax, y + 0.05, findings)


def _draw_findings(ax: Axes, y: float, findings: Sequence[Finding]) -> None:
    order = ("error", "warning", "info")
    serious = sorted(findings, key=lambda f: order.index(f.severity))
    _text(ax, 0.0, y, "What to know" if serious else "No findings", color=_FAINT, size=10, va="center")
    for number, finding in enumerate(serious):
        lines = textwrap.wrap(plain(finding.message), 44)[:5]
        if number == _MOST_FINDINGS or y + 0.022 * len(lines) > 0.95:
            _text(ax, 0.08, y + 0.03, f"and {len(serious) - number} more, see manifest.json", color=_FAINT, size=9.5)
            return
        mark, color = _MARKS[finding.severity]
        _text(ax, 0.0, y + 0.03, mark, color=color, size=10, va="center")
        for line in lines:
            y += 0.022
            _text(ax, 0.08, y + 0.008, line, color=_TEXT, size=9.5, va="center")
        y += 0.012


def millilitres(value: float) -> str:
    """Three figures for small volumes, whole millilitres for large ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def png_bytes(image: Image) -> bytes:
    """A PNG file's bytes."""
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
