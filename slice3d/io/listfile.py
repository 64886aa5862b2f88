"""`scan` for single files that are not DICOM, and for folders of pictures."""

from __future__ import annotations

from pathlib import Path

from slice3d.io.listing import Listing, SeriesEntry, StudyEntry
from slice3d.io.read import PICTURES, load, suffix_of


def list_file(path: Path) -> Listing:
    """One entry with what the header says. Raises `InputError` when the file cannot be read."""
    suffix = suffix_of(path)
    if path.is_dir() or suffix in PICTURES:
        count = sum(p.is_file() for p in path.iterdir()) if path.is_dir() else 1
        problem = "needs --spacing X,Y,Z to become a volume"
        entry = SeriesEntry("1", "picture", format="pictures", images=count, problem=problem)
        return Listing((StudyEntry(1, 1, "", (entry,)),), files=count, why="pictures carry no geometry")
    volume = load(path)
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
