"""`slice3d view STUDY SEG MESH…`: one page to open in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.mesh import Mesh
    from slice3d.volume import Segmentation, Volume


def view(
    study: Annotated[Path, typer.Argument(help="The study: folder, file or .zip (DICOM, NIfTI, NRRD, MHA).")],
    results: Annotated[
        list[Path] | None, typer.Argument(help="A segmentation (.nii.gz, .seg.nrrd, .dcm, …) and surfaces (.stl, …).")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make one offline HTML page with slices, overlay, surfaces, numbers and findings."""
    from slice3d import io, viewer

    surfaces, labels = _sort(results or [])
    viewer.niivue_source()  # a missing extra is said before anything is loaded
    with console.progress_bar(quiet or as_json) as progress:
        progress("load", 0.0)
        volume = io.load(study)
        segmentation = _labels(labels, volume)
        meshes = [mesh for path in surfaces for mesh in _meshes(path)]
        progress("load", 1.0)
        progress("page", 0.0)
        viewer.report(volume, segmentation, meshes, out)
        progress("page", 1.0)
    size = out.stat().st_size
    if as_json:
        console.say_json({"outputs": [out.name], "bytes": size})
    else:
        text = f"{console.link(out)} ({size / 1e6:.1f} MB): open it in a browser; it needs no network"
        console.say(text, quiet=quiet)
    if show:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())


def _sort(results: list[Path]) -> tuple[list[Path], Path | None]:
    from slice3d.errors import InputError
    from slice3d.io.meshes import MESH_READERS

    # A DICOM file is taken for a segmentation; its surfaces travel as .stl beside it.
    surfaces = [path for path in results if path.suffix.lower() in MESH_READERS and path.suffix.lower() != ".dcm"]
    labels = [path for path in results if path not in surfaces]
    if len(labels) > 1:
        names = ", ".join(path.name for path in labels)
        raise InputError(f"got {len(labels)} segmentations ({names}); expected one; join them or view them one by one")
    missing = [path.name for path in results if not path.exists()]
    if missing:
        raise InputError(f"there is no {missing[0]!r}; expected an existing segmentation or surface file")
    return surfaces, labels[0] if labels else None


def _labels(path: Path | None, volume: Volume) -> Segmentation:
    import numpy as np

    from slice3d import io
    from slice3d.resample import resample_labels
    from slice3d.volume import Segmentation, freeze

    if path is None:
        return Segmentation(freeze(np.zeros(volume.grid.shape, dtype=np.uint8)), volume.grid, {})
    found = io.load_segmentation(path, reference=volume)
    return found if found.grid.matches(volume.grid) else resample_labels(found, grid=volume.grid)


def _meshes(path: Path) -> list[Mesh]:
    from dataclasses import replace

    from slice3d.io.meshes import MESH_READERS

    found = list(MESH_READERS[path.suffix.lower()](path))
    return [replace(mesh, name=mesh.name or path.stem) for mesh in found]
