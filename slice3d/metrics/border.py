"""The surface of a binary mask as the metrics understand it, and exact distances to a triangle surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Smoothing without shrinking (Taubin, SIGGRAPH 1995): steps of these weights one after the other. Together they pass the
# spectrum of the umbrella operator as 18 pairs of 0.63 and −0.64 do, to 0.006, in a third of the steps: long waves stay
# (pass band 0.025), the staircase of the voxels goes. The pairs were chosen on spheres of 8 to 40 voxels and cubes
# together: more steps bring spheres nearer to the truth and bend faces of cubes.
_STEPS = (0.504, 0.526, -1.612, 0.568, 0.639, -1.612, 0.756, 1.041, -1.612, 1.116, 1.116, -1.612)
# In slices much thicker than the pixels a quadric can round an edge by half a slice and still separate every centre.
_EVEN = 2.5


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface to measure distances from and to.

    points: (N, 3) mm. polygons: (M, 3) triangles or (M, 4) quads, int32, neighbours in space near each other; a quad
    (a, b, c, d) is the triangles (a, b, c) and (a, c, d).
    """

    points: NDArray[Any]
    polygons: NDArray[np.int32]

    @classmethod
    def of(cls, points: NDArray[Any], polygons: NDArray[Any]) -> Surface:
        """From points and polygons; the surface has its own copy of the polygons, in order along a space-filling curve."""
        return cls.in_place(points, np.array(polygons, dtype=np.int32, order="C"))

    @classmethod
    def in_place(cls, points: NDArray[Any], polygons: NDArray[np.int32]) -> Surface:
        """The same with the very polygons."""
        from slice3d.metrics import _nearest

        if len(polygons):
            _nearest.permute(polygons, _order(_nearest.curve(points, polygons)))
        return cls(points, polygons)

    @property
    def areas_mm2(self) -> NDArray[np.float32]:
        """(N,) a third of the area of the triangles around each point."""
        from slice3d.metrics import _nearest

        return _nearest.vertex_areas(self.points, self.polygons)

    @property
    def faces(self) -> NDArray[np.int32]:
        """(M, 3) triangles."""
        if self.polygons.shape[1] == 3:
            return self.polygons
        return np.concatenate([self.polygons[:, [0, 1, 2]], self.polygons[:, [0, 2, 3]]])


def _order(key: NDArray[np.int32]) -> NDArray[np.int32]:
    key[:] = np.argsort(key)
    return key


def mask_surface(mask: NDArray[np.bool_], steps_mm: NDArray[np.float64], *, flat_axes: tuple[int, ...] = ()) -> Surface:
    """A smooth surface that separates exactly the voxel centres that a mask separates.

    mask: (i, j, k) bool. steps_mm: (3, 3), columns are the steps of one voxel along i, j, k in mm (may be oblique).
    flat_axes: axes along which the image is a single slice; the surface is then the contour, without the two caps.

    A vertex lies in every 2×2×2 cell of voxel centres that is neither full nor empty, quads join the four cells around
    every pair of neighbouring centres of which one is inside (surface nets). Vertices start at the mean of the crossed
    edges' midpoints, are smoothed without shrinking (Taubin, SIGGRAPH 1995) in index space, and never leave their cell,
    so that single voxels and thin sheets keep their surface. Then, in windows from the whole structure down to cubes of
    20 voxels (the geometric mean of the three steps), a plane or else a quadric is sought that separates all inside
    from all outside centres in the window. Where there is one, and it bends less than a voxel does, the mask leaves
    hardly another choice (a sphere of 10 voxels: two hundredths of a voxel), and the vertices move onto the analytic
    centre of all such quadrics, blended between windows; elsewhere (edges, corners, rough borders, fewer than 60
    crossed edges) they stay, up to half a voxel off, as they do in thick slices (steps that differ more than 2.5
    times). Points are relative to voxel (0, 0, 0). Outside the array counts as outside the structure.
    """
    return Surface.in_place(*bit_net(padded_bits((mask,), flat_axes), 0, steps_mm, flat_axes=flat_axes))


def padded_bits(masks: tuple[NDArray[np.bool_], ...], flat_axes: tuple[int, ...]) -> NDArray[np.uint8]:
    """Masks of one shape as the bits of one array, with a layer of outside all around (of more of the same if flat)."""
    shape = masks[0].shape
    out = np.zeros([n + 2 for n in shape], np.uint8)
    inner = out[1:-1, 1:-1, 1:-1]
    for bit, mask in enumerate(masks):
        inner |= mask.view(np.uint8) << np.uint8(bit) if bit else mask.view(np.uint8)
    for axis in flat_axes:
        line = np.moveaxis(out, axis, 0)
        line[0] = line[1]
        line[-1] = line[-2]
    return out


def bit_net(
    bits: NDArray[np.uint8], bit: int, steps_mm: NDArray[np.float64], *, flat_axes: tuple[int, ...] = ()
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Points and quads of `mask_surface`, from one bit of `padded_bits`."""
    from slice3d.metrics import _nearest, _nets, _windows

    vertices, edges = _nets.measure(bits, bit)
    if not vertices:
        return np.zeros((0, 3), np.float32), np.zeros((0, 4), np.int32)
    points = np.empty((vertices, 3), np.float32)
    link = np.empty((vertices, 2), np.int32)
    sides = np.empty(vertices, np.uint8)
    _nets.build(bits, bit, points, link, sides)
    for axis in flat_axes:
        sides &= np.uint8(255 - (3 << 2 * axis))
    total = np.empty_like(points)
    for weight in _STEPS:
        _nets.step(points, total, link, sides, weight)
    del total, link, sides
    cell, ends = np.empty((vertices, 3), np.int16), np.empty((edges, 4), np.int16)
    _nets.place(bits, bit, cell, ends)
    _nets.clamp(points, cell)
    fixed = np.isin(np.arange(3), flat_axes)
    length = np.linalg.norm(steps_mm, axis=0)[~fixed]
    if len(length) and length.max() <= _EVEN * length.min():
        # windows do not depend on how the patient lies in the world: the rotation is taken out of the steps
        turned = np.linalg.qr(steps_mm)[1]
        _windows.refine(points, cell, ends, turned, float(np.prod(length) ** (1 / len(length))), fixed)
    del ends, cell
    quads = np.empty((edges, 4), np.int32)
    _nets.join(bits, bit, quads)
    _nets.to_mm(points, np.ascontiguousarray(steps_mm, np.float64))
    _nearest.shorter_diagonals(points, quads)
    return points, quads


def distances_mm(points: NDArray[Any], surface: Surface) -> NDArray[Any]:
    """(N,) distances from points to the nearest point of any polygon of a surface, which must not be empty.

    Exact to single precision.
    """
    from slice3d.metrics import _nearest

    out = np.empty(len(points), np.float32)
    if len(points):
        order = _order(_nearest.curve(points, surface.polygons[:0]))
        tree = _nearest.build_tree(surface.points, surface.polygons)
        _nearest.query(points, order, surface.points, surface.polygons, tree, out)
    return out
