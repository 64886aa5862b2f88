"""One picture of several surfaces, drawn in memory.

A small z-buffer on numpy instead of VTK: on a machine without EGL or OSMesa, such as a slim container, VTK 9.7 does not
raise an error when it draws off screen, it ends the process, and a picture is not worth losing a result for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.mesh import Mesh
from slice3d.viewer.colors import fractions, structure_color

Floats = NDArray[np.float32]

# Towards the viewer: from the patient's front, slightly from the right and above.
FRONT = (0.28, 1.0, 0.2)
_SUPERSAMPLING = 2
_FAINTEST = 0.1
_LEVEL = 1.25
_MOST_POINTS = 4_000_000


class SurfacePicture(NamedTuple):
    """pixels: (rows, columns, 3) uint8. pixel_mm: size of a pixel (parallel projection, the same everywhere)."""

    pixels: NDArray[np.uint8]
    pixel_mm: float


class _Layer(NamedTuple):
    depth: Floats
    rgb: Floats
    opacity: float
    solid_alone: bool


def draw_surfaces(
    meshes: Sequence[Mesh],
    *,
    size: tuple[int, int],
    background: tuple[int, int, int] = (16, 20, 24),
    towards_viewer: tuple[float, float, float] = FRONT,
) -> SurfacePicture | None:
    """Draw meshes in parallel projection with superior upwards; None when there is no triangle to draw.

    size: (columns, rows) of the picture. Structures that hold others are drawn translucent (`opacities`).
    """
    shown = [mesh for mesh in meshes if len(mesh.faces)]
    if not shown:
        return None
    columns, rows = (n * _SUPERSAMPLING for n in size)
    camera = _camera(towards_viewer)
    seen = [mesh.vertices @ camera.T for mesh in shown]
    low, high = (f([f(p[:, :2], axis=0) for p in seen], axis=0) for f in (np.min, np.max))
    scale = 0.94 * min(columns / max(high[0] - low[0], 1e-6), rows / max(high[1] - low[1], 1e-6))
    middle = (low + high) / 2
    solid = opacities([mesh.name for mesh in shown])
    layers = []
    for mesh, points in zip(shown, seen, strict=True):
        points[:, 0] = (points[:, 0] - middle[0]) * scale + columns / 2
        points[:, 1] = rows / 2 - (points[:, 1] - middle[1]) * scale
        layers.append(_layer(mesh, points, camera, (rows, columns), solid[mesh.name]))
    flat = _composite(layers, np.asarray(background, dtype=np.float32) / np.float32(255))
    small = flat.reshape(size[1], _SUPERSAMPLING, size[0], _SUPERSAMPLING, 3).mean(axis=(1, 3))
    return SurfacePicture(np.rint(small * 255).astype(np.uint8), float(_SUPERSAMPLING / scale))


def draw_colored(
    mesh: Mesh, rgb: NDArray[np.float64], *, size: tuple[int, int], towards_viewer: tuple[float, float, float] = FRONT
) -> SurfacePicture:
    """Draw one mesh on white with a colour per vertex: `rgb` is (N, 3) in 0…1."""
    columns, rows = (n * _SUPERSAMPLING for n in size)
    camera = _camera(towards_viewer)
    points = mesh.vertices @ camera.T
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 0.94 * min(columns / max(high[0] - low[0], 1e-6), rows / max(high[1] - low[1], 1e-6))
    points[:, 0] = (points[:, 0] - (low[0] + high[0]) / 2) * scale + columns / 2
    points[:, 1] = rows / 2 - (points[:, 1] - (low[1] + high[1]) / 2) * scale
    # Half the light is even, so that a colour can be found on the bar again.
    shade = 0.5 + 0.5 * np.clip(_light(mesh, camera)[:, :1], 0, 1)
    depth, color = _z_buffer(points, mesh.faces, rgb * shade, (rows, columns))
    flat = np.where(np.isfinite(depth)[..., None], color, np.float32(1))
    small = flat.reshape(size[1], _SUPERSAMPLING, size[0], _SUPERSAMPLING, 3).mean(axis=(1, 3))
    return SurfacePicture(np.rint(small * 255).astype(np.uint8), float(_SUPERSAMPLING / scale))


def opacities(names: Sequence[str]) -> dict[str, float]:
    """How solid to draw each of several structures, so that none hides those inside it."""
    kinds = {name: _kind(name) for name in names}
    lesions = "lesion" in kinds.values()
    inner = any(kind in ("organ", "vessel", "lesion") for kind in kinds.values())
    out = {}
    for name, kind in kinds.items():
        if len(names) == 1:
            out[name] = 1.0
        elif kind == "body":
            out[name] = _FAINTEST
        elif kind == "bone" and inner:
            out[name] = 0.5
        elif name.startswith("lung") and len(names) > 2:
            out[name] = 0.35
        else:
            out[name] = 0.55 if lesions and kind == "organ" else 1.0
    return out


def _kind(name: str) -> str:
    known = anatomy.STRUCTURES.get(anatomy.canonical(name))
    return known.kind if known else "organ"


def _camera(towards_viewer: Sequence[float]) -> NDArray[np.float64]:
    """(3, 3): rows are the picture's right, its up, and the depth direction (away from the viewer) in world RAS."""
    away = -np.asarray(towards_viewer, dtype=np.float64)
    away /= np.linalg.norm(away)
    right = np.cross(away, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, away), away])


