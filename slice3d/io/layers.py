"""Masks that may overlap ↔ the one label map of a `Segmentation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.volume import Segmentation, freeze


def combine(
    masks: Sequence[tuple[str, NDArray[np.bool_]]], grid: Grid, *, findings: Sequence[Finding] = ()
) -> Segmentation:
    """Disjoint labels, and a group for every structure that shares voxels with another.

    Every combination of structures that occurs gets one label. A structure that is exactly one label names it, any
    other is the union of several and becomes a group; combinations that no structure names are called `a+b`.
    """
    titles = unique({n: name for n, (name, _) in enumerate(masks, start=1)})
    labels = np.zeros(grid.shape, dtype=np.int32, order="F")
    owners: list[frozenset[int]] = [frozenset()]
    for number, (_, mask) in enumerate(masks, start=1):
        inside = labels[mask]
        renamed = {}
        for old in np.unique(inside):
            both = owners[int(old)] | {number}
            renamed[int(old)] = len(owners)
            owners.append(both)
        if renamed:
            table = np.zeros(max(renamed) + 1, dtype=np.int32)
            table[list(renamed)] = list(renamed.values())
            labels[mask] = table[inside]
    present = [int(v) for v in np.unique(labels) if v]
    if all(len(owners[v]) == 1 for v in present):
        # nothing overlaps: the n-th mask is label n
        own = np.array([0, *(next(iter(o)) for o in owners[1:])], dtype=np.uint8 if len(masks) < 256 else np.uint16)
        return Segmentation(freeze(own[labels]), grid, titles, findings=tuple(findings))
    packed = np.zeros(len(owners), dtype=np.uint8 if len(present) < 250 else np.uint16)
    packed[present] = np.arange(1, len(present) + 1)
    sets = {n: owners[old] for n, old in enumerate(present, start=1)}
    names: dict[int, str] = {}
    groups: dict[str, tuple[int, ...]] = {}
    spare = len(present)
    for number, title in titles.items():
        values = tuple(value for value, members in sets.items() if number in members)
        if len(values) == 1 and values[0] not in names:
            names[values[0]] = title
        elif values:
            groups[title] = values
        else:
            spare += 1
            names[spare] = title
    for value, members in sets.items():
        names.setdefault(value, "+".join(titles[n] for n in sorted(members)))
    noted = list(findings)
    if groups:
        message = f"Structures overlap ({', '.join(sorted(groups))}); each keeps all of its voxels."
        noted.append(Finding("overlapping-structures", message, "info", {"structures": sorted(groups)}))
    return Segmentation(freeze(packed[labels]), grid, unique(names), groups=groups, findings=tuple(noted))


def unique(names: Mapping[int, str]) -> dict[int, str]:
    """Names made different from each other by a number."""
    out: dict[int, str] = {}
    taken: set[str] = set()
    for value, name in sorted(names.items()):
        fresh, n = name, 2
        while fresh in taken:
            fresh, n = f"{name}_{n}", n + 1
        taken.add(fresh)
        out[value] = fresh
    return out
