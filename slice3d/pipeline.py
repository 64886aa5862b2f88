"""Study → results: composes loading, inference, surfaces, metrics and writers, and nothing else."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slice3d import __version__, anatomy, reuse
from slice3d.errors import GeometryError, InputError, MissingExtraError
from slice3d.findings import Finding
from slice3d.grid import describe
from slice3d.output import Transaction
from slice3d.progress import Progress, silent
from slice3d.volume import Segmentation, Volume

if TYPE_CHECKING:
    from slice3d.inference import InferenceSettings
    from slice3d.io.dicom.deidentify import Key
    from slice3d.mesh import Mesh
    from slice3d.models import ModelPackage
    from slice3d.superres import Superres
    from slice3d.surface import SurfaceSettings

# what an operator types may name a person: PS3.15 table E.1-1 has them removed
_FREE_TEXT = frozenset({"SeriesDescription", "StudyDescription", "ProtocolName", "ContrastBolusAgent", "ImageComments"})
DISCLAIMER = "slice3d is not a medical device; check every result against the images before relying on it."


@dataclass(frozen=True)
class RunSettings:
    """What `run` should make.

    organs: structure names or aliases. series, on_gap, on_tilt, spacing_mm: as in `slice3d.load`. None settings mean the defaults of each stage. report: write `report.html`.
    dicom_seg, dicom_stl: also write `segmentation.dcm` on the acquired slices, one `.dcm` per surface; unlike every
    other output they carry the study's patient identifiers, because an archive files them by these, unless deidentify
    holds a key (PS3.15 Basic Profile). superres: segment the study after super-resolution between its slices; results
    then lie on the fine grid.
    """

    organs: tuple[str, ...]
    model: str | None = None
    series: str | None = None
    inference: InferenceSettings | None = None
    surface: SurfaceSettings | None = None
    report: bool = True
    dicom_seg: bool = False
    dicom_stl: bool = False
    deidentify: Key | None = None
    on_gap: Literal["resample", "refuse"] = "resample"
    on_tilt: Literal["resample", "refuse"] = "resample"
    spacing_mm: tuple[float, ...] | None = None
    superres: Superres | None = None


@dataclass(frozen=True)
class RunResult:
    """What `run` made. `metrics` and `manifest` are what the JSON files of those names hold."""

    volume: Volume
    segmentation: Segmentation
    meshes: Mapping[str, Mesh]
    metrics: Mapping[str, Any]
    manifest: Mapping[str, Any]
    out: Path
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    def summary(self) -> dict[str, Any]:
        """What a script wants to know: measured structures, findings, names of the files written."""
        return {
            "structures": dict(self.metrics["structures"]),
            "findings": _jsonable([finding.to_dict() for finding in self.findings]),
            "outputs": sorted([*self.manifest["outputs"], "manifest.json"]),
            "model": self.manifest["model"],
            "timings_s": self.manifest["timings_s"],
        }


def segment(
    volume: Volume,
    organ: str | Sequence[str] = "liver",
    *,
    model: str | None = None,
    settings: InferenceSettings | None = None,
    progress: Progress = silent,
) -> Segmentation:
    """Segment one or more structures of `volume` with the installed model that knows them.

    organ: name(s) or aliases (`"liver"`, `"lungs"`, `["spleen", "kidney_left"]`). Returns labels on the volume's own
    grid with reliability findings. Raises `InputError` for an unknown structure (with the nearest spelling) or an image
    the model was not made for, `ModelError` when a model package is missing or damaged.
    """
    from slice3d.inference import InferenceSettings, predict

    organs = (organ,) if isinstance(organ, str) else tuple(organ)
    package = _package(organs, model, volume)
    return predict(
        volume,
        package,
        structures=_structures(organs, package),
        settings=settings or InferenceSettings(),
        progress=progress,
    )


def run(
    study: Path | str,
    out: Path | str,
    *,
    settings: RunSettings,
    reference: Path | str | None = None,
    previous: Path | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Load a study, segment it, mesh, measure and write everything into the folder `out`.

    Writes `segmentation.nii.gz`, `segmentation.seg.nrrd`, one `.stl` per structure, `preview.png`, `report.html`,
    `metrics.json` and `manifest.json` into a temporary folder first and moves them into place at the end: on
    any error what was in `out` before is left as it was. With super-resolution also `image.nii.gz`, its
    `image.synthesised.nii.gz` and `image.uncertainty.nii.gz`, and one `.vtp` per structure with both as values per
    vertex. previous: folder of an earlier run, whose segmentation is taken
    again when input, model, structures and inference settings are the same. Raises `Slice3DError` subclasses only for what the user can mend.
    """
    from slice3d import io, viewer

    if not settings.organs:
        raise InputError("no structure asked for; expected at least one, e.g. --organ liver")
    timings: dict[str, float] = {}
    _package(settings.organs, settings.model)  # an unknown organ must not wait for loading
    _check_superres(settings, reference)
    with Transaction(Path(out)) as transaction:
        with _stage("load", timings, progress):
            volume = io.load(
                study,
                series=settings.series,
                on_gap=settings.on_gap,
                on_tilt=settings.on_tilt,
                spacing_mm=settings.spacing_mm,
                progress=progress,
            )
            _check_dicom(volume, settings)
            truth = None if reference is None else _truth(reference, volume, settings)
            acquired, identity = volume, volume_hash(volume)
        if settings.superres is not None:
            with _stage("super-resolution", timings, progress):
                volume = _upsampled(volume, settings.superres, progress)
        with _stage("segment", timings, progress):
            analysed = identity if volume is acquired else volume_hash(volume)
            key = _segmentation_key(analysed, volume, settings)
            before = None if previous is None else reuse.earlier(previous, key, volume)
            result = before or segment(
                volume, settings.organs, model=settings.model, settings=settings.inference, progress=progress
            )
        with _stage("surfaces", timings, progress):
            meshes, missing = _meshes(result, settings, progress)
        with _stage("measure", timings, progress):
            metrics = _jsonable(_measure(result, meshes, truth))
        findings = _all_findings(volume, result, meshes, missing)
        with _stage("write", timings, progress):
            _write(transaction.folder, volume, result, meshes, settings)
        with _stage("preview", timings, progress):
            viewer.preview(volume, result, meshes, transaction.folder / "preview.png", findings=findings)
        manifest = _manifest(acquired, result, settings, timings, findings)
        if settings.superres is not None:
            manifest["super_resolution"] = _jsonable(volume.metadata.get("superresolution", "not needed"))
        manifest["input"]["sha256"] = identity
        manifest["segmentation"] = {"taken_again": before is not None, **_jsonable(reuse.kept(key, result))}
        with _stage("report", timings, progress):
            skipped = _report(transaction.folder, volume, result, meshes, {"metrics": metrics, "manifest": manifest})
        findings = (*findings, *skipped)
        manifest["findings"] = _jsonable([finding.to_dict() for finding in findings])
        manifest["timings_s"] = dict(timings)
        transaction.write_json("metrics.json", metrics)
        manifest["outputs"] = transaction.hashes()
        transaction.write_json("manifest.json", manifest)
        transaction.commit()
    return RunResult(volume, result, meshes, metrics, manifest, Path(out), findings)


