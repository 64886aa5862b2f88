"""Removing what cannot belong to an organ: second components of single organs, and crumbs.

A single organ (anatomy kind `organ`, and `body`) keeps its largest component. Everything else keeps components of at
least `_FRAGMENT_SHARE` of its largest one; lesions keep everything above `_CRUMB_ML`. What is too thin for a structure
whose least thickness is known goes too: the arteries that leave an aorta. A voxel that is removed takes
the label of the nearest voxel that stays, so that nothing tears holes into an enclosing structure. What is dropped is
reported when it is larger than `_REPORT_SHARE` of what stays.

That is for native packages. Steps that a foreign model brings along (`keep_largest`) are applied as it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.findings import Finding
from slice3d.models.own_steps import KeepLargest
from slice3d.volume import Segmentation, freeze

_FRAGMENT_SHARE = 0.01
_CRUMB_ML = 0.03
_REPORT_SHARE = 0.02
_MARGIN = 2
_THICK_SHARE = 0.6
"""Of a structure that is thinner than it should be elsewhere, too, nothing is taken: a child's aorta, say."""


def clean(result: Segmentation, wanted: Sequence[str]) -> Segmentation:
    """The segmentation without stray components of the wanted structures, and findings about what was dropped."""
    labels = np.array(result.labels)
    findings: list[Finding] = []
    for name in wanted:
        dropped = _clean_one(labels, result.values(name), name, result.grid.voxel_volume_mm3 / 1000.0)
        if dropped is not None:
            findings.append(dropped)
        known = anatomy.STRUCTURES.get(name)
        if known and known.thinnest_mm:
            thin = _drop_thin(labels, result.values(name), known.thinnest_mm, result.grid.spacing_mm)
            lost = thin * result.grid.voxel_volume_mm3 / 1000.0
            if thin > _REPORT_SHARE * np.count_nonzero(np.isin(labels, result.values(name))):
                text = (
                    f"{name}: {lost:.1f} ml thinner than {known.thinnest_mm:g} mm were taken off, as a rule the arteries "
                    "that leave it: look whether a narrowed part of it is missing"
                )
                details = {"structure": name, "dropped_ml": round(lost, 2), "thinnest_mm": known.thinnest_mm}
                findings.append(Finding("thin-parts-dropped", text, severity="info", details=details))
    return replace(result, labels=freeze(labels), findings=(*result.findings, *findings))


def drop_detached(labels: NDArray[Any], values: Sequence[int]) -> None:
    """Take labels off, in place, where they lie in small pieces that do not touch the body.

    labels: everything that belongs to a body, non-zero. values: labels that such pieces lose. A couch's rails and cables
    are as bright as bone; an arm beside the trunk is far more than a hundredth of it.
    """
    from scipy import ndimage

    box = _bounding_box(labels > 0)
    if box is None:
        return
    labels = labels[box]
    components, count = ndimage.label(labels, structure=np.ones((3, 3, 3), bool))
    if count < 2:
        return
    sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in components], axis=0)
    sizes[0] = 0
    small = sizes < _FRAGMENT_SHARE * sizes.max()
    small[0] = False
    labels[small[components] & np.isin(labels, values)] = 0


def keep_largest(labels: NDArray[Any], steps: Sequence[KeepLargest]) -> None:
    """Apply a model's own steps in place: other components than the largest become background."""
    for step in steps:
        present = [int(v) for v in np.unique(labels) if v and (step.labels is None or v in step.labels)]
        for values in [[v] for v in present] if step.independent else [present]:
            _keep_largest_of(labels, values, step)


def _keep_largest_of(labels: NDArray[Any], values: Sequence[int], step: KeepLargest) -> None:
    from scipy import ndimage

    mask = np.isin(labels, values)
    box = _bounding_box(mask)
    if box is None:
        return
    components, count = ndimage.label(mask[box], structure=ndimage.generate_binary_structure(3, step.connectivity))
    if count <= step.components:
        return
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    drop = np.ones(len(sizes), bool)
    drop[np.argsort(-sizes, kind="stable")[: step.components]] = False
    drop[0] = False
    labels[box][drop[components]] = 0


