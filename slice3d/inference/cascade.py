"""Structures drawn again by a package that knows them better, in a crop around where this one found them.

Only where the image has the contrast that the other package was trained on, and only where both agree roughly: a model
that is shown what it does not know is as sure of itself as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import Slice3DError
from slice3d.findings import Finding
from slice3d.models.own_steps import Refinement
from slice3d.volume import Segmentation, Volume, freeze

Array = NDArray[Any]
Predict = Callable[[str, Volume, str], Segmentation]
"""(model, image, structure) → that structure in the image."""

_AGREEMENT = 0.4  # Dice of both drawings below which the other model has found something else


def refined(
    result: Segmentation, volume: Volume, steps: Sequence[Refinement], greys: Mapping[str, Any], predict: Predict
) -> Segmentation:
    """The result with structures drawn again where that can be trusted, and a finding for each of them.

    greys: tissue → [[mean, spread], …] of log grey values, as `by_intensity` finds them.
    """
    names = {name: value for value, name in result.names.items()}
    labels = np.array(result.labels)
    findings: list[Finding] = []
    by_other: dict[str, str] = {}
    for step in steps:
        value = names.get(step.structure)
        if value is None or not (labels == value).any():
            continue
        reason = _asked_for(step.structure, value, result) or _contrast(step, greys)
        if reason is None:
            box = _box(labels == value, step.margin_mm, result)
            reason = _redraw(labels, value, box, step, volume, predict)
        details = {"structure": step.structure, "model": step.model}
        if reason is None:
            by_other[step.structure] = step.model
            text = f"{step.structure} was found by one model and drawn by {step.model} in a crop around it"
            findings.append(Finding("drawn-by-another-model", text, "info", details))
        else:
            text = f"{step.structure} was not drawn again by {step.model}: {reason}"
            findings.append(Finding("not-drawn-again", text, "info", details))
    if not findings:
        return result
    metadata = {**result.metadata, **({"drawn_by": by_other} if by_other else {})}
    return replace(result, labels=freeze(labels), findings=(*result.findings, *findings), metadata=metadata)


def _asked_for(structure: str, value: int, result: Segmentation) -> str | None:
    """A probability that was asked for is this model's: labels that do not follow from it would contradict it."""
    if any(name == structure or value in result.values(name) for name in result.probabilities):
        return "its probability was asked for"
    return None


def _contrast(step: Refinement, greys: Mapping[str, Any]) -> str | None:
    if not step.dark_to_bright:
        return None
    if any(tissue not in greys for tissue in step.dark_to_bright):
        return "the image's contrast is not known"
    means = [float(np.mean([mean for mean, _ in greys[tissue]])) for tissue in step.dark_to_bright]
    if all(a < b for a, b in pairwise(means)):
        return None
    return f"it knows images in which, from dark to bright, {', '.join(step.dark_to_bright)} follow each other"


def _box(mask: Array, margin_mm: Sequence[float], result: Segmentation) -> tuple[slice, slice, slice]:
    """Study voxels around the mask. margin_mm: along R, A, S; an oblique axis takes that of the nearest of them."""
    found = np.nonzero(mask)
    world = np.abs(result.grid.affine[:3, :3])
    sides = []
    for axis, (index, size, spacing) in enumerate(zip(found, mask.shape, result.grid.spacing_mm, strict=True)):
        margin = int(np.ceil(margin_mm[int(world[:, axis].argmax())] / spacing))
        sides.append(slice(max(0, int(index.min()) - margin), min(size, int(index.max()) + 1 + margin)))
    return sides[0], sides[1], sides[2]


def _redraw(
    labels: Array, value: int, box: tuple[slice, slice, slice], step: Refinement, volume: Volume, predict: Predict
) -> str | None:
    """Change `labels` in the box; or say why not."""
    from scipy import ndimage

    grid = volume.grid.crop([s.start for s in box], [s.stop for s in box])
    try:
        drawn = predict(step.model, Volume(freeze(volume.data[box].copy()), grid, modality=volume.modality), step.finds)
    except Slice3DError as error:
        return str(error)
    part = labels[box]
    old, new = part == value, drawn.mask(step.finds)
    both = np.count_nonzero(old) + np.count_nonzero(new)
    agreement = 2 * np.count_nonzero(old & new) / both
    if agreement < _AGREEMENT:
        return f"the two models agree by a Dice of {agreement:.2f} only"
    gone = old & ~new
    if gone.any():  # what borders on a structure reaches as far as the structure did not
        nearest = ndimage.distance_transform_edt(
            old, sampling=volume.grid.spacing_mm, return_distances=False, return_indices=True
        )
        part[gone] = part[tuple(nearest)][gone]
    part[new] = value
    return None