def _segmentation_key(identity: str, volume: Volume, settings: RunSettings) -> str:
    from slice3d import models

    package = _package(settings.organs, settings.model, volume)
    return reuse.segmentation_key(
        identity, models.identity(package), _structures(settings.organs, package), settings.inference
    )


def _package(organs: Sequence[str], model: str | None, volume: Volume | None = None) -> ModelPackage:
    """The model that answers, for this image where there is one already."""
    from slice3d import models

    if volume is None:
        return models.find(organs, model=model)
    return models.find(organs, modality=volume.modality, size_mm=volume.grid.size_mm, model=model)


def _structures(organs: Sequence[str], package: ModelPackage) -> tuple[str, ...]:
    """The structures that these names and aliases ask for."""
    return tuple(dict.fromkeys(name for organ in organs for name in anatomy.resolve(organ, package.structures)))


def _check_dicom(volume: Volume, settings: RunSettings) -> None:
    """That DICOM results can be made must not turn out after the segmentation."""
    from slice3d.io.dicom.source import DicomSource

    wanted = settings.dicom_seg or settings.dicom_stl
    if settings.deidentify is not None:
        if not wanted:
            raise InputError("nothing to de-identify; expected DICOM results; add --dicom-seg or --dicom-stl")
        settings.deidentify.deidentifier()
    if wanted and not isinstance(volume.source, DicomSource):
        raise InputError("DICOM results need a study in DICOM; leave --dicom-seg and --dicom-stl out")


def _check_superres(settings: RunSettings, reference: Path | str | None) -> None:
    """What super-resolution excludes, before anything is loaded."""
    if settings.superres is None:
        return
    if settings.dicom_seg:
        raise InputError(
            "a DICOM SEG lies on the acquired slices, super-resolved labels do not; leave --dicom-seg or --superres out"
        )
    if reference is not None:
        raise InputError(
            "a reference lies on the acquired slices, super-resolved labels do not; leave --reference out and score with "
            "`slice3d evaluate --resample`"
        )