def _clean_one(labels: NDArray[Any], values: Sequence[int], name: str, voxel_ml: float) -> Finding | None:
    """Clean one structure in place."""
    from scipy import ndimage

    mask = labels == values[0] if len(values) == 1 else np.isin(labels, values)
    box = _bounding_box(mask)
    if box is None:
        return None
    mask = mask[box]
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3), bool))
    if count < 2:
        return None
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    drop = _to_drop(sizes, name, voxel_ml)
    if not drop.any():
        return None
    _refill(labels, box, drop[components], values)
    kept, lost = float(sizes[~drop].sum()), float(sizes[drop].sum())
    if lost < _REPORT_SHARE * kept:
        return None
    text = (
        f"{name}: {int(drop.sum())} separate part(s) of {lost * voxel_ml:.1f} ml in all were dropped, "
        f"{kept * voxel_ml:.1f} ml stay: check that nothing that belongs to it is missing"
    )
    details = {"structure": name, "dropped_ml": round(lost * voxel_ml, 2), "kept_ml": round(kept * voxel_ml, 2)}
    return Finding("parts-dropped", text, details=details)


def _drop_thin(
    labels: NDArray[Any], values: Sequence[int], thinnest_mm: float, spacing_mm: tuple[float, float, float]
) -> int:
    """Opening with a ball of half the least thickness, in place: how many voxels were thinner and went.

    A structure that the field of view cuts goes on outside.
    """
    from scipy import ndimage

    mask = np.isin(labels, values)
    box = _bounding_box(mask)
    if box is None:
        return 0
    radius = thinnest_mm / 2
    reach = [int(np.ceil(radius / s)) + 1 for s in spacing_mm]
    inside = mask[box]
    beyond = [
        [r if edge else 0 for edge in (s.start == 0, s.stop >= n)]
        for r, s, n in zip(reach, box, labels.shape, strict=True)
    ]
    wide = np.pad(inside, beyond, mode="edge")
    core = ndimage.distance_transform_edt(wide, sampling=spacing_mm) > radius
    if not core.any():
        return 0
    # half a voxel more: distances are to voxel centres, and an opening must give a ball back whole
    near = ndimage.distance_transform_edt(~core, sampling=spacing_mm) <= radius + 0.5 * max(spacing_mm)
    kept = near[tuple(slice(a, n - b) for (a, b), n in zip(beyond, wide.shape, strict=True))] & inside
    before, after = np.count_nonzero(inside), np.count_nonzero(kept)
    if after == before or after < _THICK_SHARE * before:
        return 0
    _refill(labels, box, inside & ~kept, values)
    return int(before - after)


def _to_drop(sizes: NDArray[np.int64], name: str, voxel_ml: float) -> NDArray[np.bool_]:
    """Which components go; index 0 is the background and never does."""
    known = anatomy.STRUCTURES.get(name)
    kind = known.kind if known else ("lesion" if "tumor" in name or "lesion" in name else "bone")
    if name in anatomy.GROUPS:
        kind = "bone"
    if kind in ("organ", "body"):
        drop = np.ones(len(sizes), bool)
        drop[int(np.argmax(sizes))] = False
    elif kind == "lesion":
        drop = sizes * voxel_ml < _CRUMB_ML
    else:
        drop = sizes < _FRAGMENT_SHARE * sizes.max()
    drop[0] = False
    return drop


def _refill(labels: NDArray[Any], box: tuple[slice, ...], drop: NDArray[np.bool_], values: Sequence[int]) -> None:
    """Give dropped voxels the label of the nearest voxel of something else."""
    from scipy import ndimage

    found, _ = ndimage.label(drop, structure=np.ones((3, 3, 3), bool))
    view = labels[box]
    for part in ndimage.find_objects(found):
        wide = tuple(slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in part)
        gone = drop[wide]
        unsure = gone | np.isin(view[wide], values)
        if unsure.all():
            view[wide][gone] = 0
            continue
        nearest = ndimage.distance_transform_edt(unsure, return_distances=False, return_indices=True)
        view[wide][gone] = view[wide][tuple(nearest)][gone]


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    out = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(n for n in range(3) if n != axis)))
        if not len(filled):
            return None
        out.append(slice(max(0, int(filled[0]) - _MARGIN), int(filled[-1]) + 1 + _MARGIN))
    return out[0], out[1], out[2]
