"""The level of an implicit function at which its surface encloses a stated volume.

Shifting a mesh along its normals by more than hundredths of a voxel folds it where it bends; the level set of a function
has no folds, whatever the level.
"""

from __future__ import annotations

import numpy as np

from slice3d.surface.bending import Array
from slice3d.surface.contour import STEADY, Arrays, contour, keep_volume, snap
from slice3d.surface.implicit import Field, cut, keep_sides
from slice3d.surface.region import Region

_ROUNDS = 6
# in steps of the working grid: beyond this it is another function that is contoured
_FARTHEST = 1.0
# nearer than this, in steps, the volume is reached
_REACHED = 2e-4


def levelled(field: Field, region: Region, volume_mm3: float | None, *, hold: bool = False) -> tuple[Arrays, float]:
    """The surface of `field`, cut at the border, that encloses `volume_mm3` where one is given; and its shift in mm.

    hold: no voxel changes sides, so that the topology is that of the mask, even if the volume is then not reached.
    """
    arrays = _surface(field, region, 0.0, hold=hold)
    if volume_mm3 is None or not len(arrays[1]):
        return arrays, 0.0
    step_mm = float((np.asarray(region.grid.spacing_mm) / field.factors).min())
    border = region.border()
    # Where the function may be shifted freely its level does all; vertices that lie close together stay as they are.
    near = STEADY * step_mm if hold else 0.0
    enough = near or _REACHED * step_mm
    vertices, needed = keep_volume(*arrays, volume_mm3, border=border, most_mm=near)
    if abs(needed) <= enough:
        return (vertices, arrays[1]), needed
    slope = _slope(field.values, step_mm)
    # level → the shift that is still needed there, positive while the body is too small
    tried = {0.0: needed}
    best = arrays, 0.0
    for _ in range(_ROUNDS):
        level = _next(tried, slope)
        if level in tried or (abs(level) > _FARTHEST * step_mm * slope and not hold):
            break
        arrays = _surface(field, region, level, hold=hold)
        if not len(arrays[1]):
            tried[level] = step_mm
            continue
        vertices, rest = keep_volume(*arrays, volume_mm3, border=border, most_mm=near)
        if abs(rest) <= enough:
            return (vertices, arrays[1]), needed
        if abs(rest) < min(map(abs, tried.values())):
            best = arrays, needed - rest
        tried[level] = rest
    return best


def _surface(field: Field, region: Region, level: float, *, hold: bool) -> Arrays:
    values = field.values + np.float32(level)
    if hold:
        keep_sides(values, region.mask)
    # cut last: what was snapped unevenly would not meet the border halfway
    return contour(Field(cut(snap(values), region, field.factors), field.factors, None), region.grid)


def _slope(values: Array, step_mm: float) -> float:
    """About how much the function changes per mm where it changes sign."""
    jumps = []
    for axis in range(3):
        a = np.moveaxis(values, axis, 0)
        crossing = (a[1:] > 0) != (a[:-1] > 0)
        jumps.append(np.abs(a[1:][crossing] - a[:-1][crossing]))
    found = np.concatenate(jumps)
    return max(float(np.median(found)), 1e-6) / step_mm if len(found) else 1.0


def _next(tried: dict[float, float], slope: float) -> float:
    """A level to try: by the slope first, then by the false position or, where that gets stuck, the middle."""
    low = max((v for v, rest in tried.items() if rest > 0), default=None)
    high = min((v for v, rest in tried.items() if rest < 0), default=None)
    if low is not None and high is not None:
        a, b = tried[low], tried[high]
        part = a / (a - b)
        return low + (high - low) * (part if len(tried) < 5 else 0.5)
    at = low if low is not None else high
    if at is None:
        return 0.0
    # a little more, so that the next one is bracketed
    return at + 1.2 * tried[at] * slope
