"""`slice3d mesh LABELS --structure liver --out liver.stl`: surfaces from a segmentation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slice3d.cli import console
from slice3d.cli.values import listed

if TYPE_CHECKING:
    from slice3d.mesh import Mesh
    from slice3d.surface import Plane

_REPAIR_DRIFT = 0.02
_WITH_SCALARS = (".ply", ".vtp", ".vtm", ".mrml", ".mrb")


def mesh(
    labels: Annotated[Path, typer.Argument(help="Labels: NIfTI, NRRD, MHA, DICOM SEG or RTSTRUCT.")],
    out: Annotated[
        Path, typer.Option("--out", help="File (.stl .ply .obj .3mf .glb .vtp .vtm .mrml .mrb .dcm) or folder.")
    ],
    structure: Annotated[
        list[str] | None,
        typer.Option("--structure", "-s", help="Structure; repeat or separate by commas (default: all)."),
    ] = None,
    study: Annotated[
        Path | None, typer.Option("--study", help="The images: grid of an RTSTRUCT, patient of a .dcm.")
    ] = None,
    smoothing_mm: Annotated[
        float | None, typer.Option("--smoothing-mm", help="Cut-off wavelength (default: four voxels; 0: none).")
    ] = None,
    triangles: Annotated[
        int | None, typer.Option("--triangles", help="Reduce to about this many per structure.")
    ] = None,
    max_error_mm: Annotated[
        float | None, typer.Option("--max-error-mm", help="Reduce triangles within this distance.")
    ] = None,
    min_fragment_mm3: Annotated[float, typer.Option("--min-fragment-mm3", help="Remove smaller separate parts.")] = 0.0,
    min_cavity_mm3: Annotated[float, typer.Option("--min-cavity-mm3", help="Fill smaller cavities.")] = 0.0,
    remesh_mm: Annotated[
        float | None, typer.Option("--remesh-mm", help="Even triangles with edges of about this length.")
    ] = None,
    wall_thickness: Annotated[
        bool, typer.Option("--wall-thickness", help="Thickness in mm at each point, kept by .ply .vtp .vtm .mrml .mrb.")
    ] = False,
    print_ready: Annotated[
        bool, typer.Option("--print-ready", help="Repair until it prints, or fail with exit code 4.")
    ] = False,
    min_wall_mm: Annotated[
        float | None, typer.Option("--min-wall-mm", help="Thinnest wall that --print-ready lets pass.")
    ] = None,
    margin: Annotated[
        list[str] | None, typer.Option("--margin", help="A,B: shortest distance between two structures; repeat.")
    ] = None,
    cut: Annotated[
        str | None, typer.Option("--cut", help="X,Y,Z,NX,NY,NZ: volumes on both sides of a plane (RAS mm).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print measurements and checks as JSON.")] = False,
) -> None:
    """Make surfaces of structures, check and measure them, and write them to OUT."""
    from slice3d import io
    from slice3d.errors import InputError
    from slice3d.surface import SurfaceSettings, annotate, remesh, surfaces
    from slice3d.surface import cut as cut_by

    if min_wall_mm is not None and not (print_ready and 0 < min_wall_mm < float("inf")):
        raise InputError("--min-wall-mm takes a positive number of mm, together with --print-ready")
    settings = SurfaceSettings(
        smoothing_mm=smoothing_mm, target_triangles=triangles, max_error_mm=max_error_mm,
        min_fragment_mm3=min_fragment_mm3, min_cavity_mm3=min_cavity_mm3,
    )  # fmt: skip
    if remesh_mm is not None and (triangles is not None or max_error_mm is not None):
        raise InputError("--remesh-mm makes triangles of its own; leave out --triangles and --max-error-mm, or it")
    _check_target(out, scalars=wall_thickness)
    plane = plane_of(cut)
    volume = io.load(study) if study is not None else None
    segmentation = io.load_segmentation(labels, reference=volume)
    names = wanted_of(segmentation.structures, structure or [])
    pairs = [_pair(segmentation.structures, names, text) for text in margin or []]
    with console.progress_bar(quiet or as_json) as progress:
        made = surfaces(segmentation, structures=names, settings=settings, progress=progress)
        if remesh_mm is not None:
            made = {name: remesh(m, edge_mm=remesh_mm) if len(m.faces) else m for name, m in made.items()}
        rows = {name: _judge(m, print_ready, min_wall_mm, asked=names is not None) for name, m in made.items()}
        if wall_thickness:
            rows = {n: (annotate(m, wall_thickness=True) if len(m.faces) else m, row) for n, (m, row) in rows.items()}
    filled = [m for m, _ in rows.values() if len(m.faces)]
    margins = [_margin(rows[a][0], rows[b][0]) for a, b in pairs]
    if plane is not None:
        for m, row in rows.values():
            row["cut"] = cut_by(m, plane).to_dict() if len(m.faces) else None
    files = _write(filled, out, volume)
    if as_json:
        found: dict[str, Any] = {"structures": {name: row for name, (_, row) in rows.items()}, "outputs": files}
        if segmentation.findings:
            found["findings"] = [f.to_dict() for f in segmentation.findings]
        console.say_json({**found, "margins": margins} if margins else found)
        return
    console.say_findings(segmentation.findings, quiet=quiet)
    for name, (m, row) in rows.items():
        console.say(_sentence(name, row), quiet=quiet)
        if row.get("cut"):
            parts = row["cut"]
            console.say(
                f"  cut: {parts['resected_ml']:.1f} ml on the side that the plane looks to, "
                f"{parts['remnant_ml']:.1f} ml on the other",
                quiet=quiet,
            )
        console.say_findings(m.findings, quiet=quiet, indent="  ")
    for gap in margins:
        console.say(_gap_sentence(gap), quiet=quiet)
    console.say(f"written: {', '.join(files)}", quiet=quiet)


def wanted_of(known: tuple[str, ...], asked: list[str]) -> list[str] | None:
    """The segmentation's own names for `--structure` options, None where none was given."""
    from slice3d.errors import InputError

    if not asked:
        return None
    names = [_name(known, part) for part in listed(asked)]
    if not names:
        raise InputError("--structure names nothing; expected for example --structure liver, or leave it out for all")
    return names


