"""The volume of least total variation through which every stack sees what it measured.

Minimised is the mean over stacks of |A x − y|² plus `strength` times the total variation of x, rounded below steps of
`rounding` (lagged diffusivity, Vogel and Oman 1996): a few rounds of conjugate gradients, each with the edges of the
last one's image. Intensities are in units of their own range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slice3d.progress import Progress, silent
from slice3d.superres.scene import Image, Projector, in_parts

# Share of the intensity range below which voxels are air, whose noise says nothing.
DARK = 0.1


@dataclass(frozen=True)
class VariationSettings:
    """strength: of the total variation against the data; least, where the noise asks for more. rounding: steps below this share of the intensity range are
    smoothed quadratically instead. rounds: of edge weights; steps: of conjugate gradients in each."""

    strength: float = 3e-3
    rounding: float = 0.01
    rounds: int = 6
    steps: int = 8


@dataclass(frozen=True, eq=False)
class Term:
    """What one stack asks of the volume: that `projector` sees `target` (in units of the range) where `mask` is true.

    noise: standard deviation of the target's."""

    projector: Projector
    target: Image
    mask: NDArray[np.bool_] | None
    weight: float
    noise: float = 0.0

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


def strength_for(terms: Sequence[Term], least: float = VariationSettings.strength) -> float:
    """The strength of the prior: the noise of the slices, which was best for 1 to 6 % of it (CT and MR), and `least`
    where there is hardly any."""
    return max(least, float(np.mean([term.noise for term in terms])))


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
        weight *= np.float32(strength_for(terms, settings.strength))
        image = descend(terms, image, scale, weight, settings.steps)
        progress("reconstruction", (n + 1) / settings.rounds)
    return image


def agree(terms: Sequence[Term], start: Image, *, steps: int = 6, damping: float = 1e-3) -> Image:
    """The volume near `start` that agrees with every stack to its noise: the smallest smooth change that removes what
    differs by more, by conjugate gradients."""
    weight = np.full(start.shape, damping, dtype=np.float32)
    left = [replace(term, target=_beyond_noise(term, start)) for term in terms]
    return start + descend(left, np.zeros_like(start), np.ones(3, np.float32), weight, steps)


def _beyond_noise(term: Term, image: Image) -> Image:
    """(a, b, n) what `image` leaves unexplained, less the share of its local power that noise explains (Wiener)."""
    from scipy import ndimage

    difference: Image = term.target - term.projector.forward(image)
    if term.noise <= 0:
        return difference
    power = ndimage.uniform_filter(np.square(difference), (5, 5, 1), mode="nearest")
    out: Image = difference * np.clip(1 - term.noise**2 / np.maximum(power, 1e-20), 0, 1).astype(np.float32)
    return out


def noise_of(slices: Image, low: float) -> float:
    """Standard deviation of white noise in (a, b, n) slices: the median of a filter that is blind to whatever changes
    linearly along an in-plane axis (Immerkær 1996), where they are brighter than `low`. 0 when there is no such place."""
    if min(slices.shape[:2]) < 3:
        return 0.0
    rows = slices[:-2] - 2 * slices[1:-1] + slices[2:]
    found = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]) / 6
    shown = found[slices[1:-1, 1:-1] > low]
    return float(np.median(shown)) / 0.6745 if shown.size else 0.0


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
