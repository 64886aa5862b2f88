"""`scan` for single files that are not DICOM, and for folders of pictures: from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.io.listing import Listing, SeriesEntry, StudyEntry
from slice3d.io.read import NIFTI, PICTURES, suffix_of


def list_file(path: Path) -> Listing:
    """One entry with what the header says. Raises `InputError` when the file cannot be read."""
    suffix = suffix_of(path)
    if path.is_dir() or suffix in PICTURES:
        count = sum(p.is_file() for p in path.iterdir()) if path.is_dir() else 1
        problem = "needs --spacing X,Y,Z to become a volume"
        entry = SeriesEntry("1", "picture", format="pictures", images=count, problem=problem)
        return Listing((StudyEntry(1, 1, "", (entry,)),), files=count, why="pictures carry no geometry")
    grid: Grid | None
    label: dict[str, Any] = {}
    modality = ""
    if suffix in NIFTI:
        from slice3d.io.nifti import list_nifti

        grid, count, findings, problem = list_nifti(path)
        if count > 1:
            label = {"volumes": count}
            message = f"The file holds {count} volumes; the first is taken, series=1…{count} chooses another."
            findings.insert(0, Finding("several-volumes", message, "warning", {"volumes": count}))
    else:
        from slice3d.io.itk import list_itk

        grid, modality, findings, problem = list_itk(path)
    if problem:
        findings.append(Finding("not-a-volume", f"The file cannot become a volume: {problem}.", "warning"))
    entry = SeriesEntry(
        "1",
        "segmentation" if suffix == ".seg.nrrd" else "other" if problem else "volume",
        modality,
        format=suffix[1:],
        images=grid.shape[2] if grid else 0,
        shape=grid.shape if grid else None,
        spacing_mm=grid.spacing_mm if grid else None,
        orientation=grid.orientation if grid else None,
        label=label,
        findings=tuple(findings),
        problem=problem,
        picked=not problem,
    )
    why = problem or "it is the only volume"
    return Listing((StudyEntry(1, 1, "", (entry,)),), (), "" if problem else "1", why, 1)