def _name(known: tuple[str, ...], asked: str) -> str:
    """The segmentation's own name for what was asked for; unknown names get the nearest spelling."""
    from slice3d import anatomy
    from slice3d.errors import InputError

    for name in (asked, anatomy.canonical(asked)):
        if name in known:
            return name
    hint = anatomy.suggest(asked, known)
    raise InputError(f"no structure {asked!r} in this segmentation; it holds: {', '.join(known) or 'none'}{hint}")


def plane_of(text: str | None) -> Plane | None:
    """`X,Y,Z,NX,NY,NZ` → a plane. Raises `InputError` for anything else."""
    from slice3d.errors import InputError
    from slice3d.surface import plane

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)):
        raise InputError(f"--cut is {text!r}; expected six numbers X,Y,Z,NX,NY,NZ: a point and a direction in RAS mm")
    return plane(numbers[:3], numbers[3:])


def _pair(known: tuple[str, ...], made: list[str] | None, text: str) -> tuple[str, str]:
    from slice3d.errors import InputError

    pair = wanted_of(known, [text]) or []
    if len(pair) != 2 or pair[0] == pair[1]:
        raise InputError(f"--margin is {text!r}; expected two different structures, as in --margin liver,spleen")
    for name in pair:
        if made is not None and name not in made:
            raise InputError(f"--margin names {name}, of which no surface is made; name it under --structure too")
    return pair[0], pair[1]


def _margin(one: Mesh, other: Mesh) -> dict[str, Any]:
    from slice3d.surface import distance_between

    return {"from": one.name, "to": other.name, **distance_between(one, other).to_dict()}


