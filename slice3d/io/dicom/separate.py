"""Planes of one size and orientation → volumes: told apart by the fewest header facts, by order, or not at all."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slice3d.errors import GeometryError
from slice3d.findings import Finding
from slice3d.io.dicom.frames import SPLIT_KEYS
from slice3d.io.dicom.geometry import POSITION_TOLERANCE_MM, Layout, axes, layout
from slice3d.io.dicom.header import Frame, Header

# these change what a voxel means: slices that differ in them never belong to one volume
_CONTRASTS = ("EchoTime", "DiffusionBValue", "InversionTime")
_MAX_STATIONS = 32
_MAX_SHUFFLED = 20


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


def by_position(planes: list[Plane]) -> list[Stack]:
    """The volumes that planes of one size, spacing and orientation make up."""
    problem = problem_of(planes[0])
    if problem:
        return [Stack(planes, None, problem=problem)]
    frame = planes[0].frame
    if frame.orientation is None or frame.spacing is None or frame.position is None:
        facts = {"slice positions": frame.position, "orientation": frame.orientation, "pixel spacing": frame.spacing}
        lacking = " and ".join(name for name, value in facts.items() if value is None)
        return [Stack(planes, None, problem=f"{len(planes)} images without {lacking}")]
    try:
        normal = axes(frame.orientation)[2]
    except GeometryError as error:
        return [Stack(planes, None, problem=str(error))]
    origins = np.array([p.frame.position for p in planes], dtype=float)
    places = _places(origins @ normal, min(POSITION_TOLERANCE_MM / 2, 0.1 * min(frame.spacing)))
    repeats = np.bincount(places)
    if repeats.max() == 1:
        return _interleaved(planes, origins @ normal) or [_stack(planes, {}, [])]
    return _split_repeats(planes, places, _stations(origins, normal))


def _interleaved(planes: list[Plane], distances: np.ndarray) -> list[Stack]:
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
    return _shuffled(planes, distances)


def _shuffled(planes: list[Plane], distances: np.ndarray) -> list[Stack]:
    """Even stacks whose slices lie between each other's at uneven distances, one imaged after the other: phases of
    one examination that no header tells apart. Empty when it is anything else.
    """
    order = np.argsort(distances, kind="stable")
    keys = [(p.header.instance_number, p.frame.index) for p in planes]
    if len(set(keys)) < len(keys):
        return []
    rank = {key: n for n, key in enumerate(sorted(keys))}
    numbers = np.array([rank[keys[n]] for n in order])
    for count in range(2, min(_MAX_SHUFFLED, len(planes) // 3) + 1):
        parts = [order[n::count] for n in range(count)]
        gaps = [np.diff(distances[part]) for part in parts]
        step = float(np.median(gaps[0]))
        even = all(np.abs(gap - step).max() <= max(POSITION_TOLERANCE_MM, 0.02 * step) for gap in gaps)
        if not even:
            continue
        uneven = np.ptp(np.diff(distances[order])) > max(POSITION_TOLERANCE_MM, 0.02 * step)
        ranges = sorted((int(numbers[n::count].min()), int(numbers[n::count].max()), n) for n in range(count))
        apart = all(first[1] < second[0] for first, second in itertools.pairwise(ranges))
        if not (uneven and apart):
            return []
        finding = Finding(
            "several-volumes",
            f"{count} stacks of slices lie between each other, imaged one after the other, and no header says why; "
            "the volumes follow the image numbers.",
            "warning",
            {"volumes": count, "by": "InstanceNumber"},
        )
        members = [[planes[int(i)] for i in parts[n]] for _, _, n in ranges]
        return [_stack(part, {"Repetition": n}, [finding]) for n, part in enumerate(members, start=1)]
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


def problem_of(plane: Plane) -> str:
    """Why the pixels are no measured grey values; empty when they are."""
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
    numbers = [(place, p.header.instance_number, p.frame.index) for place, p in zip(places, planes, strict=True)]
    if len(set(numbers)) < len(numbers):
        problem = (
            f"{count} images at every slice position and nothing in their headers that tells them apart (export each "
            "phase as a series of its own)"
        )
        return [Stack(planes, None, problem=problem)]
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
        return int(value) if value.is_integer() else round(value, 4)
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
