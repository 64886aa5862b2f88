"""Solids given by equations: which part of a line along y lies inside, and hence exact volumes and partial volumes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = tuple[float, float, float]
Plane = tuple[float, float, float, float]
Array = NDArray[np.float64]

_INF = math.inf


class Chord(NamedTuple):
    """On the lines (x, ·, z): inside for lo ≤ y ≤ hi except hole_lo < y < hole_hi. Empty where lo > hi."""

    lo: Array
    hi: Array
    hole_lo: Array
    hole_hi: Array

    def length(self) -> Array:
        """Length of the inside part."""
        whole = np.maximum(self.hi - self.lo, 0.0)
        hole = np.minimum(self.hi, self.hole_hi) - np.maximum(self.lo, self.hole_lo)
        out: Array = np.where(whole > 0, whole - np.clip(hole, 0.0, whole), 0.0)
        return out


@dataclass(frozen=True)
class Solid:
    """((x-x0)/a)² + ((y-y0)/b)² + ((z-z0)/c)² ≤ 1, cut by half-spaces, less another solid. World RAS, mm.

    radii: (a, b, c); an infinite one makes an elliptical cylinder along that axis. planes: each (nx, ny, nz, d) keeps
    nx·x + ny·y + nz·z ≤ d. hole: a solid that is taken away, itself without a hole.
    """

    center: Vector
    radii: Vector
    planes: tuple[Plane, ...] = ()
    hole: Solid | None = None

    def between(self, axis: int, low: float, high: float) -> Solid:
        """The part with low ≤ coordinate ≤ high along axis 0 (x), 1 (y) or 2 (z)."""
        unit = [0.0, 0.0, 0.0]
        unit[axis] = 1.0
        below: Plane = (unit[0], unit[1], unit[2], high)
        above: Plane = (-unit[0], -unit[1], -unit[2], -low)
        return replace(self, planes=(*self.planes, below, above))

    def transformed(self, scale: ArrayLike, shift_mm: ArrayLike) -> Solid:
        """The solid after p → scale · p + shift, `scale` per axis and positive."""
        s = np.broadcast_to(np.asarray(scale, dtype=np.float64), (3,))
        t = np.asarray(shift_mm, dtype=np.float64)
        planes = []
        for *normal, d in self.planes:
            turned = np.asarray(normal) / s
            planes.append((*(float(v) for v in turned), float(d + turned @ t)))
        return Solid(
            center=_vector(s * self.center + t),
            radii=_vector(s * self.radii),
            planes=tuple(planes),  # type: ignore[arg-type]
            hole=self.hole.transformed(s, t) if self.hole else None,
        )

    def shrunk(self, amount_mm: float) -> Solid:
        """A solid about `amount_mm` below the surface (exact for planes and circles): marrow under its cortex."""
        planes = tuple((*n, d - amount_mm * math.hypot(*n)) for *n, d in self.planes)
        hole = self.hole.shrunk(-amount_mm) if self.hole else None
        return Solid(self.center, _vector(np.maximum(np.asarray(self.radii) - amount_mm, 1e-3)), planes, hole)  # type: ignore[arg-type]

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest corner of a box around the solid (tight along planes normal to an axis)."""
        low = np.asarray(self.center) - self.radii
        high = np.asarray(self.center) + self.radii
        for *normal, d in self.planes:
            used = np.flatnonzero(normal)
            if len(used) == 1:
                axis = int(used[0])
                if normal[axis] > 0:
                    high[axis] = min(high[axis], d / normal[axis])
                else:
                    low[axis] = max(low[axis], d / normal[axis])
        return low, high

    def chord(self, x: ArrayLike, z: ArrayLike) -> Chord:
        """Where the lines (x, ·, z) run inside; `x` and `z` broadcast against each other."""
        x, z = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(z, dtype=np.float64))
        lo, hi = self._interval(x, z)
        if self.hole is None:
            return Chord(lo, hi, np.full_like(lo, _INF), np.full_like(lo, -_INF))
        return Chord(lo, hi, *self.hole._interval(x, z))

    def _interval(self, x: Array, z: Array) -> tuple[Array, Array]:
        (x0, y0, z0), (a, b, c) = self.center, self.radii
        left = 1.0 - ((x - x0) / a) ** 2 - ((z - z0) / c) ** 2
        inside = left > 0
        # An infinite b makes a slab: inf · sqrt(positive) stays infinite, and planes cut it.
        half = np.where(inside, b, 0.0) if math.isinf(b) else b * np.sqrt(np.maximum(left, 0.0))
        lo, hi = y0 - half, y0 + half
        for nx, ny, nz, d in self.planes:
            rest = d - nx * x - nz * z
            if ny > 0:
                hi = np.minimum(hi, rest / ny)
            elif ny < 0:
                lo = np.maximum(lo, rest / ny)
            else:
                inside = inside & (rest >= 0)
        return np.where(inside, lo, _INF), np.where(inside, hi, -_INF)

    def contains(self, points_mm: ArrayLike) -> NDArray[np.bool_]:
        """(…, 3) world points → (…) whether they lie inside."""
        p = np.asarray(points_mm, dtype=np.float64)
        chord = self.chord(p[..., 0], p[..., 2])
        y = p[..., 1]
        out: NDArray[np.bool_] = (y >= chord.lo) & (y <= chord.hi) & ~((y > chord.hole_lo) & (y < chord.hole_hi))
        return out

    def volume_mm3(
        self, *, low: ArrayLike = (-_INF, -_INF, -_INF), high: ArrayLike = (_INF, _INF, _INF), steps: int = 600
    ) -> float:
        """Volume of the part inside the box `low`…`high`.

        Exact along y; midpoint rule with `steps`² lines per piece in x and z, the pieces ending where a plane normal to
        x or z cuts, so that the integrand is continuous in each.
        """
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        mine = self.bounds()
        start, stop = np.maximum(mine[0], low), np.minimum(mine[1], high)
        if (start >= stop).any():
            return 0.0
        clipped = self.between(1, float(low[1]), float(high[1])) if np.isfinite([low[1], high[1]]).all() else self
        cuts = [_cuts(self, axis, start[axis], stop[axis]) for axis in (0, 2)]
        total = 0.0
        for x_low, x_high in zip(cuts[0], cuts[0][1:], strict=False):
            x = _midpoints(x_low, x_high, steps)
            for z_low, z_high in zip(cuts[1], cuts[1][1:], strict=False):
                z = _midpoints(z_low, z_high, steps)
                mean = float(clipped.chord(x[:, None], z[None, :]).length().mean())
                total += mean * (x_high - x_low) * (z_high - z_low)
        return total


def _vector(values: ArrayLike) -> Vector:
    a, b, c = np.asarray(values, dtype=np.float64)
    return float(a), float(b), float(c)


def _midpoints(low: float, high: float, steps: int) -> Array:
    return np.asarray(low + (np.arange(steps) + 0.5) * ((high - low) / steps), dtype=np.float64)


def _cuts(solid: Solid, axis: int, low: float, high: float) -> list[float]:
    cuts = {low, high}
    for part in (solid, solid.hole):
        for *normal, d in part.planes if part else ():
            if np.flatnonzero(normal).tolist() == [axis] and low < d / normal[axis] < high:
                cuts.add(d / normal[axis])
    return sorted(cuts)
