"""What `scan` returns: studies and their series as plain values, without names, IDs or dates of persons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from slice3d.findings import Finding


@dataclass(frozen=True)
class SeriesEntry:
    """One loadable (or not loadable) thing.

    role: `"acquired"`, `"localiser"`, `"derived"` or `"secondary capture"` for pictures of a scanner, else empty.

    key: what `series=` and `--series` take. kind: `"volume"`, `"segmentation"`, `"structures"`, `"picture"` or
    `"other"`.
    shape: (i, j, k) voxels; spacing_mm likewise; orientation: three letters as in `Grid.orientation`; None when
    unknown.
    label: what tells this volume from others of its series (echo time, phase, b-value …). problem: why it cannot be
    loaded.
    """

    key: str
    kind: str
    modality: str = ""
    description: str = ""
    format: str = "DICOM"
    images: int = 0
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    label: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    problem: str = ""
    picked: bool = False
    role: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary without identifiers."""
        return {
            "series": self.key,
            "kind": self.kind,
            "role": self.role,
            "modality": self.modality,
            "description": self.description,
            "format": self.format,
            "images": self.images,
            "shape": list(self.shape) if self.shape else None,
            "spacing_mm": [round(s, 5) for s in self.spacing_mm] if self.spacing_mm else None,
            "orientation": self.orientation,
            "label": dict(self.label),
            "findings": [f.to_dict() for f in self.findings],
            "problem": self.problem,
            "picked": self.picked,
        }


@dataclass(frozen=True)
class StudyEntry:
    """One study; `patient` numbers the persons in the order met and says nothing about who they are."""

    number: int
    patient: int
    description: str
    series: tuple[SeriesEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary without identifiers."""
        return {
            "study": self.number,
            "patient": self.patient,
            "description": self.description,
            "series": [s.to_dict() for s in self.series],
        }


@dataclass(frozen=True)
class Listing:
    """Everything found under a path.

    picked: key of the series that `load` would take, "" when it would refuse; why: in words.
    """

    studies: tuple[StudyEntry, ...]
    findings: tuple[Finding, ...] = ()
    picked: str = ""
    why: str = ""
    files: int = 0

    @property
    def series(self) -> tuple[SeriesEntry, ...]:
        """All series of all studies in order."""
        return tuple(entry for study in self.studies for entry in study.series)

    def __iter__(self) -> Iterator[SeriesEntry]:
        return iter(self.series)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary without identifiers."""
        return {
            "files": self.files,
            "picked": self.picked,
            "why": self.why,
            "studies": [s.to_dict() for s in self.studies],
            "findings": [f.to_dict() for f in self.findings],
        }
