"""Where the wanted structures are: found at low cost first, so that only their neighbourhood is worked out in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.inference.case import Axes, Case, permuted, permuted_floats
from slice3d.inference.census import Census
from slice3d.inference.networks import Networks, flips
from slice3d.inference.settings import InferenceSettings
from slice3d.inference.sweep import Sweep, planes
from slice3d.inference.tiles import tile_starts

Box = tuple[NDArray[Any], NDArray[Any]]

_LOCATE_FROM = 8  # network runs below which looking for the region first cannot pay
_LOCATE_SHARE = 0.4  # nor where the look costs more than this share of all
_MARGIN_MM = 15.0


def locate(networks: Networks, case: Case, channels: Sequence[int]) -> tuple[Box | None, Census | None]:
    """The box to refine, in network voxels along the case's order, and what lies where; (None, None): everything.

    One fold, no flips and tiles that do not overlap show where the structures of `channels` are for a fraction of the
    work. A margin is added, and `grown` checks afterwards that nothing was cut.
    """
    package = networks.package
    if not runs(networks, case.padded_shape, permuted(package.patch_size, case.order), channels, case.settings)[0]:
        return None, None
    census = Census(networks.channels_out, package.activation, threshold=package.threshold)
    sweep = Sweep(0.0, [()], networks.folds[:1])
    for _, averaged in planes(networks, case, sweep, np.zeros(3, int), np.array(case.shape)):
        scores = networks.scores(averaged)
        best = scores.argmax(-1).int().cpu().numpy() if package.activation == "softmax" else None
        census.take(scores, best, (0, 0))
    found = census.box(channels)
    if found is None:
        return None, census
    margin = np.ceil(_MARGIN_MM / np.array(permuted_floats(case.frame.spacing_mm, case.order))).astype(int)
    low = np.maximum(found[0] - np.maximum(margin, 2), 0)
    return (low, np.minimum(found[1] + np.maximum(margin, 2), case.shape)), census


def runs(
    networks: Networks, shape: Axes, patch: Axes, channels: Sequence[int], settings: InferenceSettings
) -> tuple[int, int]:
    """Network runs to look for the region first (0: that would not pay), and for all of an image of this shape."""
    sampling = networks.package.sampling
    overlap = sampling.overlap if settings.overlap is None else settings.overlap
    quick = len(tile_starts(shape, patch, 0.0, sampling.tiling))
    full = len(tile_starts(shape, patch, overlap, sampling.tiling)) * len(networks.folds)
    full *= len(flips(networks.package, settings))
    everything = len(channels) >= networks.channels_out - 1
    if settings.region == "whole" or everything or full < _LOCATE_FROM or quick > _LOCATE_SHARE * full:
        return 0, full
    return quick, full


def grown(box: Box, found: NDArray[np.int64] | None, shape: Axes) -> Box | None:
    """A larger box when what was found reaches a side of it that is not the image's own border, else None."""
    if found is None:
        return None
    low, high = box
    cut_low = (found[0] <= low) & (low > 0)
    cut_high = (found[1] >= high) & (high < np.array(shape))
    if not cut_low.any() and not cut_high.any():
        return None
    more = np.maximum(4, (high - low) // 2)
    return np.where(cut_low, np.maximum(low - more, 0), low), np.where(cut_high, np.minimum(high + more, shape), high)