def _gap_sentence(gap: dict[str, Any]) -> str:
    if gap["overlap"] or gap["distance_mm"] == 0:
        return f"{gap['from']} and {gap['to']} touch or overlap"
    points = (", ".join(f"{v:.1f}" for v in gap[key]) for key in ("point_a_mm", "point_b_mm"))
    return f"{gap['from']} to {gap['to']}: {gap['distance_mm']:.2f} mm, between ({') and ('.join(points)}) RAS mm"


def _check_target(out: Path, *, scalars: bool) -> None:
    """An unknown suffix, one without room for scalars, or a folder that is not there must not wait for the work."""
    from slice3d.errors import InputError
    from slice3d.io.meshes import MESH_WRITERS

    if out.suffix and not out.is_dir():
        if out.suffix.lower() not in MESH_WRITERS:
            raise InputError(
                f"{out.name!r} has suffix {out.suffix}; expected one of {', '.join(MESH_WRITERS)}, or a folder"
            )
        if not out.parent.is_dir():
            raise InputError(f"folder {out.parent.name!r} does not exist; expected one to write into; create it first")
    if scalars and (out.is_dir() or out.suffix.lower() not in _WITH_SCALARS):
        raise InputError(
            f"{out.name!r} cannot hold --wall-thickness; expected --out with one of {', '.join(_WITH_SCALARS)}"
        )


def _judge(mesh: Mesh, print_ready: bool, wall_mm: float | None, *, asked: bool) -> tuple[Mesh, dict[str, Any]]:
    """The mesh (repaired where asked for) and its figures. Raises `QualityError` where it cannot be printed.

    asked: the structure was named by the user, who then wants to hear that there is nothing of it to print.
    """
    from slice3d.errors import QualityError
    from slice3d.surface import Limits, check, measure, repair

    if not len(mesh.faces):
        if print_ready and asked:
            raise QualityError(f"{mesh.name} is not fit to print: it has no voxels; nothing was written")
        return mesh, {"empty": True, "findings": [f.to_dict() for f in mesh.findings]}
    report = check(mesh, limits=Limits(wall_mm=wall_mm))
    if print_ready and not report.passed:
        before = mesh
        mesh = repair(mesh)
        # what repair changed counts too: a solid of another shape is not the structure
        report = check(mesh, reference=before, limits=Limits(wall_mm=wall_mm, drift=_REPAIR_DRIFT))
        if not report.passed:
            raise QualityError(
                f"{mesh.name} is not fit to print: {'; '.join(report.reasons)}; nothing was written; "
                "smooth it, or leave --print-ready out to see it"
            )
    figures = {"measurements": measure(mesh).to_dict(), "check": report.to_dict()}
    return mesh, {**figures, "findings": [f.to_dict() for f in mesh.findings]}


def _write(meshes: list[Mesh], out: Path, volume: Any) -> list[str]:
    from slice3d import io
    from slice3d.errors import InputError
    from slice3d.io.meshes import MESH_WRITERS
    from slice3d.io.meshes_basic import names_of

    if not meshes:
        raise InputError("none of the structures has voxels, so there is no surface to write; check the labels")
    if out.suffix and not out.is_dir():
        options = {"source": volume} if out.suffix.lower() == ".dcm" and volume is not None else {}
        MESH_WRITERS[out.suffix.lower()](meshes, out, **options)
        return [out.name]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {out.name}: {error.strerror or error}; choose another --out") from error
    files = [f"{name}.stl" for name in names_of(meshes)]
    for m, name in zip(meshes, files, strict=True):
        io.save(m, out / name)
    return files


def _sentence(name: str, row: dict[str, Any]) -> str:
    if row.get("empty"):
        return f"{name}: empty"
    figures, report = row["measurements"], row["check"]
    verdict = "fit to print" if report["passed"] else "not fit to print: " + "; ".join(report["reasons"])
    drift = f" ({report['volume_drift']:+.2%} of its voxels)" if report["volume_drift"] is not None else ""
    return (
        f"{name}: {figures['volume_ml']:.1f} ml{drift}, {figures['area_mm2'] / 100:.1f} cm², "
        f"largest diameter {figures['diameter_mm']:.1f} mm, {report['faces']} triangles, {verdict}"
    )
