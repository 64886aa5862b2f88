"""What a notebook shows of a value: a small picture with facts, and an interactive NiiVue widget."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import MissingExtraError
from slice3d.grid import describe
from slice3d.mesh import Mesh
from slice3d.viewer.colors import structure_color
from slice3d.viewer.figures import middle_picture
from slice3d.viewer.page_data import image_bytes, label_bytes, surface_bytes
from slice3d.viewer.planes import window
from slice3d.viewer.preview import millilitres, png_bytes
from slice3d.viewer.sections import escape
from slice3d.viewer.surfaces import draw_surfaces
from slice3d.viewer.words import title_of
from slice3d.volume import Segmentation, Volume, freeze


def html_of(value: Volume | Segmentation | Mesh) -> str:
    """A figure element: picture of the value with its geometry or size."""
    if isinstance(value, Volume):
        return _figure(
            middle_picture(value), f"{value.modality or 'Volume'}: {describe(value.grid)}, {value.data.dtype}"
        )
    if isinstance(value, Segmentation):
        parts = [f"{title_of(n)} {millilitres(value.volume_ml(n))} ml" for n in value.structures[:8]]
        more = ", …" if len(value.structures) > 8 else ""
        empty = Volume(freeze(np.zeros(value.grid.shape, dtype=np.int8)), value.grid)
        return _figure(middle_picture(empty, value, opacity=0.9), f"{describe(value.grid)}: {', '.join(parts)}{more}")
    drawn = draw_surfaces([value], size=(300, 240))
    picture = drawn.pixels if drawn else np.zeros((8, 8, 3), dtype=np.uint8)
    name = f"{title_of(value.name)}: " if value.name else ""
    return _figure(picture, f"{name}{len(value.faces):,} triangles, {millilitres(value.volume_ml)} ml")


def _figure(picture: NDArray[np.uint8], words: str) -> str:
    larger = max(1, 320 // picture.shape[1])  # a small crop should not be a stamp
    picture = picture.repeat(larger, axis=0).repeat(larger, axis=1)
    data = base64.b64encode(png_bytes(picture)).decode("ascii")
    text = escape(words)
    return (
        f'<figure style="margin:0"><img alt="{text}" src="data:image/png;base64,{data}" style="max-width:420px">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def widget_of(value: Volume | Segmentation | Mesh, *, over: Volume | None = None) -> Any:
    """An `ipyniivue.NiiVue` widget of a volume, of labels (over an image when given), or of a surface.

    Raises `MissingExtraError` without the extra `viewer`.
    """
    if importlib.util.find_spec("ipyniivue") is None:
        raise MissingExtraError(
            "show() needs the package ipyniivue, which is not installed; install it: pip install 'slice3d[viewer]'"
        )
    library: Any = importlib.import_module("ipyniivue")
    widget = library.NiiVue()
    # The widget reads its files when they are handed over, so the folder may go afterwards.
    with tempfile.TemporaryDirectory(prefix="slice3d-") as name:
        folder = Path(name)
        if isinstance(value, Mesh):
            widget.load_meshes([_surface(value, folder)])
        else:
            widget.load_volumes(_images(value, over, folder))
    return widget


def _surface(mesh: Mesh, folder: Path) -> dict[str, Any]:
    path = folder / "surface.mz3"
    path.write_bytes(surface_bytes(mesh))
    return {"path": path, "rgba255": [*(mesh.color or structure_color(mesh.name)), 255]}


def _images(value: Volume | Segmentation, over: Volume | None, folder: Path) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    image = value if isinstance(value, Volume) else over
    if image is not None:
        low, high = window(image)
        path = folder / "image.nii.gz"
        path.write_bytes(image_bytes(image, (low, high)))
        out.append({"path": path, "colormap": "gray", "cal_min": low, "cal_max": high})
    if isinstance(value, Segmentation):
        path = folder / "labels.nii.gz"
        path.write_bytes(label_bytes(value, sorted(value.names)[:250]))
        out.append({"path": path, "colormap": "actc", "opacity": 0.5 if over is not None else 1.0})
    return out
