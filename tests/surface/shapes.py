"""Analytic bodies: exact signed distance (or a projection onto the surface), volume, and how a scanner would sample them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slice3d.grid import Grid

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """inside(points) → bool; distance(points) → |distance to the surface| in mm, exact near it; half_mm: bounding half sizes."""

    name: str
    inside: Callable[[Points], NDArray[np.bool_]]
    distance: Callable[[Points], NDArray[np.float64]]
    half_mm: tuple[float, float, float]
    volume_mm3: float


def ellipsoid(a: float = 45.0, b: float = 32.0, c: float = 38.0) -> Shape:
    axes = np.array([a, b, c])

    def distance(p: Points) -> NDArray[np.float64]:
        # Newton on the Lagrange multiplier of the nearest point, Eberly's formulation.
        p = np.abs(p)
        t = np.full(len(p), -(axes.min() ** 2) * 0.0)
        for _ in range(60):
            q = axes * p / (t[:, None] + axes**2)
            f = (q**2).sum(1) - 1.0
            df = (-2.0 * q**2 / (t[:, None] + axes**2)).sum(1)
            t = np.maximum(t - f / df, -(axes.min() ** 2) + 1e-9)
        near = axes**2 * p / (t[:, None] + axes**2)
        return np.linalg.norm(p - near, axis=1)

    return Shape(
        "ellipsoid", lambda p: ((p / axes) ** 2).sum(-1) <= 1.0, distance, (a, b, c), 4 / 3 * np.pi * a * b * c
    )


def torus(big: float = 30.0, small: float = 11.0) -> Shape:
    def signed(p: Points) -> NDArray[np.float64]:
        return np.hypot(np.hypot(p[..., 0], p[..., 1]) - big, p[..., 2]) - small

    half = big + small
    return Shape(
        "torus",
        lambda p: signed(p) <= 0,
        lambda p: np.abs(signed(p)),
        (half, half, small),
        2 * np.pi**2 * big * small**2,
    )


def spheres(r1: float = 24.0, r2: float = 17.0) -> Shape:
    """Two spheres that touch in one point, along a skew direction so that no axis is favoured."""
    u = np.array([2.0, 1.0, 2.0]) / 3.0
    centre1, centre2 = -r1 * u, r2 * u

    def signed(p: Points) -> NDArray[np.float64]:
        return np.minimum(np.linalg.norm(p - centre1, axis=-1) - r1, np.linalg.norm(p - centre2, axis=-1) - r2)

    half = np.maximum(np.abs(centre1) + r1, np.abs(centre2) + r2)
    return Shape(
        "touching spheres",
        lambda p: signed(p) <= 0,
        lambda p: np.abs(signed(p)),
        tuple(half),
        4 / 3 * np.pi * (r1**3 + r2**3),
    )


def tube(r: float = 7.0) -> Shape:
    """A vessel that forks: a trunk and two branches, round ends; the volume comes from a fine count (1e-4)."""
    joint = np.array([0.0, 0.0, -4.0])
    parts = (
        (np.array([0.0, 3.0, -40.0]), joint, r),
        (joint, np.array([24.0, 6.0, 34.0]), 0.8 * r),
        (joint, np.array([-27.0, -8.0, 24.0]), 0.7 * r),
    )

    def signed(p: Points) -> NDArray[np.float64]:
        out = np.full(p.shape[:-1], np.inf)
        for start, end, radius in parts:
            axis = end - start
            t = np.clip(((p - start) @ axis) / (axis @ axis), 0, 1)
            out = np.minimum(out, np.linalg.norm(p - start - t[..., None] * axis, axis=-1) - radius)
        return out

    half = (36.0, 18.0, 50.0)
    h = 0.25
    axes = [np.arange(-n + h / 2, n, h) for n in half]
    count = 0.0
    for z in axes[2]:
        x, y = np.meshgrid(axes[0], axes[1], indexing="ij")
        s = signed(np.stack([x, y, np.full_like(x, z)], axis=-1))
        count += float(np.clip(0.5 - s / h, 0, 1).sum())
    return Shape("branching tube", lambda p: signed(p) <= 0, lambda p: np.abs(signed(p)), half, count * h**3)


def all_shapes() -> tuple[Shape, ...]:
    return ellipsoid(), torus(), spheres(), tube()


def sample(
    shape: Shape, spacing_mm: tuple[float, float, float], *, seed: int = 0, parts: int = 6, rotate: bool = False
) -> tuple[NDArray[np.float32], Grid]:
    """Fraction of each voxel inside the shape (exact to the sub-sampling), on a grid with a random sub-voxel offset.

    parts: sub-samples per axis for the finest axis; coarser axes get proportionally more, so that sub-voxels are even.
    """
    rng = np.random.default_rng(seed)
    spacing = np.asarray(spacing_mm)
    half = np.asarray(shape.half_mm)
    affine = np.diag([*spacing, 1.0])
    if rotate:
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        affine[:3, :3] = q * spacing
        half = np.abs(q).T @ half
    n = np.ceil(2 * half / spacing).astype(int) + 5
    centre_index = (n - 1) / 2 + rng.uniform(-0.5, 0.5, 3)
    affine[:3, 3] = -affine[:3, :3] @ centre_index
    grid = Grid(tuple(int(v) for v in n), affine)
    index = np.stack(np.meshgrid(*(np.arange(v) for v in n), indexing="ij"), axis=-1).reshape(-1, 3)
    corners = np.array([(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)] + [(0, 0, 0)])
    count = sum(shape.inside(grid.to_world(index + c)).astype(np.int8) for c in corners)
    # Voxels that lie wholly inside or outside by a margin need no sub-sampling.
    distance = shape.distance(grid.to_world(index))
    mixed = distance <= np.linalg.norm(spacing) / 2 * 1.05
    out = (count > 4).astype(np.float32)
    m = np.maximum(2, np.round(parts * spacing / spacing.min())).astype(int)
    m = np.minimum(m, 4 * parts)
    sub = np.stack(np.meshgrid(*((np.arange(v) + 0.5) / v - 0.5 for v in m), indexing="ij"), axis=-1).reshape(-1, 3)
    which = np.flatnonzero(mixed)
    for start in range(0, len(which), 4096):
        rows = which[start : start + 4096]
        points = grid.to_world((index[rows, None, :] + sub[None]).reshape(-1, 3))
        out[rows] = shape.inside(points).reshape(len(rows), -1).mean(1)
    return out.reshape(grid.shape), grid