def _upsampled(volume: Volume, wanted: Superres, progress: Progress) -> Volume:
    from slice3d.superres import upsample

    return upsample(
        volume, spacing_mm=wanted.spacing_mm, method=wanted.method, settings=wanted.settings, progress=progress
    )


def _truth(path: Path | str, volume: Volume, settings: RunSettings) -> Segmentation:
    """The reference on the study's grid; what is wrong with it must not wait for the segmentation."""
    from slice3d import io
    from slice3d.resample import axis_moves, moved_grid, resample_labels

    truth = io.load_segmentation(path, reference=volume)
    wanted = _structures(settings.organs, _package(settings.organs, settings.model, volume))
    if not set(wanted) & set(truth.structures):
        raise InputError(
            f"the reference holds {', '.join(truth.structures) or 'nothing'}; expected at least one of "
            f"{', '.join(wanted)}; name its labels, e.g. as a .seg.nrrd"
        )
    if truth.grid.matches(volume.grid):
        return truth
    if not moved_grid(truth.grid, *axis_moves(truth.grid, volume.grid.orientation)).matches(volume.grid):
        raise GeometryError(
            f"the reference lies on another grid ({describe(truth.grid)}) than the study ({describe(volume.grid)}); "
            "expected the same; leave --reference out and score with `slice3d evaluate --resample`"
        )
    return resample_labels(truth, grid=volume.grid)  # the same voxels with their axes turned: nothing is interpolated


@contextmanager
def _stage(name: str, timings: dict[str, float], progress: Progress) -> Iterator[None]:
    start = time.perf_counter()
    progress(name, 0.0)
    yield
    progress(name, 1.0)
    timings[name] = round(time.perf_counter() - start, 3)


def _wanted(result: Segmentation) -> tuple[str, ...]:
    """The structures that were asked for: what the engine says, else every label."""
    asked: Sequence[str] = result.metadata.get("structures", ())
    return tuple(asked) or tuple(result.names[v] for v in sorted(result.names))


def _meshes(
    result: Segmentation, settings: RunSettings, progress: Progress
) -> tuple[dict[str, Mesh], tuple[Finding, ...]]:
    from slice3d.surface import SurfaceSettings, annotate, surface

    meshes: dict[str, Mesh] = {}
    missing: list[Finding] = []
    wanted = _wanted(result)
    for n, name in enumerate(wanted):
        if result.mask(name).any():
            mesh = surface(result, name, settings=settings.surface or SurfaceSettings())
            meshes[name] = annotate(mesh, volume=result) if len(mesh.faces) else mesh
        else:
            text = f"{name} was not found in this study: no volume, no surface"
            missing.append(Finding("structure-empty", text, details={"structure": name}))
        progress("surfaces", (n + 1) / len(wanted))
    return meshes, tuple(missing)


def _measure(result: Segmentation, meshes: Mapping[str, Mesh], truth: Segmentation | None) -> dict[str, Any]:
    import numpy as np

    from slice3d.metrics import components
    from slice3d.surface import check

    expected: Mapping[str, float] = result.metadata.get("expected_dice", {})
    rows: dict[str, dict[str, Any]] = {}
    for name in _wanted(result):
        mask = result.mask(name)
        row: dict[str, Any] = {"volume_ml": round(result.volume_ml(name), 3), "components": components(mask)}
        if result.synthesised is not None and mask.any():
            row["synthesised_share"] = round(float(result.synthesised[mask].mean()), 4)
        if result.uncertainty is not None and mask.any():
            row["mean_uncertainty"] = round(float(np.mean(result.uncertainty[mask])), 4)
        if name in expected:
            row["expected_dice"] = round(float(expected[name]), 3)
        if name in meshes:
            mesh = meshes[name]
            row["mesh"] = {
                "volume_ml": round(mesh.volume_ml, 3),
                "area_cm2": round(mesh.area_mm2 / 100.0, 3),
                "vertices": len(mesh.vertices),
                "faces": len(mesh.faces),
                "check": check(mesh).to_dict(),
            }
            for scalar, values in mesh.scalars.items():
                row["mesh"][f"mean_{scalar}"] = round(float(np.mean(values)), 4)
        rows[name] = row
    if truth is not None:
        _score(result, truth, rows)
    return {"structures": rows, "disclaimer": DISCLAIMER}


