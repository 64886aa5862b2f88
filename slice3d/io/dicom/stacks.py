"""From files to volumes: series, and within a series one stack per orientation, echo, phase, b-value …"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.io.dicom.geometry import ORIENTATION_TOLERANCE, Layout
from slice3d.io.dicom.header import Header
from slice3d.io.dicom.separate import Plane, Stack, by_position, problem_of


@dataclass
class Series:
    """One DICOM series: its stacks, and what is said about all of them."""

    headers: list[Header]
    stacks: list[Stack]
    findings: list[Finding] = field(default_factory=list)

    @property
    def first(self) -> Header:
        """The header that speaks for the series."""
        return self.headers[0]


def group_series(headers: Iterable[Header]) -> list[Series]:
    """Series in the order of study, series number and instance UID; each split into stacks."""
    groups: dict[tuple[str, str, str, str], list[Header]] = defaultdict(list)
    for header in headers:
        groups[(header.patient, header.study, header.series, header.modality)].append(header)
    out = [_series(group) for group in groups.values()]
    out.sort(
        key=lambda s: (
            s.first.study_date,
            s.first.study,
            s.first.series_number is None,
            s.first.series_number or 0,
            s.first.series,
        )
    )
    return out


def _series(headers: list[Header]) -> Series:
    headers = sorted(headers, key=lambda h: (h.instance_number, h.sop_instance, h.file.path, h.file.member))
    findings: list[Finding] = []
    unique: list[Header] = []
    seen: dict[str, set[Hashable]] = defaultdict(set)
    for header in headers:
        content = _content(header)
        if header.sop_instance and content in seen[header.sop_instance]:
            continue
        seen[header.sop_instance].add(content)
        unique.append(header)
    shared = sum(len(contents) > 1 for uid, contents in seen.items() if uid)
    if shared:
        findings.append(
            Finding(
                "shared-instance-uid",
                f"{shared} instance UIDs are carried by different images; all were kept, but results cannot refer to "
                "them one by one.",
                "warning",
                {"uids": shared},
            )
        )
    if len(unique) < len(headers):
        count = len(headers) - len(unique)
        findings.append(
            Finding(
                "duplicate-files",
                f"{count} files repeat an image that is already there and were left out.",
                "info",
                {"files": count},
            )
        )
    bare = sum(not header.is_image for header in unique)
    if 0 < bare < len(unique):
        findings.append(
            Finding(
                "images-without-pixels",
                f"{bare} files of the series hold no pixels (cut off, or stripped of them) and were left out.",
                "warning",
                {"files": bare},
            )
        )
    return Series(unique, split(unique), findings)


def _content(header: Header) -> Hashable:
    """What two copies of one image share; exporters that give one UID to many images differ in it."""
    place = header.frames[0].position if header.frames else None
    return header.instance_number, place, header.number_of_frames


def split(headers: Sequence[Header]) -> list[Stack]:
    """One stack per volume, largest first within what differs only in size."""
    planes = [Plane(h, f) for h in headers if h.is_image for f in h.frames]
    groups: dict[Hashable, list[Plane]] = defaultdict(list)
    directions: list[np.ndarray] = []
    for plane in planes:
        groups[_shape_key(plane, directions)].append(plane)
    stacks: list[Stack] = []
    for members in groups.values():
        stacks.extend(by_position(members))
    _note_leftovers(list(groups.values()), stacks)
    if len(directions) > 1:
        names = f"The series holds {len(directions)} orientations; each became a volume of its own."
        for stack in stacks:
            stack.findings.append(Finding("several-orientations", names, "warning", {"orientations": len(directions)}))
    return stacks


def _note_leftovers(groups: list[list[Plane]], stacks: list[Stack]) -> None:
    """Images that differ in size, spacing or kind from others of their series: nobody shall look for them in vain."""
    kinds = {_form(members[0]) for members in groups}
    if len(kinds) < 2:
        return
    counts = ", ".join(f"{len(s.planes)}" for s in stacks)
    finding = Finding(
        "several-sizes",
        f"The series holds images of {len(kinds)} sizes, pixel spacings or kinds ({counts} images); each became a "
        "volume of its own.",
        "warning",
        {"kinds": len(kinds), "images": [len(s.planes) for s in stacks][:50]},
    )
    for stack in stacks:
        stack.findings.append(finding)


def _form(plane: Plane) -> Hashable:
    header, frame = plane.header, plane.frame
    spacing = tuple(round(s, 4) for s in frame.spacing) if frame.spacing else None
    return header.rows, header.columns, spacing, frame.position is None, problem_of(plane)


def _shape_key(plane: Plane, directions: list[np.ndarray]) -> Hashable:
    header, frame = plane.header, plane.frame
    which = -1
    if frame.orientation is not None:
        direction = np.array(frame.orientation)
        near = [n for n, known in enumerate(directions) if np.abs(known - direction).max() <= ORIENTATION_TOLERANCE]
        if near:
            which = near[0]
        else:
            which = len(directions)
            directions.append(direction)
    spacing = tuple(round(s, 4) for s in frame.spacing) if frame.spacing else None
    localizer = "LOCALIZER" in header.image_type
    stack = frame.keys.get("StackID")
    return (header.rows, header.columns, which, spacing, localizer, frame.position is None, stack, problem_of(plane))


def require_layout(stack: Stack, what: str) -> Layout:
    """The stack's geometry. Raises the reason why there is none."""
    if stack.layout is None:
        if "expected" in stack.problem:
            raise GeometryError(f"{what}: {stack.problem}")
        if " without " in stack.problem:
            raise GeometryError(
                f"{what} holds {stack.problem}; expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing in "
                "each; choose another series with --series"
            )
        raise InputError(f"{what} holds {stack.problem}; expected a CT or MR series; choose another with --series")
    return stack.layout
