"""From files to volumes: series, and within a series one stack per orientation, echo, phase, b-value …"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slice3d.errors import GeometryError, InputError
from slice3d.findings import Finding
from slice3d.io.dicom.frames import SPLIT_KEYS
from slice3d.io.dicom.geometry import ORIENTATION_TOLERANCE, POSITION_TOLERANCE_MM, Layout, axes, layout
from slice3d.io.dicom.header import Frame, Header

# these change what a voxel means: slices that differ in them never belong to one volume
_CONTRASTS = ("EchoTime", "DiffusionBValue", "InversionTime")
_MAX_STATIONS = 32


@dataclass(frozen=True, slots=True)
class Plane:
    """One image plane of one file."""

    header: Header
    frame: Frame


@dataclass
class Stack:
    """The planes of one volume, ordered along the normal. problem: why it is no volume, empty when it is."""

    planes: list[Plane]
    layout: Layout | None
    label: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problem: str = ""


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
        stacks.extend(_by_position(members))
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
    return header.rows, header.columns, spacing, frame.position is None, _problem(plane)


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
    return (header.rows, header.columns, which, spacing, localizer, frame.position is None, stack, _problem(plane))


def _by_position(planes: list[Plane]) -> list[Stack]:
    problem = _problem(planes[0])
    if problem:
        return [Stack(planes, None, problem=problem)]
    frame = planes[0].frame
    if frame.orientation is None or frame.spacing is None or frame.position is None:
        return [Stack(planes, None, problem=f"{len(planes)} images without slice positions")]
    try:
        normal = axes(frame.orientation)[2]
    except GeometryError as error:
        return [Stack(planes, None, problem=str(error))]
    origins = np.array([p.frame.position for p in planes], dtype=float)
    places = _places(origins @ normal, min(POSITION_TOLERANCE_MM / 2, 0.1 * min(frame.spacing)))
    repeats = np.bincount(places)
    if repeats.max() == 1:
        return _interleaved(planes) or [_stack(planes, {}, [])]
    return _split_repeats(planes, places, _stations(origins, normal))


def _interleaved(planes: list[Plane]) -> list[Stack]:
    """Volumes of different contrast whose slices lie between each other's; empty when there is but one."""
    for key in _CONTRASTS:
        groups: dict[Hashable, list[Plane]] = defaultdict(list)
        for plane in planes:
            groups[_key(plane, key)].append(plane)
        if len(groups) > 1 and min(len(members) for members in groups.values()) > 2:
            return [
                _stack(members, {key: value}, [_multi((key,), len(groups))])
                for value, members in sorted(groups.items(), key=lambda item: _order(item[0]))
            ]
    return []


def _stations(origins: np.ndarray, normal: np.ndarray) -> list[int]:
    """Number of the table position of each plane: where it lies sideways, to a millimetre. All 1 when that says
    nothing.
    """
    sideways = origins - np.outer(origins @ normal, normal)
    known: list[np.ndarray] = []
    out: list[int] = []
    for place in sideways:
        near = [n for n, other in enumerate(known, start=1) if np.abs(other - place).max() <= 1.0]
        if not near:
            known.append(place)
        if len(known) > _MAX_STATIONS:
            return [1] * len(origins)
        out.append(near[0] if near else len(known))
    return out


def _problem(plane: Plane) -> str:
    header = plane.header
    if header.samples != 1 or header.photometric in ("RGB", "PALETTE COLOR") or header.photometric.startswith("YBR"):
        return f"colour pictures ({header.photometric or header.samples}), not measured grey values"
    if "MOSAIC" in header.image_type:
        return "mosaics (many slices tiled into one picture)"
    if header.bits_allocated not in (8, 16, 32, 64):
        return f"{header.bits_allocated} bits per pixel"
    return ""


def _places(distances: np.ndarray, tolerance_mm: float) -> np.ndarray:
    """Number of the slice position each plane lies at."""
    order = np.argsort(distances, kind="stable")
    jumps = np.diff(distances[order]) > tolerance_mm
    numbers = np.concatenate([[0], np.cumsum(jumps)])
    out = np.empty(len(distances), dtype=int)
    out[order] = numbers
    return out


