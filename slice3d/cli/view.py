"""`slice3d view STUDY SEG MESH…`: one page to open in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slice3d.cli import console

if TYPE_CHECKING:
    from slice3d.findings import Finding
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
        findings = [found for mesh in meshes for found in (*mesh.findings, *_outside(mesh, volume))]
        progress("load", 1.0)
        progress("page", 0.0)
        manifest = _manifest(volume, results or [])
        viewer.report(
            volume, segmentation, meshes, out, metrics=_metrics(segmentation), manifest=manifest, findings=findings
        )
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
    from slice3d.errors import GeometryError
    from slice3d.findings import Finding
    from slice3d.grid import describe
    from slice3d.resample import resample_labels
    from slice3d.volume import Segmentation, freeze

    if path is None:
        return Segmentation(freeze(np.zeros(volume.grid.shape, dtype=np.uint8)), volume.grid, {})
    found = io.load_segmentation(path, reference=volume)
    if found.grid.matches(volume.grid):
        return found
    moved = resample_labels(found, grid=volume.grid)
    before, after = (np.count_nonzero(s.labels) * s.grid.voxel_volume_mm3 / 1000 for s in (found, moved))
    if before and not after:
        raise GeometryError(
            f"no labelled voxel of {path.name} ({describe(found.grid)}) lies inside the study ({describe(volume.grid)}); "
            "expected labels of this study; check that they belong together"
        )
    said = (
        f"the labels came on another grid ({describe(found.grid)}) and were put on the study's; "
        f"{before:.4g} ml of labels became {after:.4g} ml, and the numbers here are of these"
    )
    details = {"before_ml": round(float(before), 3), "after_ml": round(float(after), 3)}
    return moved.with_findings([Finding("labels-resampled", said, details=details)])


def _outside(mesh: Mesh, volume: Volume) -> list[Finding]:
    """A finding for a surface that leaves the scan. Raises `GeometryError` where none of it lies inside."""
    import numpy as np

    from slice3d.errors import GeometryError
    from slice3d.findings import Finding

    index = volume.grid.to_index(mesh.vertices)
    margin = 1.0  # a surface on the outermost voxels runs half a voxel beyond their centres, and smoothing moves it
    inside = ((index >= -margin) & (index <= np.array(volume.grid.shape) - 1 + margin)).all(axis=1)
    if inside.all():
        return []
    if not inside.any():
        raise GeometryError(
            f"no point of the surface {mesh.name!r} lies inside the study; expected a surface of this study in millimetres; "
            "check that they belong together, and in which coordinates it was written"
        )
    share = 100 * float((~inside).mean())
    said = f"{share:.3g} % of the surface {mesh.name} lies outside the study: it may belong to another one"
    return [Finding("surface-outside", said, details={"outside_percent": round(share, 2)})]


def _metrics(segmentation: Segmentation) -> dict[str, Any]:
    from slice3d.metrics import components

    masks = {name: segmentation.mask(name) for name in segmentation.structures}
    return {"structures": {name: {"components": components(mask)} for name, mask in masks.items()}}


def _manifest(volume: Volume, results: list[Path]) -> dict[str, Any]:
    import hashlib

    from slice3d import __version__
    from slice3d.pipeline import DISCLAIMER, study_facts, volume_hash

    # by what they hold, not by their names: these may name a person
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in results if path.is_file()]
    facts = {**study_facts(volume), "sha256": volume_hash(volume)}
    return {"slice3d": __version__, "disclaimer": DISCLAIMER, "input": facts, "results_sha256": hashes}


def _meshes(path: Path) -> list[Mesh]:
    from dataclasses import replace

    from slice3d.io.meshes import MESH_READERS

    found = list(MESH_READERS[path.suffix.lower()](path))
    return [replace(mesh, name=mesh.name or path.stem) for mesh in found]
