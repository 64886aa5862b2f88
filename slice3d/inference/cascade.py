"""A package for crops on a larger image: another package finds the region, this one draws what is in it.

Only where the image has the contrast that the package was trained on: a model that is shown what it does not know is as
sure of itself as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.findings import Finding
from slice3d.models.own_steps import Region
from slice3d.models.package import ModelPackage
from slice3d.volume import Segmentation, Volume, freeze

Array = NDArray[Any]
Box = tuple[slice, slice, slice]


def region_for(volume: Volume, package: ModelPackage) -> Region | None:
    """Where to look in an image that is larger than what the package knows; None where it is not, or none is known."""
    limit = package.reliability.get("largest_field_of_view_mm")
    return package.region if limit is not None and max(volume.grid.size_mm) > float(limit) else None


def in_region(
    volume: Volume, package: ModelPackage, region: Region, found: Segmentation, draw: Callable[[Volume], Segmentation]
) -> Segmentation:
    """What `draw` finds in crops around the structures of the region, on the whole image's grid.

    found: these structures, by the package that the region names. Raises `InputError` where there are none, or where the
    image's contrast is not what the package was trained on.
    """
    seen = [name for name in region.structures if found.mask(name).any()]
    boxes = [_box(found.mask(name), region, volume) for name in seen]
    if not boxes:
        raise InputError(
            f"{region.model} found no {' and no '.join(region.structures)} in this image, and model {package.name!r} knows "
            "crops alone; crop the image around the structure"
        )
    _check_contrast(region, package, found.metadata.get("grey_values", {}))
    crops = [_cropped(volume, box) for box in boxes]
    if any(region_for(crop, package) for crop in crops):
        raise InputError(
            f"what {region.model} takes for {' and '.join(region.structures)} is larger than model {package.name!r} knows; "
            "crop the image around the structure"
        )
    parts = [draw(crop) for crop in crops]
    text = (
        f"looked for in crops around {', '.join(seen)}, which {region.model} found: nothing outside them was looked at"
    )
    details = {
        "model": region.model, "version": found.metadata.get("model_version"), "sha256": found.metadata.get("model_sha256"),
        "boxes": [[[s.start, s.stop] for s in box] for box in boxes],
    }  # fmt: skip
    said = [
        replace(f, message=f"in the crop around {name}: {f.message}")
        for name, part in zip(seen, parts, strict=True)
        for f in part.findings
    ]
    absent = [name for name in region.structures if name not in seen]
    if absent:
        missing = f"{region.model} found no {' and no '.join(absent)}: what lies there is not in the result"
        said.append(Finding("region-not-found", missing, details={"structures": absent}))
    return Segmentation(
        freeze(_pasted([p.labels for p in parts], boxes, volume)), volume.grid, parts[0].names, groups=parts[0].groups,
        probabilities={
            n: freeze(_pasted([p.probabilities[n] for p in parts], boxes, volume)) for n in parts[0].probabilities
        },
        synthesised=volume.synthesised, uncertainty=volume.uncertainty,
        findings=(*said, Finding("found-by-another-model", text, "info", details)),
        metadata={**parts[0].metadata, "expected_dice": _least(parts), "found_by": region.model},
    )  # fmt: skip


def _check_contrast(region: Region, package: ModelPackage, greys: Mapping[str, Any]) -> None:
    if any(tissue not in greys for tissue in region.dark_to_bright):
        raise InputError(
            f"{region.model} sees too little here to tell the contrast, and model {package.name!r} knows one alone; "
            "crop the image around the structure"
        )
    means = [float(np.mean([mean for mean, _ in greys[tissue]])) for tissue in region.dark_to_bright]
    if not all(a < b for a, b in pairwise(means)):
        raise InputError(
            f"model {package.name!r} knows images in which, from dark to bright, {', '.join(region.dark_to_bright)} follow "
            f"each other, and here they do not; use such a series, or a model that knows this one"
        )


def _box(mask: Array, region: Region, volume: Volume) -> Box:
    """Voxels around the mask; an oblique axis takes the margin of the nearest of R, A and S."""
    world = np.abs(volume.grid.affine[:3, :3])
    sides = []
    for axis, (index, size, spacing) in enumerate(
        zip(np.nonzero(mask), mask.shape, volume.grid.spacing_mm, strict=True)
    ):
        margin = int(np.ceil(region.margin_mm[int(world[:, axis].argmax())] / spacing))
        sides.append(slice(max(0, int(index.min()) - margin), min(size, int(index.max()) + 1 + margin)))
    return sides[0], sides[1], sides[2]


def _cropped(volume: Volume, box: Box) -> Volume:
    grid = volume.grid.crop([s.start for s in box], [s.stop for s in box])
    return Volume(freeze(volume.data[box].copy()), grid, modality=volume.modality)


def _pasted(parts: Sequence[Array], boxes: Sequence[Box], volume: Volume) -> Array:
    """The largest value wins where crops overlap: something over nothing."""
    out = np.zeros(volume.grid.shape, parts[0].dtype)
    for part, box in zip(parts, boxes, strict=True):
        np.maximum(out[box], part, out=out[box])
    return out


def _least(parts: Sequence[Segmentation]) -> dict[str, float]:
    """The least expected Dice of each structure."""
    tables = [part.metadata.get("expected_dice", {}) for part in parts]
    return {name: min(t[name] for t in tables if name in t) for name in dict.fromkeys(n for t in tables for n in t)}