def _layer(
    mesh: Mesh, points: NDArray[np.float64], camera: NDArray[np.float64], shape: tuple[int, int], opacity: float
) -> _Layer:
    depth, bright = _z_buffer(points, mesh.faces, _light(mesh, camera), shape)
    bright = bright.reshape(-1, 2)
    own = np.asarray(fractions(mesh.color or structure_color(mesh.name)), dtype=np.float32)
    rgb = np.clip(own * bright[:, :1] + bright[:, 1:], 0, 1)
    return _Layer(depth, rgb.reshape(*shape, 3), opacity, _kind(mesh.name) == "bone")


def _z_buffer(
    points: NDArray[np.float64], faces: NDArray[np.int64], attributes: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[Floats, Floats]:
    """(rows, columns) depth, infinite where nothing is, and (rows, columns, k) attributes of what is nearest."""
    rows, columns = shape
    depth = np.full(rows * columns, np.inf, dtype=np.float32)
    nearest = np.zeros((rows * columns, attributes.shape[1]), dtype=np.float32)
    carried = np.column_stack([points[:, 2], attributes]).astype(np.float32)
    screen = points[:, :2].astype(np.float32)
    for corners, weights in _patches(screen, faces):
        place = np.matmul(weights, screen[corners]).reshape(-1, 2)
        values = np.matmul(weights, carried[corners]).reshape(-1, carried.shape[1])
        column, row = np.floor(place).astype(np.int64).T
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        pixel, values = (row * columns + column)[inside], values[inside]
        np.minimum.at(depth, pixel, values[:, 0])
        front = values[:, 0] <= depth[pixel]
        nearest[pixel[front]] = values[front, 1:]
    return depth.reshape(shape), nearest.reshape(*shape, -1)


def _patches(screen: Floats, faces: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    """Groups of triangles with the barycentric weights of points at most one pixel apart on them."""
    corners = screen[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    level = np.ceil(np.log(np.clip(longest, 1, 4096)) / np.log(_LEVEL)).astype(int)
    for power in np.unique(level):
        n = int(np.ceil(_LEVEL ** int(power)))
        a, b = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        a, b = a[a + b <= n], b[a + b <= n]
        weights = (np.column_stack([a, b, n - a - b]) / n).astype(np.float32)
        chosen = faces[level == power]
        step = max(1, _MOST_POINTS // len(weights))
        for start in range(0, len(chosen), step):
            yield chosen[start : start + step], weights


def _light(mesh: Mesh, camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) per vertex: brightness of its own colour, and white highlight."""
    a, b, c = (mesh.vertices[mesh.faces[:, n]] for n in range(3))
    facets = np.cross(b - a, c - a)
    normals = np.zeros_like(mesh.vertices)
    for n in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(mesh.faces[:, n], facets[:, axis], minlength=len(normals))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    right, up, away = camera
    lamp = -away + 0.5 * up - 0.5 * right
    lamp /= np.linalg.norm(lamp)
    half = lamp - away
    half /= np.linalg.norm(half)
    diffuse = 0.22 + 0.68 * np.clip(normals @ lamp, 0, 1) + 0.15 * np.clip(normals @ -away, 0, 1)
    return np.column_stack([diffuse, 0.22 * np.clip(normals @ half, 0, 1) ** 24])


def _composite(layers: Sequence[_Layer], background: Floats) -> Floats:
    """(rows, columns, 3): layers seen through one another from the nearest to the farthest."""
    shape = layers[0].depth.shape
    out = np.broadcast_to(background, (*shape, 3)).astype(np.float32)
    hit = np.isfinite(np.min([layer.depth for layer in layers], axis=0))
    depth = np.stack([layer.depth[hit] for layer in layers])
    rgb = np.stack([layer.rgb[hit] for layer in layers])
    alpha = np.stack([_alpha(layers, number, depth) for number in range(len(layers))])
    color = out[hit]
    pixel = np.arange(depth.shape[1])
    for nth in np.argsort(depth, axis=0)[::-1]:
        weight = np.where(np.isfinite(depth[nth, pixel]), alpha[nth, pixel], 0)[:, None]
        color = weight * rgb[nth, pixel] + (1 - weight) * color
    out[hit] = color
    return out


def _alpha(layers: Sequence[_Layer], number: int, depth: Floats) -> Floats:
    """Opacity of one layer per pixel; one that only hides others is solid where nothing lies behind it."""
    layer = layers[number]
    out = np.full(depth.shape[1], layer.opacity, dtype=np.float32)
    if layer.solid_alone:
        others = [n for n, other in enumerate(layers) if n != number and other.opacity > _FAINTEST]
        behind = [(depth[n] > depth[number]) & np.isfinite(depth[n]) for n in others]
        out[~np.any(behind, axis=0)] = 1.0
    return out
