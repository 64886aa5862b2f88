"""`slice3d render MESH… --view anterior --depth`: pictures, depth maps and turntables without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.mesh import Mesh

_MESHES = (".stl", ".obj", ".vtp")


def render(
    sources: Annotated[
        list[Path], typer.Argument(help="Meshes (.stl .obj .vtp .dcm) or labels (NIfTI, NRRD, MHA, SEG).")
    ],
    out: Annotated[Path, typer.Option("--out", help="Picture (.png), or turntable (.gif, .mp4).")],
    view: Annotated[
        str, typer.Option("--view", help="anterior, posterior, left, right, superior or inferior.")
    ] = "anterior",
    depth: Annotated[
        bool, typer.Option("--depth", help="A 16-bit depth image in mm, and the camera as JSON beside it.")
    ] = False,
    structure: Annotated[
        list[str] | None, typer.Option("--structure", "-s", help="Structures of labels (default: all).")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Pixels along each side.")] = 800,
    parallel: Annotated[bool, typer.Option("--parallel", help="Parallel rays instead of a pinhole camera.")] = False,
    frames: Annotated[int, typer.Option("--frames", help="Pictures in a turntable.")] = 36,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written and the camera as JSON.")] = False,
) -> None:
    """Draw surfaces off screen: a picture, a depth map with its camera, or a turntable."""
    from slice3d.errors import InputError
    from slice3d.viewer import render as drawing

    suffix = out.suffix.lower()
    if suffix not in (".png", ".gif", ".mp4") or (depth and suffix != ".png"):
        raise InputError(
            f"{out.name!r} cannot hold this; expected .png for pictures and depth, .gif or .mp4 for turntables"
        )
    settings = drawing.RenderSettings(size=(size, size), perspective=not parallel)
    with console.progress_bar(quiet or as_json) as progress:
        meshes = [m for source in sources for m in _meshes(source, structure or [])]
        written, camera = [out.name], None
        if suffix != ".png":
            pictures = drawing.turntable(meshes, frames=frames, settings=settings, progress=progress)
            drawing.write_turntable(pictures, out)
        elif depth:
            depth_mm, camera = drawing.depth_map(meshes, view=view, settings=settings)
            written.append(drawing.write_depth(depth_mm, camera, out).name)
        else:
            picture, camera = drawing.render(meshes, view=view, settings=settings)
            drawing.write_png(picture, out)
    if as_json:
        console.say_json({"outputs": written, "camera": camera.to_dict() if camera else None})
        return
    console.say(f"written: {', '.join(written)}", quiet=quiet)


def _meshes(path: Path, structures: list[str]) -> list[Mesh]:
    from slice3d.errors import InputError
    from slice3d.io.meshes import MESH_READERS, MESH_WRITERS

    if path.suffix.lower() in _MESHES:
        return list(MESH_READERS[path.suffix.lower()](path))
    if path.suffix.lower() == ".dcm":
        try:
            return list(MESH_READERS[".dcm"](path))
        except InputError:
            return _of_labels(path, structures)  # not an encapsulated mesh: may be a segmentation
    if path.suffix.lower() in MESH_WRITERS:
        raise InputError(
            f"{path.name} is not drawn from; expected {', '.join(MESH_READERS)}, or labels; write it as .stl"
        )
    return _of_labels(path, structures)


def _of_labels(path: Path, structures: list[str]) -> list[Mesh]:
    from slice3d import io
    from slice3d.cli.mesh import wanted_of
    from slice3d.surface import surfaces

    segmentation = io.load_segmentation(path)
    return list(surfaces(segmentation, structures=wanted_of(segmentation.structures, structures)).values())
