"""Marching cubes, slice by slice: the triangles of a field, or of a mask that is low-pass filtered on the way.

The cases are VTK's, and so are the triangles, one for one. Of a filtered mask only a few slices exist at a time, and since
no voxel changes sides, the mask says where the surface runs: both save most of the time and memory of doing one after
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d.compiled import compiled

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]
Line = NDArray[np.float32]
Kernels = tuple[NDArray[np.float64], ...]


@lru_cache(maxsize=1)
def cases() -> NDArray[np.int8]:
    """(256, 16) edges of the triangles of each case, −1 at the end, as VTK has them: outward for a right-handed grid.

    Corner (i, j, k) of a cell is bit 4i + 2j + k. Edges 0…3 run along k at (i, j) = 00, 01, 10, 11, edges 4…7 along j at
    (i, k), edges 8…11 along i at (j, k).
    """
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    from slice3d.surface import _vtk

    corner = np.arange(8)
    inside = (np.arange(256)[:, None] >> corner) & 1
    # the 256 cells in a row along k; the cells between them are of no interest
    row = np.empty((2, 2, 512), dtype=np.float32)
    for c in range(8):
        row[c >> 2, c >> 1 & 1, c & 1 :: 2] = 2 * inside[:, c] - 1
    contour = vtkFlyingEdges3D()
    contour.SetInputData(_vtk.image(row))
    contour.SetValue(0, 0.0)
    contour.ComputeNormalsOff()
    contour.Update()
    points, faces = _vtk.arrays(contour.GetOutput())
    corners = points[faces][:, :, ::-1]
    cell = np.floor(corners[:, :, 2].mean(axis=1)).astype(np.int64)
    out = np.full((256, 16), -1, dtype=np.int8)
    used = np.zeros(256, dtype=np.int64)
    for n in np.flatnonzero(cell % 2 == 0):
        case = cell[n] // 2
        for i, j, k in corners[n][::-1] - (0, 0, cell[n]):
            edge = 2 * i + j if k == 0.5 else 4 + 2 * i + k if j == 0.5 else 8 + 2 * j + k
            out[case, used[case]] = round(edge)
            used[case] += 1
    return out


@compiled
def _filter(line: Line, stride: int, weight: Line, out: Line) -> None:
    """out[n] = Σ weight[t] · line[n + t · stride]; the number of weights is a multiple of three."""
    # long loops over whole slices: the compiler makes vector instructions of them
    for t in range(0, len(weight), 3):
        u, v, w = weight[t], weight[t + 1], weight[t + 2]
        a, b, c = line[t * stride :], line[(t + 1) * stride :], line[(t + 2) * stride :]
        if t == 0:
            for n in range(len(out)):
                out[n] = u * a[n] + v * b[n] + w * c[n]
        else:
            for n in range(len(out)):
                out[n] += u * a[n] + v * b[n] + w * c[n]


@compiled
def _crossing(inside: int, one: float, other: float, level: float, kept: float) -> float:
    """Where between an inner voxel (if `inside`, else an outer one) and the next the level is met; both keep their side."""
    if inside:
        a, b = max(one - level, kept), min(other - level, -kept)
    else:
        a, b = min(one - level, -kept), max(other - level, kept)
    return a / (a - b)


@compiled
def _march(
    i: int,
    row: int,
    values: tuple[Line, Line],
    sides: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    level: tuple[Any, Any],
    table: NDArray[np.int8],
    active: NDArray[np.uint8],
    numbers: NDArray[np.int32],
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    count: NDArray[np.int64],
) -> None:
    """The cells between slices i and i + 1, which are flattened rows of `row` voxels.

    values, sides: of both slices. level: of the surface, and how near to it a value may come. numbers: (5, nj · nk)
    vertices on edges along k and along j, of this slice and the next, and between them. count: (2,) vertices and faces so
    far; goes on where `vertices` or `faces` are full. No vertex lies on the first or last row or column: every edge but
    the three at the far corner of a cell was met before.
    """
    low, high = values
    size = len(low) - row - 1
    this, following = i % 2, 1 - i % 2
    k_low, k_high, j_low, j_high, between = (
        numbers[this], numbers[following], numbers[2 + this], numbers[2 + following], numbers[4],
    )  # fmt: skip
    a, b, c, d = sides[0], sides[0][row:], sides[1], sides[1][row:]
    for n in range(size + 1):
        active[n] = (a[n] ^ b[n]) | (a[n] ^ c[n]) | (a[n] ^ d[n])
    for n in range(size):
        active[n] |= active[n + 1] | (a[n] ^ a[n + 1])
    words = active.view(np.uint64)
    edge = np.empty(12, np.int32)
    nv, nf = count[0], count[1]
    for word in range(len(words)):
        if not words[word]:
            continue
        # what does not fit is counted only
        room = nv + 24 <= len(vertices) and nf + 40 <= len(faces)
        for n in range(8 * word, min(8 * word + 8, size)):
            if not active[n]:
                continue
            case = (
                a[n] | a[n + 1] << 1 | b[n] << 2 | b[n + 1] << 3
                | c[n] << 4 | c[n + 1] << 5 | d[n] << 6 | d[n + 1] << 7
            )  # fmt: skip
            if not room:
                nv += (d[n] ^ d[n + 1]) + (c[n + 1] ^ d[n + 1]) + (b[n + 1] ^ d[n + 1])
                nf += 5
                continue
            far = n + row + 1
            if d[n] != d[n + 1]:
                k_high[far - 1] = nv
                vertices[nv, 0] = i + 1
                vertices[nv, 1] = n // row + 1
                vertices[nv, 2] = n % row + _crossing(d[n], high[far - 1], high[far], level[0], level[1])
                nv += 1
            if c[n + 1] != d[n + 1]:
                j_high[n + 1] = nv
                vertices[nv, 0] = i + 1
                vertices[nv, 1] = n // row + _crossing(c[n + 1], high[n + 1], high[far], level[0], level[1])
                vertices[nv, 2] = n % row + 1
                nv += 1
            if b[n + 1] != d[n + 1]:
                between[far] = nv
                vertices[nv, 0] = i + _crossing(b[n + 1], low[far], high[far], level[0], level[1])
                vertices[nv, 1] = n // row + 1
                vertices[nv, 2] = n % row + 1
                nv += 1
            edge[0], edge[1], edge[2], edge[3] = k_low[n], k_low[n + row], k_high[n], k_high[n + row]
            edge[4], edge[5], edge[6], edge[7] = j_low[n], j_low[n + 1], j_high[n], j_high[n + 1]
            edge[8], edge[9], edge[10], edge[11] = between[n], between[n + 1], between[far - 1], between[far]
            t = 0
            while table[case, t] >= 0:
                faces[nf, 0] = edge[table[case, t]]
                faces[nf, 1] = edge[table[case, t + 1]]
                faces[nf, 2] = edge[table[case, t + 2]]
                nf += 1
                t += 3
    count[0], count[1] = nv, nf


def of_field(field: NDArray[np.float32]) -> Arrays:
    """Vertices (N, 3) in voxel indices and faces (M, 3) of the zero level of a (i, j, k) field, positive inside.

    Faces look outwards on a right-handed grid. Everything on the faces of the array must be outside.
    """
    flat = np.ascontiguousarray(field, dtype=np.float32).reshape(len(field), -1)

    def slices() -> Iterator[tuple[Line, NDArray[np.uint8]]]:
        for values in flat:
            yield values, (values > 0).view(np.uint8)

    return _triangles(field.shape, slices, (np.float32(0), np.float32(0)))


def of_mask(mask: NDArray[np.bool_], kernels: Kernels, kept: float | np.floating[Any], *, margin: int) -> Arrays:
    """As `of_field`, of a (i, j, k) mask after an even filter along each axis, minus ½, without a voxel changing sides.

    kernels: odd numbers of weights, one kernel per axis. kept: how near to zero the field may come at a voxel. margin:
    so many voxels at least on every side of the mask are outside.
    """
    if mask.flags.f_contiguous and not mask.flags.c_contiguous:
        vertices, faces = of_mask(mask.T, (kernels[2], kernels[1], kernels[0]), kept, margin=margin)
        turn(vertices)
        turn(faces)
        return vertices, faces
    weights = [_by_threes(kernel) for kernel in kernels]
    reach = [len(w) // 2 for w in weights]
    # rows are filtered end to end: between the inside of two of them lies as much outside as the filter reaches
    more = max(0, reach[2] + 1 - 2 * margin)
    mask = np.pad(mask, ((0, 0), (0, 0), (0, more))) if more else np.ascontiguousarray(mask)
    flat, row = mask.view(np.uint8).reshape(len(mask), -1), mask.shape[2]
    beyond = np.zeros((reach[0], flat.shape[1]), dtype=np.uint8)
    line = np.zeros(flat.shape[1] + 2 * reach[1] * row + 2 * reach[2], dtype=np.float32)
    at = reach[1] * row + reach[2]

    def slices() -> Iterator[tuple[Line, NDArray[np.uint8]]]:
        return zip(_planes(chain(beyond, flat, beyond), line, at, row, weights), flat, strict=True)

    return _triangles(mask.shape, slices, (np.float32(0.5), np.float32(kept)))


def turn(rows: NDArray[Any]) -> None:
    """Swaps the first and the last of three columns in place."""
    first = rows[:, 0].copy()
    rows[:, 0] = rows[:, 2]
    rows[:, 2] = first


def filtered(mask: NDArray[np.bool_], kernels: Kernels) -> NDArray[np.float32]:
    """A mask (i, j, k) after an even filter along each axis; beyond the array its edge goes on."""
    weights = [_by_threes(kernel) for kernel in kernels]
    reach = [len(w) // 2 for w in weights]
    padded = np.ascontiguousarray(np.pad(mask.view(np.uint8), [(r, r) for r in reach], mode="edge"))
    flat, row = padded.reshape(len(padded), -1), padded.shape[2]
    line = np.zeros(flat.shape[1] + 2 * reach[2], dtype=np.float32)
    out = np.empty(mask.shape, dtype=np.float32)
    for i, plane in enumerate(_planes(flat, line, 0, row, weights)):
        out[i] = plane.reshape(-1, row)[:, : mask.shape[2]]
    return out


def _planes(
    slices: Iterable[NDArray[np.uint8]], line: Line, at: int, row: int, weights: Sequence[Line]
) -> Iterator[Line]:
    """Filtered slices from flattened ones, as many less as the filter along i is long; each is good until the next but one.

    line: where a slice goes from `at` on, with room around it for what the filters along j and k reach.
    """
    wi, wj, wk = weights
    # the slices lie in the ring in turned order, and so must the weights
    turned = [np.roll(wi, n + 1) for n in range(len(wi))]
    half = np.empty(len(line) - len(wk) + 1, dtype=np.float32)
    ring = np.empty((len(wi), len(half) - (len(wj) - 1) * row), dtype=np.float32)
    out = np.empty((2, ring.shape[1]), dtype=np.float32)
    for n, values in enumerate(slices):
        line[at : at + len(values)] = values
        _filter(line, 1, wk, half)
        _filter(half, row, wj, ring[n % len(wi)])
        if n >= len(wi) - 1:
            _filter(ring.reshape(-1), ring.shape[1], turned[n % len(wi)], out[n % 2])
            yield out[n % 2]


def _by_threes(kernel: NDArray[np.float64]) -> Line:
    """An even kernel with as many zeros at its ends as make its length a multiple of three."""
    more = next(n for n in range(3) if (len(kernel) + 2 * n) % 3 == 0)
    return np.pad(kernel, more).astype(np.float32)


def _triangles(
    shape: tuple[int, ...],
    slices: Callable[[], Iterator[tuple[Line, NDArray[np.uint8]]]],
    level: tuple[Any, Any],
) -> Arrays:
    """Runs over pairs of neighbouring slices (values and sides); again over those that had more faces than there was room."""
    ni, nj, nk = shape
    active = np.zeros((nj * nk + 7) // 8 * 8, dtype=np.uint8)
    numbers = np.zeros((5, nj * nk), dtype=np.int32)
    count = np.zeros(2, dtype=np.int64)
    # enough for a convex body; memory that is not used costs nothing
    room = 2 * (ni * nj + nj * nk + nk * ni) + 64
    vertices, faces = np.empty((room, 3)), np.empty((2 * room, 3), dtype=np.int64)
    before = None
    for i, here in enumerate(slices()):
        while before is not None:
            nv, nf = count.tolist()
            _march(
                i - 1, nk, (before[0], here[0]), (before[1], here[1]), level, cases(), active, numbers, vertices, faces,
                count,
            )  # fmt: skip
            if count[0] + 24 <= len(vertices) and count[1] + 40 <= len(faces):
                break
            # not all fitted: the same slices again, with room for as much as before once more
            vertices = _grown(vertices, nv, 2 * int(count[0]) + 24)
            faces = _grown(faces, nf, 2 * int(count[1]) + 40)
            count[:] = nv, nf
        before = here
    # in place: the memory that was not used was never taken, and what was is not copied
    vertices.resize((int(count[0]), 3), refcheck=False)
    faces.resize((int(count[1]), 3), refcheck=False)
    return vertices, faces


def _grown(rows: NDArray[Any], used: int, size: int) -> NDArray[Any]:
    out = np.empty((size, 3), dtype=rows.dtype)
    out[:used] = rows[:used]
    return out
