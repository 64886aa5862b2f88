"""`scan` for single files that are not DICOM."""

from __future__ import annotations

from pathlib import Path

from slice3d.io.listing import Listing, SeriesEntry, StudyEntry
from slice3d.io.read import suffix_of
from slice3d.volume import Volume


def list_file(path: Path) -> Listing:
    """One entry with what the header says. Raises `InputError` when the file cannot be read."""
    from slice3d.io.read import load

    suffix = suffix_of(path)
    if suffix in (".png", ".tif", ".tiff"):
        entry = SeriesEntry(
            "1", "picture", format=suffix[1:].upper(), images=1, problem="needs --spacing to become a volume"
        )
        return Listing((StudyEntry(1, 1, "", (entry,)),), files=1, why="pictures carry no geometry")
    volume: Volume = load(path)
    entry = SeriesEntry(
        "1",
        "segmentation" if suffix == ".seg.nrrd" else "volume",
        volume.modality,
        format=suffix[1:],
        images=volume.grid.shape[2],
        shape=volume.grid.shape,
        spacing_mm=volume.grid.spacing_mm,
        orientation=volume.grid.orientation,
        findings=volume.findings,
        picked=True,
    )
    return Listing((StudyEntry(1, 1, "", (entry,)),), (), "1", "it is the only volume", 1)
