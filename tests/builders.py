"""Phantoms and strategies that every test may use: oblique, anisotropic, asymmetric."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from slice3d.grid import Grid


def rotation(angles_deg: tuple[float, float, float]) -> NDArray[np.float64]:
    """Proper rotation from three Euler angles in degrees (x, then y, then z)."""
    a, b, c = np.deg2rad(angles_deg)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def oblique(
    spacing_mm: tuple[float, float, float] = (0.7, 1.3, 4.0),
    angles_deg: tuple[float, float, float] = (11.0, -23.0, 37.0),
    origin_mm: tuple[float, float, float] = (-41.0, 17.5, 203.0),
    *,
    left_handed: bool = False,
) -> NDArray[np.float64]:
    """An affine with every kind of awkwardness: rotated, anisotropic, off-centre, optionally mirrored."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles_deg) @ np.diag(spacing_mm)
    if left_handed:
        affine[:3, 0] *= -1
    affine[:3, 3] = origin_mm
    return affine


def oblique_grid(shape: tuple[int, int, int] = (5, 7, 11), *, left_handed: bool = False) -> Grid:
    """The fixture of the house: never a cube, never equal spacing."""
    return Grid(shape, oblique(left_handed=left_handed))


@st.composite
def grids(draw: st.DrawFn, max_size: int = 9) -> Grid:
    """Any sensible grid: oblique, anisotropic, left- or right-handed, axes in any order."""
    shape = draw(st.tuples(*[st.integers(1, max_size)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 8.0)] * 3))
    angles = draw(st.tuples(*[st.floats(-180.0, 180.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-500.0, 500.0)] * 3))
    order = draw(st.permutations([0, 1, 2]))
    affine = oblique(spacing, angles, origin, left_handed=draw(st.booleans()))
    affine[:3, :3] = affine[:3, :3][:, order]
    return Grid(shape, affine)