def _score(result: Segmentation, truth: Segmentation, rows: dict[str, dict[str, Any]]) -> None:
    from slice3d.metrics import evaluate

    shared = [name for name in rows if name in truth.structures]
    table = evaluate(result, truth, shared)
    for name in shared:
        rows[name]["reference"] = {str(key): value for key, value in table.loc[name].to_dict().items()}


def _all_findings(
    volume: Volume, result: Segmentation, meshes: Mapping[str, Mesh], missing: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    found = [*volume.findings, *result.findings, *missing, *(f for mesh in meshes.values() for f in mesh.findings)]
    unique = {(f.code, f.message): f for f in found}
    return tuple(unique.values())


def _write(
    folder: Path, volume: Volume, result: Segmentation, meshes: Mapping[str, Mesh], settings: RunSettings
) -> None:
    from slice3d import io

    io.save(result, folder / "segmentation.nii.gz")
    io.save(result, folder / "segmentation.seg.nrrd")
    for name, mesh in meshes.items():
        io.save(mesh, folder / f"{name}.stl")
        if settings.superres is not None and mesh.scalars:
            io.save(mesh, folder / f"{name}.vtp")  # an STL holds no values
    if settings.superres is not None and volume.synthesised is not None:
        io.save(volume, folder / "image.nii.gz")
        io.save(replace(volume, data=volume.synthesised.astype("uint8")), folder / "image.synthesised.nii.gz")
        if volume.uncertainty is not None:
            io.save(replace(volume, data=volume.uncertainty), folder / "image.uncertainty.nii.gz")
    # one for all files of a case, so that they refer to each other
    worker = settings.deidentify.deidentifier() if settings.deidentify is not None else None
    if settings.dicom_seg:
        io.save(result, folder / "segmentation.dcm", source=volume, deidentifier=worker)
    if settings.dicom_stl:
        for name, mesh in meshes.items():
            io.save(mesh, folder / f"{name}.dcm", source=volume, deidentifier=worker)


def _report(
    folder: Path,
    volume: Volume,
    result: Segmentation,
    meshes: Mapping[str, Mesh],
    documents: Mapping[str, Any],
) -> tuple[Finding, ...]:
    """Write the page; without the extra `viewer` say so instead, because everything else is there."""
    from slice3d import viewer

    manifest = documents["manifest"]
    if not manifest["settings"]["report"]:
        return ()
    findings = [Finding(f["code"], f["message"], f["severity"], f["details"]) for f in manifest["findings"]]
    try:
        viewer.report(
            volume, result, meshes, folder / "report.html",
            metrics=documents["metrics"], manifest=manifest, findings=findings,
        )  # fmt: skip
    except MissingExtraError as error:
        return (Finding("no-report", f"report.html was not written: {error}", "info"),)
    return ()


def _manifest(
    volume: Volume,
    result: Segmentation,
    settings: RunSettings,
    timings: Mapping[str, float],
    findings: Sequence[Finding],
) -> dict[str, Any]:
    return {
        "slice3d": __version__,
        "disclaimer": DISCLAIMER,
        "input": study_facts(volume),
        "model": {key: _jsonable(value) for key, value in result.metadata.items()},
        "settings": _jsonable(asdict(settings)),
        "timings_s": dict(timings),
        "findings": _jsonable([finding.to_dict() for finding in findings]),
        "estimated": "segmentation and surfaces are a network's estimate, not a measurement",
        "versions": _versions(),
    }


def study_facts(volume: Volume) -> dict[str, Any]:
    """What a manifest says of the study: its grid and how it was acquired, nothing that names a person."""
    return {
        "shape": list(volume.grid.shape),
        "spacing_mm": [round(s, 6) for s in volume.grid.spacing_mm],
        "orientation": volume.grid.orientation,
        "modality": volume.modality,
        "acquisition": {k: _jsonable(v) for k, v in volume.metadata.items() if k not in _FREE_TEXT},
    }


def volume_hash(volume: Volume) -> str:
    """SHA-256 over dtype, shape, affine and voxels: the identity of what was analysed, without any file name."""
    import numpy as np

    digest = hashlib.sha256(f"{volume.data.dtype.str}{volume.grid.shape}".encode())
    digest.update(volume.grid.affine.tobytes())
    for plane in volume.data:
        digest.update(np.ascontiguousarray(plane).tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("torch", "monai", "numpy", "pydicom", "SimpleITK", "vtk", "scikit-image"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN and no infinity
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
