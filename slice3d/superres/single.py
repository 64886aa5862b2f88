"""One stack by its profile and a prior on the volume: total variation, alone or with a coordinate network."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid
from slice3d.progress import Progress, silent
from slice3d.superres.interpolate import bspline
from slice3d.superres.methods import Fitted, UpsampleSettings
from slice3d.superres.profile import SliceOperator
from slice3d.superres.scene import Separable, View
from slice3d.superres.variation import DARK, Term, VariationSettings, noise_of, reconstruct

# Rendering ten million voxels on two cores.
RENDER_MINUTES = 0.5


@dataclass(frozen=True)
class Variation:
    """The volume of least total variation whose averages over the profile are the slices."""

    name: str = "tv"
    learns: bool = False

    def fit(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        operator: SliceOperator,
        settings: UpsampleSettings,
        progress: Progress = silent,
    ) -> Fitted:
        """Nothing to learn; only the range of intensities is taken from (a, b, n) slices."""
        return _variation(slices, in_plane_mm, progress)


@dataclass(frozen=True, eq=False)
class _Variation:
    in_plane_mm: tuple[float, float]
    bounds: tuple[float, float]
    noise: float
    progress: Progress
    facts: dict[str, Any] = field(default_factory=dict)

    def estimate(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        return self._solve(slices, operator, self.in_plane_mm)

    def lines(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        return self._solve(slices, operator, (np.inf, max(self.in_plane_mm)))

    def _solve(
        self, slices: NDArray[np.float32], operator: SliceOperator, in_plane_mm: tuple[float, float]
    ) -> NDArray[np.float32]:
        low, size = self.bounds
        spacing = (*in_plane_mm, operator.step_mm)
        target = ((slices - low) / size).astype(np.float32)
        start = np.ascontiguousarray(target @ bspline(operator.slices_mm, operator.fine_mm).T.astype(np.float32))
        matrix = np.ascontiguousarray(operator.matrix, dtype=np.float32)
        weight = operator.slice_step_mm / operator.step_mm
        term = Term(Separable((None, None, matrix), (0, 1, 2)), target, None, weight, self.noise)
        # one stack leaves more to the prior than several do: more rounds
        image = reconstruct([term], start, spacing, settings=VariationSettings(rounds=8), progress=self.progress)
        image *= np.float32(size)
        image += np.float32(low)
        return image


def _variation(slices: NDArray[np.float32], in_plane_mm: tuple[float, float], progress: Progress) -> _Variation:
    low, size = bounds_of(slices)
    return _Variation(in_plane_mm, (low, size), noise_of(slices, low + DARK * size) / size, progress)


@dataclass(frozen=True)
class Implicit:
    """A coordinate network that starts from the volume of least total variation."""

    name: str = "implicit"
    learns: bool = True

    def fit(
        self,
        slices: NDArray[np.float32],
        in_plane_mm: tuple[float, float],
        operator: SliceOperator,
        settings: UpsampleSettings,
        progress: Progress = silent,
    ) -> Fitted:
        """Fit the network to these slices, within the time budget."""
        from slice3d.superres.implicit import FieldSettings, fit_field

        begin = time.perf_counter()
        bounds = bounds_of(slices)
        variation = _variation(slices, in_plane_mm, progress)
        start = (variation.estimate(slices, operator) - bounds[0]) / bounds[1]
        lattice = Grid.from_spacing(start.shape, (*in_plane_mm, operator.step_mm))
        view = View(slices, operator, lattice, np.zeros(3))
        left = network_minutes(settings, begin, start.size)
        strength = max(FieldSettings.strength, variation.noise)
        chosen = FieldSettings(minutes=left, steps=settings.steps, seed=settings.seed, strength=strength)
        field_, steps = fit_field([view], lattice, bounds, start, settings=chosen, progress=progress)
        image = field_.render(progress) * np.float32(bounds[1]) + np.float32(bounds[0])
        return _Rendered(image, variation, {"training_steps": steps})


@dataclass(frozen=True, eq=False)
class _Rendered:
    image: NDArray[np.float32]
    variation: _Variation
    facts: dict[str, Any]

    def estimate(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        return self.image

    def lines(self, slices: NDArray[np.float32], operator: SliceOperator) -> NDArray[np.float32]:
        # the network knows its own stack only; its prior, and by measurement its error, is total variation's
        return self.variation.lines(slices, operator)


def network_minutes(settings: UpsampleSettings, begin: float, voxels: int) -> float:
    """What is left for fitting a network since `begin`, after the time to render that many voxels."""
    left = settings.minutes - (time.perf_counter() - begin) / 60 - RENDER_MINUTES * voxels / 1e7
    return max(left, 0.2 * settings.minutes)


def bounds_of(slices: NDArray[np.float32]) -> tuple[float, float]:
    """The 0.1st percentile of the intensities and how far the 99.9th is above it."""
    low, high = np.percentile(slices[::2, ::2], [0.1, 99.9])
    return float(low), float(max(high - low, 1e-6))
