"""A DICOM study → `Volume`s and a `Listing`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.io.dicom.choose import Candidate, candidates, pick, role_of, select
from slice3d.io.dicom.discovery import Found, discover
from slice3d.io.dicom.geometry import Layout
from slice3d.io.dicom.header import Header
from slice3d.io.dicom.pixels import CT_AIR, decode, decode_findings, decode_parts
from slice3d.io.dicom.repair import repair
from slice3d.io.dicom.source import source_of
from slice3d.io.dicom.stacks import Series, group_series, require_layout
from slice3d.io.listing import Listing, SeriesEntry, StudyEntry
from slice3d.io.settings import LoadSettings
from slice3d.progress import Progress, silent
from slice3d.volume import Volume, freeze


def load_dicom(path: Path, settings: LoadSettings, *, progress: Progress = silent) -> Volume:
    """The volume that `settings.series` names, or the one a person would pick, with a finding that says why."""
    found = discover(path, progress=progress)
    chosen, findings = _choose(found, path, settings.series)
    return _volume(chosen, settings, (*found.findings, *_damage(found), *findings), progress)


def load_all(path: Path, settings: LoadSettings, *, progress: Progress = silent) -> tuple[Volume, ...]:
    """Every volume of the chosen series in order (phases, echoes, b-values): the fourth dimension."""
    found = discover(path, progress=progress)
    chosen, findings = _choose(found, path, settings.series)
    common = (*found.findings, *_damage(found), *findings)
    same = [
        c for c in candidates(_series(found)) if c.header.series == chosen.header.series and c.stack.layout is not None
    ]
    return tuple(_volume(c, settings, common, progress) for c in same)


def _series(found: Found) -> list[Series]:
    return group_series(found.headers)


def _choose(found: Found, path: Path, wanted: str | None) -> tuple[Candidate, list[Finding]]:
    series = _series(found)
    everything = candidates(series)
    if not everything:
        raise InputError(_nothing(found, path))
    if wanted is not None:
        return select(everything, wanted), []
    best, why = pick(everything)
    if len(everything) == 1:
        return best, []
    others = [c.describe() for c in everything if c is not best]
    message = f"Series {best.describe()} was chosen because {why}."
    return best, [Finding("series-picked", message, "info", {"series": best.key, "others": others[:20]})]


def _nothing(found: Found, path: Path) -> str:
    """Why there is no image, in one line."""
    name = path.name or str(path)
    if found.damaged:
        return f"{name}: {found.damaged[0][1]}"
    if found.headers:
        header = found.headers[0]
        if header.damage:
            return f"{header.file.name} claims {header.damage}; expected a picture; the file is damaged, copy it again"
        kinds = sorted({h.modality or "unknown" for h in found.headers})
        return (
            f"{name} holds {len(found.headers)} DICOM files without image pixels ({', '.join(kinds)}); "
            "expected a CT or MR series; send the images too"
        )
    if not found.others and found.findings:
        return f"{name} holds no file that may be read: {found.findings[0].message}"
    if not found.others:
        return f"{name} is empty; expected DICOM files or a NIfTI, NRRD or MHA volume; check the path"
    volumes = [f for f in found.others if f.name.lower().endswith(_SINGLE_FILES)]
    if volumes:
        return f"{name} holds no DICOM but {len(volumes)} volume files such as {volumes[0].name}; expected one; name it"
    if path.is_file() and found.others[0].path == str(path) and not found.others[0].member:
        return f"{name} is neither DICOM nor NIfTI, NRRD or MHA; expected a study folder, file or .zip; check the path"
    return f"{name} holds {len(found.others)} files but none is DICOM; expected a CT or MR study; check the path"


_SINGLE_FILES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def _damage(found: Found) -> list[Finding]:
    if not found.damaged:
        return []
    return [
        Finding(
            "damaged-files",
            f"{len(found.damaged)} files are damaged and were left out, the first: {found.damaged[0][1]}.",
            "warning",
            {"files": len(found.damaged)},
        )
    ]


def _volume(chosen: Candidate, settings: LoadSettings, before: tuple[Finding, ...], progress: Progress) -> Volume:
    stack = chosen.stack
    layout = require_layout(stack, f"series {chosen.key}")
    _refuse(layout, settings, chosen.key)
    header = stack.planes[0].header
    grid, estimated = layout.grid, None
    parts: list[tuple[int, bool]] = []
    repaired: list[Finding] = []
    if layout.regular:
        decoded = decode(stack.planes, progress=progress)
        values = decoded.values
        parts.append((decoded.padded, decoded.odd))
    else:

        def pieces() -> Iterator[np.ndarray]:
            for part in decode_parts(stack.planes):
                parts.append((part.padded, part.odd))
                yield part.values

        fixed = repair(pieces(), layout, fill=CT_AIR if header.modality == "CT" else None, progress=progress)
        grid, values, estimated = fixed.grid, fixed.values, fixed.estimated
        repaired.append(_repair_finding(layout, estimated))
    findings = [*before, *chosen.series.findings, *stack.findings, *decode_findings(stack.planes, parts), *repaired]
    metadata: dict[str, Any] = dict(header.facts)
    return Volume(
        freeze(values.transpose(2, 1, 0)),
        grid,
        modality=header.modality,
        metadata=metadata,
        findings=tuple(findings),
        source=source_of(stack),
        synthesised=freeze(estimated.transpose(2, 1, 0)) if estimated is not None else None,
    )


def _refuse(layout: Layout, settings: LoadSettings, key: str) -> None:
    if layout.tilted and settings.on_tilt == "refuse":
        raise GeometryError(
            f"series {key} is sheared by {layout.tilt_deg:.2f}°; expected slices straight above each other; "
            "pass on_tilt='resample' to repair it"
        )
    if not layout.even and settings.on_gap == "refuse":
        gaps = np.diff(layout.distances)
        raise GeometryError(
            f"slice distance varies {gaps.min():.4g}–{gaps.max():.4g} mm in series {key}; expected one distance; "
            "pass on_gap='resample' to interpolate"
        )


def _repair_finding(layout: Layout, estimated: np.ndarray) -> Finding:
    share = float(estimated.mean())
    planes = int(estimated.all(axis=(1, 2)).sum())
    return Finding(
        "resampled",
        f"The volume was resampled along the true slice positions to {layout.step_mm:.4g} mm; {planes} of "
        f"{len(estimated)} planes lie between acquired slices and are estimated.",
        "warning",
        {
            "step_mm": round(layout.step_mm, 4),
            "planes_estimated": planes,
            "planes": len(estimated),
            "share_estimated": round(share, 4),
        },
    )


def list_dicom(path: Path, *, progress: Progress = silent) -> Listing:
    """Studies and series under a path, from headers alone. Raises `InputError` when no file there can be read."""
    found = discover(path, progress=progress)
    if not found.headers:
        raise InputError(_nothing(found, path))
    series = _series(found)
    everything = candidates(series)
    picked, why = "", ""
    try:
        best, why = pick(everything) if everything else (None, _nothing(found, path))
        picked = best.key if best else ""
    except InputError as error:
        why = str(error)
    entries: list[tuple[Header, SeriesEntry]] = []
    for number, one in enumerate(series, start=1):
        mine = [c for c in everything if c.series is one]
        for candidate in mine:
            entries.append((one.first, replace(_entry(candidate), picked=candidate.key == picked)))
        if not mine:
            entries.append((one.first, _other(str(number), one)))
    return Listing(_studies(entries), (*found.findings, *_damage(found)), picked, why, len(found.headers))


def _studies(entries: list[tuple[Header, SeriesEntry]]) -> tuple[StudyEntry, ...]:
    patients: dict[str, int] = {}
    studies: dict[tuple[str, str], list[tuple[Header, SeriesEntry]]] = {}
    for header, entry in entries:
        patients.setdefault(header.patient, len(patients) + 1)
        studies.setdefault((header.patient, header.study), []).append((header, entry))
    return tuple(
        StudyEntry(n, patients[patient], members[0][0].study_description, tuple(e for _, e in members))
        for n, ((patient, _), members) in enumerate(studies.items(), start=1)
    )


def _entry(candidate: Candidate) -> SeriesEntry:
    stack, header = candidate.stack, candidate.header
    layout = stack.layout
    grid = layout.grid if layout is not None else None
    kind = "volume" if layout is not None and len(stack.planes) > 1 else "picture"
    return SeriesEntry(
        key=candidate.key,
        kind=kind,
        modality=header.modality,
        description=header.description,
        images=len(stack.planes),
        shape=grid.shape if grid else (header.columns, header.rows, len(stack.planes)),
        spacing_mm=grid.spacing_mm if grid else None,
        orientation=grid.orientation if grid else None,
        label=stack.label,
        findings=(*candidate.series.findings, *stack.findings),
        problem=stack.problem,
        role=role_of(header),
    )


def _other(key: str, series: Series) -> SeriesEntry:
    header = series.first
    kind = {"SEG": "segmentation", "RTSTRUCT": "structures"}.get(header.modality, "other")
    problem = "" if kind != "other" else f"no image pixels ({header.modality or 'unknown'})"
    if header.damage:
        problem = f"damaged: claims {header.damage}"
    return SeriesEntry(key, kind, header.modality, header.description, images=len(series.headers), problem=problem)
