"""Removing what cannot belong to an organ: second components of single organs, and crumbs.

A single organ (anatomy kind `organ`, and `body`) keeps its largest component. Everything else keeps components of at
least `_FRAGMENT_SHARE` of its largest one, vessels of `_VESSEL_SHARE` (a field of view may cut an aorta in two, its smaller
part is more than a bright speck in the heart); bones keep everything from `_BONE_ML` on too (beside a whole trunk's skeleton
a rib may be less than that share), lesions everything above `_CRUMB_ML`. Pairs and families are cleaned one by one. What is
too thin for a structure whose least thickness is known goes too where it hangs on its side: the arteries that leave an aorta.
A component that is removed takes the label of the nearest voxel that stays, so that nothing tears holes into an enclosing
structure; what was too thin becomes body. What is dropped is reported when it is larger than `_REPORT_SHARE` of what stays.
Holes of less than `_CRUMB_ML` in an organ or vessel are filled where they hold nothing or body: a network does not tell that
little apart, and each would be a void in a mesh and in a print.

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
_VESSEL_SHARE = 0.05
_CRUMB_ML = 0.03
_BONE_ML = 5.0
_REPORT_SHARE = 0.02
_MARGIN = 2
_SLAB = 64


def clean(result: Segmentation, wanted: Sequence[str]) -> Segmentation:
    """The segmentation without stray components of the wanted structures, and findings about what was dropped."""
    labels = np.array(result.labels)
    findings: list[Finding] = []
    voxel_ml = result.grid.voxel_volume_mm3 / 1000.0
    body = next((value for value, other in result.names.items() if other == "body"), 0)
    structures = list(dict.fromkeys(part for one in wanted for part in _parts(result, one)))
    for name in structures:
        values = result.values(name)
        dropped = [_clean_one(labels, values, name, voxel_ml)]
        known = anatomy.STRUCTURES.get(name)
        if known and known.thinnest_mm:
            thin, kept = _drop_branches(labels, values, known.thinnest_mm, result.grid.spacing_mm, body)
            if thin:
                # what hung on a branch hangs on nothing now
                dropped.append(_clean_one(labels, values, name, voxel_ml))
            if thin > _REPORT_SHARE * kept:
                dropped.append(_branches_dropped(name, thin * voxel_ml, known.thinnest_mm))
        findings += [finding for finding in dropped if finding is not None]
    for name in structures:
        known = anatomy.STRUCTURES.get(name)
        if known and known.kind in ("organ", "vessel"):
            _fill_crumbs(labels, result.values(name), (0, body), voxel_ml)
    return replace(result, labels=freeze(labels), findings=(*result.findings, *findings))


def _parts(result: Segmentation, name: str) -> tuple[str, ...]:
    """The structures of a pair or a family, each of which is cleaned by itself, or the structure."""
    members = anatomy.GROUPS[name].members if name in anatomy.GROUPS else ()
    known = set(result.names.values())
    return members if members and set(members) <= known else (name,)


def drop_detached(labels: NDArray[Any], values: Sequence[int]) -> None:
    """Take labels off, in place, where they lie in small pieces that do not touch the body.

    labels: everything that belongs to a body, non-zero. values: labels that such pieces lose. A couch's rails and cables
    are as bright as bone and as a vessel with contrast medium; an arm beside the trunk is far more than a hundredth of it.
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


def _fill_crumbs(labels: NDArray[Any], values: Sequence[int], empty: Sequence[int], voxel_ml: float) -> None:
    """Fill holes smaller than a crumb, and with nothing but labels of `empty` in them, with the nearest of its labels, in place."""
    from scipy import ndimage

    mask = labels == values[0] if len(values) == 1 else np.isin(labels, values)
    box = _bounding_box(mask)
    if box is None:
        return
    mask = mask[box]
    holes, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask, structure=np.ones((3, 3, 3), bool))
    if not count:
        return
    small = np.bincount(holes.ravel()) * voxel_ml < _CRUMB_ML
    view = labels[box]
    small[np.unique(holes[~np.isin(view, empty)])] = False
    small[0] = False
    parts = ndimage.find_objects(holes)
    for number in np.flatnonzero(small):
        part = parts[number - 1]
        wide = tuple(slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in part)
        hole = holes[wide] == number
        nearest = ndimage.distance_transform_edt(~mask[wide], return_distances=False, return_indices=True)
        view[wide][hole] = view[wide][tuple(nearest)][hole]


def _branches_dropped(name: str, lost_ml: float, thinnest_mm: float) -> Finding:
    text = (
        f"{name}: {lost_ml:.1f} ml of side branches thinner than about {thinnest_mm:g} mm were taken off, as a rule the "
        "arteries that leave it: look whether anything that belongs to it is missing"
    )
    details = {"structure": name, "dropped_ml": round(lost_ml, 2), "thinnest_mm": thinnest_mm}
    return Finding("thin-parts-dropped", text, severity="info", details=details)


