"""What the tissues of one image look like, estimated from that image, and what follows for every voxel.

The network says where a structure can lie; how bright its tissue is differs from sequence to sequence, but is alike all
over one image. Expectation maximisation fits a Gaussian (or several) of log grey values to every tissue, weighted by
the network's probabilities, together with a smooth shading of the image; Bayes' rule then puts borders where the grey
values change (Van Leemput et al. 1999, doi:10.1109/42.811270; Ashburner & Friston 2005,
doi:10.1016/j.neuroimage.2005.02.018; with label maps of any contrast as prior: Puonti et al. 2016,
doi:10.1016/j.neuroimage.2016.09.011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_DEGREE = 2  # of the polynomial that describes the shading
_ROUNDS = 20
_SHADE_FROM = 4  # rounds before shading is looked for: grey values must be about right first
_LEAST_SPREAD = 0.02  # of log grey values: about 2 %
_HELD = 20.0  # voxels' worth of evidence that holds a component where it was in the round before
_OUTLIER = 1e-9


@dataclass(frozen=True)
class Intensities:
    """Grey values of tissues in one image. Per component: tissue, mean and spread of log grey values, share of its tissue.

    shading: coefficients of the polynomial of `shading_terms` that is taken off the log grey values first.
    """

    tissue: Array
    mean: Array
    spread: Array
    share: Array
    shading: Array

    def log_likelihood(self, values: Array, terms: Array) -> Array:
        """(n, tissues) float32: how well log grey values (n,) fit each tissue. terms: (n, K) of `shading_terms`."""
        flat = values - terms @ self.shading
        each = _densities(flat, self)
        out = np.stack([each[self.tissue == t].sum(0) for t in range(int(self.tissue.max()) + 1)], axis=1)
        return np.log(out + _OUTLIER).astype(np.float32)


def log_grey(image: Array, low: float, high: float) -> Array:
    """Log grey values, on which shading adds up; low, high: grey values of about the darkest and brightest tissue."""
    scaled = (np.asarray(image, np.float32) - low) / max(high - low, 1e-6)
    out: Array = np.log(np.clip(scaled, 0, None) + 0.05)
    return out


def shading_terms(*places: Array) -> Array:
    """(n, K) polynomial terms of positions, each axis scaled to −1…1, without the constant one."""
    x, y, z = (np.asarray(p, np.float32) for p in places)
    powers = [(a, b, c) for a in range(_DEGREE + 1) for b in range(_DEGREE + 1 - a) for c in range(_DEGREE + 1 - a - b)]
    return np.stack([x**a * y**b * z**c for a, b, c in powers if a + b + c], axis=-1)


def fit(values: Array, prior: Array, components: Sequence[int], terms: Array) -> Intensities:
    """Expectation maximisation with the network's probabilities as prior.

    values: (n,) log grey values of voxels. prior: (n, tissues), the network's probability of each. components: Gaussians
    per tissue. terms: (n, K) of `shading_terms` there.
    """
    values, prior = values.astype(np.float64), prior.astype(np.float64)
    tissue = np.repeat(np.arange(len(components)), components)
    found = _begin(values, prior, tissue, np.zeros(terms.shape[1]))
    for turn in range(_ROUNDS):
        flat = values - terms @ found.shading
        belongs = _densities(flat, found) * prior.T[tissue] + _OUTLIER
        belongs /= belongs.sum(0)
        found = _moments(flat, belongs, found)
        if turn >= _SHADE_FROM:
            found = _shaded(values, belongs, found, terms)
    return found


def _begin(values: Array, prior: Array, tissue: Array, shading: Array) -> Intensities:
    """Quantiles of the grey values where the network is sure of a tissue."""
    order = np.argsort(values)
    mean, spread, share = np.zeros(len(tissue)), np.ones(len(tissue)), np.ones(len(tissue))
    for number in range(prior.shape[1]):
        mine = np.flatnonzero(tissue == number)
        sure = prior[:, number] ** 2 + 1e-12
        rising = np.cumsum(sure[order]) / sure.sum()
        at = np.searchsorted(rising, (np.arange(len(mine)) + 0.5) / len(mine)).clip(max=len(values) - 1)
        middle = sure @ values / sure.sum()
        mean[mine], share[mine] = values[order][at], 1 / len(mine)
        spread[mine] = max(_LEAST_SPREAD, np.sqrt(sure @ (values - middle) ** 2 / sure.sum()) / len(mine))
    return Intensities(tissue, mean, spread, share, shading)


def _densities(flat: Array, found: Intensities) -> Array:
    """(components, n): share × Gaussian density."""
    away = (flat[None] - found.mean[:, None]) / found.spread[:, None]
    out: Array = np.exp(-0.5 * away**2) * (found.share / found.spread)[:, None]
    return out


def _moments(flat: Array, belongs: Array, found: Intensities) -> Intensities:
    count = belongs.sum(1)
    mean = (belongs @ flat + _HELD * found.mean) / (count + _HELD)
    squares = belongs @ flat**2 - 2 * mean * (belongs @ flat) + mean**2 * count
    spread = np.sqrt((squares.clip(min=0) + _HELD * found.spread**2) / (count + _HELD)).clip(min=_LEAST_SPREAD)
    whole = np.bincount(found.tissue, count + 1e-3)
    return Intensities(found.tissue, mean, spread, (count + 1e-3) / whole[found.tissue], found.shading)


def _shaded(values: Array, belongs: Array, found: Intensities, terms: Array) -> Intensities:
    """Shading by weighted least squares over all tissues but the first, whose mixture explains anything."""
    inside = found.tissue > 0
    weight = belongs[inside] / found.spread[inside, None] ** 2
    precision = weight.sum(0)
    expected = found.mean[inside] @ weight / precision
    weighted = terms * precision[:, None]
    ridge = 1e-3 * precision.sum() * np.eye(terms.shape[1])
    shading = np.linalg.solve(terms.T @ weighted + ridge, weighted.T @ (values - expected))
    return Intensities(found.tissue, found.mean, found.spread, found.share, shading)
