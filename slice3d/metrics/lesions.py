"""Lesion-wise scores: every connected part of a mask counts as one lesion, whatever its size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slice3d.errors import InputError
from slice3d.metrics.overlap import as_masks
from slice3d.metrics.topology import neighbourhood


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise agreement; see `lesion_scores` for the definitions.

    matched: (prediction lesion, reference lesion, IoU, Dice) of every pair, lesions numbered from 1.
    """

    matched: tuple[tuple[int, int, float, float], ...]
    missed: int
    invented: int

    @property
    def detected(self) -> int:
        """Number of reference lesions that have a partner (true positives)."""
        return len(self.matched)

    @property
    def undefined(self) -> bool:
        """Whether neither mask has a lesion."""
        return not (self.matched or self.missed or self.invented)

    @property
    def f1(self) -> float:
        """Detection F1, 2·TP / (2·TP + FP + FN). 0…1, higher is better. Both empty: NaN. One empty: 0."""
        if self.undefined:
            return math.nan
        return 2 * self.detected / (2 * self.detected + self.invented + self.missed)

    @property
    def sensitivity(self) -> float:
        """Detected share of the reference lesions, TP / (TP + FN). Both empty: NaN. One empty: 0."""
        total = self.detected + self.missed
        return self.detected / total if total else (math.nan if self.undefined else 0.0)

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that exist, TP / (TP + FP). Both empty: NaN. One empty: 0."""
        total = self.detected + self.invented
        return self.detected / total if total else (math.nan if self.undefined else 0.0)

    @property
    def mean_dice(self) -> float:
        """Mean Dice per lesion, where every missed and every invented lesion counts as 0. Both empty: NaN."""
        total = self.detected + self.missed + self.invented
        return sum(pair[3] for pair in self.matched) / total if total else math.nan

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of the matched pairs (the SQ of panoptic quality); 0 without pairs, NaN for both empty."""
        if self.undefined:
            return math.nan
        return sum(pair[2] for pair in self.matched) / self.detected if self.detected else 0.0

    @property
    def panoptic_quality(self) -> float:
        """Panoptic quality, Σ IoU of the pairs / (TP + FP/2 + FN/2) = SQ · F1. Both empty: NaN. One empty: 0."""
        return math.nan if self.undefined else self.segmentation_quality * self.f1


def lesion_scores(
    prediction: ArrayLike, reference: ArrayLike, *, min_iou: float = 0.5, min_voxels: int = 1, connectivity: int = 26
) -> LesionScores:
    """Match the lesions of two masks one to one and score detection and overlap.

    Lesions are connected components (6, 18 or 26 neighbours) of at least `min_voxels` voxels. Matching rule: among all
    pairs with IoU > `min_iou`, the one-to-one assignment with the largest sum of IoU (Hungarian method). From 0.5 up a
    lesion has at most one possible partner and the rule is that of panoptic quality; 0 accepts any overlap.

    Units: none. Ranges: 0…1, higher is better. Both empty: NaN. One empty or no overlap: 0.
    References: Kirillov et al., Panoptic segmentation, CVPR 2019;
    Maier-Hein et al., Metrics reloaded, Nature Methods 21 (2024) 195–212. Raises `InputError` for bad settings.
    """
    if not 0 <= min_iou < 1:
        raise InputError(f"min_iou is {min_iou}; expected 0 or more and less than 1")
    if min_voxels < 1:
        raise InputError(f"min_voxels is {min_voxels}; expected at least 1")
    a, b = as_masks(prediction, reference)
    one, size_one = _label(a, min_voxels=min_voxels, connectivity=connectivity)
    other, size_other = _label(b, min_voxels=min_voxels, connectivity=connectivity)
    n, m = len(size_one), len(size_other)
    pairs = _assign(one, other, size_one, size_other, min_iou) if n and m else ()
    return LesionScores(pairs, missed=m - len(pairs), invented=n - len(pairs))


def _label(
    mask: NDArray[np.bool_], *, min_voxels: int = 1, connectivity: int = 26
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Connected components as labels 1…n, and their sizes in voxels; smaller ones are dropped."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, neighbourhood(connectivity))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    keep = sizes >= min_voxels
    if not keep.all():
        renumber = np.zeros(count + 1, np.int32)
        renumber[1:][keep] = np.arange(1, keep.sum() + 1)
        labels, sizes = renumber[labels], sizes[keep]
    return labels.astype(np.int32), sizes


def _assign(
    one: NDArray[np.int32],
    other: NDArray[np.int32],
    size_one: NDArray[np.int64],
    size_other: NDArray[np.int64],
    min_iou: float,
) -> tuple[tuple[int, int, float, float], ...]:
    from scipy import optimize

    both = (one > 0) & (other > 0)
    shared = np.zeros((len(size_one), len(size_other)))
    np.add.at(shared, (one[both] - 1, other[both] - 1), 1)
    total = size_one[:, None] + size_other[None, :]
    iou = shared / (total - shared)
    allowed = np.where(iou > min_iou, iou, 0.0)
    rows, columns = optimize.linear_sum_assignment(allowed, maximize=True)
    return tuple(
        (int(i) + 1, int(j) + 1, float(iou[i, j]), float(2 * shared[i, j] / total[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if allowed[i, j] > 0
    )
