"""The volume of least total variation through which every stack sees what it measured.

Minimised is the mean over stacks of |A x − y|² plus `strength` times the total variation of x, rounded below steps of
`rounding` (lagged diffusivity, Vogel and Oman 1996): a few rounds of conjugate gradients, each with the edges of the
last one's image. Intensities are in units of their own range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slice3d.progress import Progress, silent
from slice3d.superres.scene import Image, Projector, in_parts


@dataclass(frozen=True)
class VariationSettings:
    """strength: of the total variation against the data. rounding: steps below this share of the intensity range are
    smoothed quadratically instead. rounds: of edge weights; steps: of conjugate gradients in each."""

    strength: float = 3e-3
    rounding: float = 0.01
    rounds: int = 6
    steps: int = 8


@dataclass(frozen=True, eq=False)
class Term:
    """What one stack asks of the volume: that `projector` sees `target` (in units of the range) where `mask` is true."""

    projector: Projector
    target: Image
    mask: NDArray[np.bool_] | None
    weight: float

    def pull(self, image: Image) -> Image:
        """Minus the gradient of half the weighted misfit."""
        return self._back(self.target - self.projector.forward(image))

    def curvature(self, direction: Image) -> Image:
        """The second derivative of half the weighted misfit, applied to `direction`."""
        return self._back(self.projector.forward(direction))

    def _back(self, slices: Image) -> Image:
        if self.mask is not None:
            slices = slices * self.mask
        out: Image = self.projector.adjoint(slices * np.float32(self.weight))
        return out


def reconstruct(
    terms: Sequence[Term],
    start: Image,
    spacing_mm: Sequence[float],
    *,
    settings: VariationSettings | None = None,
    progress: Progress = silent,
) -> Image:
    """(i, j, k) the volume, from `start`. spacing_mm: of the lattice; infinity leaves an axis without a prior."""
    settings = settings or VariationSettings()
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    scale = (spacing[np.isfinite(spacing)].mean() / spacing).astype(np.float32)
    image = start
    for n in range(settings.rounds):
        weight = _weights(image, scale, settings.rounding)
        weight *= np.float32(settings.strength)
        image = descend(terms, image, scale, weight, settings.steps)
        progress("reconstruction", (n + 1) / settings.rounds)
    return image


def agree(terms: Sequence[Term], start: Image, *, steps: int = 6, damping: float = 1e-3) -> Image:
    """The volume near `start` that agrees with every stack: conjugate gradients on the smallest smooth change."""
    weight = np.full(start.shape, damping, dtype=np.float32)
    change = descend(
        [Term(t.projector, t.target - t.projector.forward(start), t.mask, t.weight) for t in terms],
        np.zeros_like(start),
        np.ones(3, np.float32),
        weight,
        steps,
    )
    return start + change


def descend(terms: Sequence[Term], start: Image, scale: Image, weight: Image, steps: int) -> Image:
    """Conjugate gradients on the quadratic: terms plus `weight` · |gradient|²."""
    x = start.copy()
    r = -_prior(x, weight, scale)
    for term in terms:
        r += term.pull(x)
    p = r.copy()
    energy = _dot(r, r)
    for _ in range(steps):
        if energy <= 1e-14 * x.size:
            break
        q = _prior(p, weight, scale)
        for term in terms:
            q += term.curvature(p)
        alpha = np.float32(energy / max(_dot(p, q), 1e-30))
        x += alpha * p
        r -= alpha * q
        fresh = _dot(r, r)
        p *= np.float32(fresh / energy)
        p += r
        energy = fresh
    return x


def _weights(image: Image, scale: Image, rounding: float) -> Image:
    from slice3d.superres._variation import edge_weights

    out = np.empty_like(image)
    in_parts(lambda first, last, _: edge_weights(image, scale, rounding, out, first, last), image.shape[0])
    return out


def _prior(image: Image, weight: Image, scale: Image) -> Image:
    from slice3d.superres._variation import laplacian

    out = np.empty_like(image)
    in_parts(lambda first, last, _: laplacian(image, weight, scale, out, first, last), image.shape[0])
    return out


def _dot(a: Image, b: Image) -> float:
    # plane by plane: one float32 sum over millions of voxels loses what the search direction needs
    return float(sum(float(np.dot(u.ravel(), v.ravel())) for u, v in zip(a, b, strict=True)))