def _drop_branches(
    labels: NDArray[Any], values: Sequence[int], thinnest_mm: float, spacing_mm: tuple[float, float, float], body: int
) -> tuple[int, int]:
    """Make thin parts that hang on the side of a tube `body`, in place: how many voxels went, how many stay.

    Thin is what an opening with a ball of half of `thinnest_mm` takes away. A thin part that joins two thick ones, or goes
    on where a thick one ends, is the tube itself: a narrowing, a child's aorta.
    """
    from scipy import ndimage

    mask = labels == values[0] if len(values) == 1 else np.isin(labels, values)
    box = _bounding_box(mask)
    if box is None:
        return 0, 0
    inside = mask[box]
    at_border = [(s.start == 0, s.stop >= n) for s, n in zip(box, labels.shape, strict=True)]
    thick = _opened(inside, thinnest_mm / 2, spacing_mm, at_border)
    everywhere = np.ones((3, 3, 3), bool)
    thin, _ = ndimage.label(inside & ~thick, structure=everywhere)
    cores, _ = ndimage.label(thick, structure=everywhere)
    lost = 0
    for number, part in enumerate(ndimage.find_objects(thin), start=1):
        reach = tuple(
            slice(max(0, s.start - int(3 * thinnest_mm / h) - 1), s.stop + int(3 * thinnest_mm / h) + 1)
            for s, h in zip(part, spacing_mm, strict=True)
        )
        here = thin[reach] == number
        contact = cores[reach] * ndimage.binary_dilation(here, structure=everywhere)
        touched = np.unique(contact[contact > 0])
        away = ndimage.distance_transform_edt(cores[reach] == 0, sampling=spacing_mm)[here].max()
        # the sides of a flattened aorta stay: they lie along it, and no artery is that short
        if (
            len(touched) == 1
            and away > thinnest_mm / 2
            and _on_its_side(contact > 0, cores[reach] == touched[0], spacing_mm, 3 * thinnest_mm)
        ):
            labels[box][reach][here] = body
            lost += int(np.count_nonzero(here))
    return lost, int(np.count_nonzero(inside)) - lost


def _opened(
    mask: NDArray[np.bool_],
    radius: float,
    spacing_mm: tuple[float, float, float],
    at_border: Sequence[tuple[bool, bool]],
) -> NDArray[np.bool_]:
    """What a ball fits into. At the image's border the mask is taken to go on. Slab by slab, to spare memory."""
    from scipy import ndimage

    # distances are between voxel centres; the surface lies half a voxel nearer
    least = radius - 0.5 * float(np.prod(spacing_mm)) ** (1 / 3)
    reach = [int(np.ceil(radius / s)) + 1 for s in spacing_mm]
    beyond = [[r if edge else 0 for edge in edges] for r, edges in zip(reach, at_border, strict=True)]
    wide = np.pad(mask, beyond, mode="edge")
    out = np.zeros(wide.shape, bool)
    halo, depth = 2 * reach[2], wide.shape[2]
    for start in range(0, depth, _SLAB):
        low, high = max(0, start - halo), min(depth, start + _SLAB + halo)
        slab = wide[:, :, low:high]
        core = ndimage.distance_transform_edt(slab, sampling=spacing_mm) > least
        if core.any():
            near = ndimage.distance_transform_edt(~core, sampling=spacing_mm) <= radius + 0.5 * max(spacing_mm)
            out[:, :, start : start + _SLAB] = near[:, :, start - low : start - low + _SLAB]
    inner = tuple(slice(a, n - b) for (a, b), n in zip(beyond, wide.shape, strict=True))
    return out[inner] & mask


def _on_its_side(
    contact: NDArray[np.bool_], core: NDArray[np.bool_], spacing_mm: tuple[float, float, float], around_mm: float
) -> bool:
    """Whether a tube goes on in both directions past the middle of the contact, by a quarter of `around_mm` at least."""
    middle = np.argwhere(contact).mean(axis=0) * spacing_mm
    points = np.argwhere(core) * np.asarray(spacing_mm) - middle
    points = points[np.linalg.norm(points, axis=1) < around_mm]
    if len(points) < 4:
        return False
    _, _, axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    along = points @ axes[0]
    low, high = np.percentile(along, [5, 95])
    return bool(min(-low, high) > 0.25 * around_mm)


def _to_drop(sizes: NDArray[np.int64], name: str, voxel_ml: float) -> NDArray[np.bool_]:
    """Which components go; index 0 is the background and never does."""
    known = anatomy.STRUCTURES.get(name)
    kind: str = known.kind if known else ("lesion" if "tumor" in name or "lesion" in name else "")
    if name in anatomy.GROUPS:
        kind = ""
    if kind in ("organ", "body"):
        drop = np.ones(len(sizes), bool)
        drop[int(np.argmax(sizes))] = False
    elif kind == "lesion":
        drop = sizes * voxel_ml < _CRUMB_ML
    elif kind == "vessel":
        drop = sizes < _VESSEL_SHARE * sizes.max()
    elif kind == "bone":
        drop = sizes < min(_FRAGMENT_SHARE * sizes.max(), _BONE_ML / voxel_ml)
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