def _split_repeats(planes: list[Plane], places: np.ndarray, stations: list[int]) -> list[Stack]:
    """Several planes at one position: by the fewest header facts that tell them apart, else by order, else refuse."""
    facts: dict[str, list[Hashable]] = {key: [_key(p, key) for p in planes] for key in SPLIT_KEYS}
    facts["Station"] = list(stations)
    keys = [key for key, values in facts.items() if len(set(values)) > 1]
    # A single fact first, then growing sets, so that the label of a volume stays short.
    candidates: list[tuple[str, ...]] = [(key,) for key in keys]
    candidates += [(a, b) for n, a in enumerate(keys) for b in keys[n + 1 :]]
    candidates += [tuple(keys[:count]) for count in range(3, len(keys) + 1)]
    for chosen in candidates:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index in range(len(planes)):
            groups[tuple(facts[key][index] for key in chosen)].append(index)
        # a fact that differs from slice to slice (an acquisition time) tells nothing apart
        if len(groups) > len(planes) / 2 and places.max() > 0:
            continue
        if all(len(set(places[members])) == len(members) for members in groups.values()):
            return [
                _stack([planes[i] for i in members], _label(chosen, value), [_multi(chosen, len(groups))])
                for value, members in sorted(groups.items(), key=lambda item: _order(item[0]))
            ]
    repeats = np.bincount(places)
    if repeats.min() == repeats.max() and (repeats.max() <= len(planes) // 2 or places.max() == 0):
        return _by_order(planes, places, int(repeats.max()))
    kept: dict[int, Plane] = {}
    for place, plane in zip(places, planes, strict=True):
        kept.setdefault(int(place), plane)
    count = len(planes) - len(kept)
    finding = Finding(
        "duplicate-positions",
        f"{count} images lie at a position that another image already takes; the first of each was kept.",
        "warning",
        {"images": count},
    )
    return [_stack(list(kept.values()), {}, [finding])]


def _by_order(planes: list[Plane], places: np.ndarray, count: int) -> list[Stack]:
    rounds: list[list[Plane]] = [[] for _ in range(count)]
    taken: dict[int, int] = defaultdict(int)
    for place, plane in zip(places, planes, strict=True):
        rounds[taken[int(place)]].append(plane)
        taken[int(place)] += 1
    finding = Finding(
        "several-volumes",
        f"Every slice position was imaged {count} times and no header says why; the volumes follow the image numbers.",
        "warning",
        {"volumes": count, "by": "InstanceNumber"},
    )
    return [_stack(members, {"Repetition": n + 1}, [finding]) for n, members in enumerate(rounds)]


def _multi(chosen: tuple[str, ...], count: int) -> Finding:
    return Finding(
        "several-volumes",
        f"The series holds {count} volumes that differ in {' and '.join(chosen)}.",
        "info",
        {"volumes": count, "by": list(chosen)},
    )


def _key(plane: Plane, key: str) -> Hashable:
    value = plane.frame.keys.get(key)
    if isinstance(value, float):
        return round(value, 4)
    return tuple(round(v, 4) for v in value) if isinstance(value, tuple) else value


def _order(value: Hashable) -> tuple[Any, ...]:
    items = value if isinstance(value, tuple) else (value,)
    return tuple((v is None, isinstance(v, str), v if isinstance(v, int | float) else 0, str(v)) for v in items)


def _label(chosen: tuple[str, ...], value: Hashable) -> dict[str, Any]:
    values = value if isinstance(value, tuple) else (value,)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in zip(chosen, values, strict=True)}


def _stack(planes: list[Plane], label: dict[str, Any], findings: list[Finding]) -> Stack:
    first = planes[0]
    try:
        orientation, spacing = first.frame.orientation, first.frame.spacing
        if orientation is None or spacing is None:
            raise GeometryError("no orientation or pixel spacing")
        normal = axes(orientation)[2]
        ordered = sorted(planes, key=lambda p: float(np.dot(p.frame.position or (0, 0, 0), normal)))
        origins = np.array([p.frame.position for p in ordered], dtype=float)
        measured = layout(
            origins, orientation, (spacing[0], spacing[1]), (first.header.rows, first.header.columns),
            thickness_mm=_thickness(ordered),
        )  # fmt: skip
    except GeometryError as error:
        return Stack(planes, None, label, findings, str(error))
    return Stack(ordered, measured, label, [*findings, *measured.findings])


def _thickness(planes: list[Plane]) -> float | None:
    values = [p.frame.thickness for p in planes if p.frame.thickness]
    return float(np.median(values)) if values else None


def require_layout(stack: Stack, what: str) -> Layout:
    """The stack's geometry. Raises the reason why there is none."""
    if stack.layout is None:
        if "positions" in stack.problem or "expected" in stack.problem:
            raise GeometryError(f"{what}: {stack.problem}" if "expected" in stack.problem else
                                f"{what} holds {stack.problem}; expected ImagePositionPatient in each; "
                                "choose another series with --series")  # fmt: skip
        raise InputError(f"{what} holds {stack.problem}; expected a CT or MR series; choose another with --series")
    return stack.layout
