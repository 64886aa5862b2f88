"""What the triangles of a surface are connected to: edges, components, Euler characteristic, manifoldness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vertices = NDArray[np.float64]
Faces = NDArray[np.int64]


@dataclass(frozen=True)
class Edges:
    """Half-edges grouped by undirected edge.

    key: (E,) number of the edge, lower · n + higher vertex. count: (E,) triangles at it. balance: (E,) how often it runs
    up minus down; 0 in an oriented surface. of_half: (3M,) edge of each half-edge, half-edge h belongs to face h // 3.
    """

    key: NDArray[np.int64]
    count: NDArray[np.int64]
    balance: NDArray[np.int64]
    of_half: NDArray[np.int64]


def edges(faces: Faces, vertex_count: int) -> Edges:
    """The edges of a triangle list."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    low, high = np.minimum(start, end), np.maximum(start, end)
    key, of_half, count = np.unique(low * vertex_count + high, return_inverse=True, return_counts=True)
    balance = np.bincount(of_half, weights=np.where(start < end, 1.0, -1.0), minlength=len(key)).astype(np.int64)
    return Edges(key, count.astype(np.int64), balance, of_half.astype(np.int64))


def components(faces: Faces, vertex_count: int) -> tuple[int, NDArray[np.int64]]:
    """Number of pieces connected through vertices, and the piece of each face (M,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(faces):
        return 0, np.zeros(0, dtype=np.int64)
    rows = np.concatenate([faces[:, 0], faces[:, 1]])
    columns = np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(vertex_count, vertex_count))
    _, label = connected_components(graph, directed=False)
    used, piece = np.unique(label[faces[:, 0]], return_inverse=True)
    return len(used), piece.astype(np.int64)


def nonmanifold_vertices(faces: Faces, vertex_count: int, half: Edges | None = None) -> NDArray[np.int64]:
    """Vertices whose triangles form more than one fan (two pieces that touch in a point). half: `edges`, where known."""
    fans = _fans(faces, vertex_count, half=half)
    per_vertex = np.bincount(fans.vertex, minlength=vertex_count)
    return np.flatnonzero(per_vertex > 1)


@dataclass(frozen=True)
class _Fans:
    of_corner: NDArray[np.int64]
    vertex: NDArray[np.int64]


def _fans(
    faces: Faces,
    vertex_count: int,
    *,
    extra: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    half: Edges | None = None,
) -> _Fans:
    """Groups face corners (3f + c) at the same vertex that are joined through two-sided edges, or pairs of half-edges."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    half = edges(faces, vertex_count) if half is None else half
    two_sided = (half.count == 2) & (half.balance == 0)
    order = np.argsort(half.of_half, kind="stable")
    order = order[two_sided[half.of_half[order]]]
    first, second = order[0::2], order[1::2]
    if extra is not None:
        first, second = np.concatenate([first, extra[0]]), np.concatenate([second, extra[1]])
    # Half-edge h runs from corner h to the next corner of its face; its twin runs the other way.
    rows = np.concatenate([first, first - first % 3 + (first + 1) % 3])
    columns = np.concatenate([second - second % 3 + (second + 1) % 3, second])
    size = 3 * len(faces)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    count, group = connected_components(graph, directed=False)
    vertex = np.zeros(count, dtype=np.int64)
    vertex[group] = faces.reshape(-1)
    return _Fans(group.astype(np.int64), vertex)


def split_fans(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
    """Gives every fan its own copy of a vertex, so that pieces which only touch come apart topologically."""
    fans = _fans(faces, len(vertices))
    return vertices[fans.vertex], fans.of_corner.reshape(-1, 3)


def coincident(vertices: Vertices, faces: Faces) -> NDArray[np.int64]:
    """Used vertices that have the float32 position of another one: a file without indices, as STL, joins them."""
    used = np.zeros(len(vertices), dtype=bool)
    used[faces.reshape(-1)] = True
    return _coincident(vertices, np.flatnonzero(used))[0]


def _coincident(vertices: Vertices, among: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of some vertices that coincide, and the number of the place where each lies."""
    place = (vertices[among].astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    # sorting one number each is far quicker than sorting rows; what it confuses is told apart below
    key = (place * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)).sum(axis=1)
    order = np.argsort(key)
    same = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    maybe = np.unique(order[np.concatenate([same, same + 1])])
    if not len(maybe):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    _, row, count = np.unique(place[maybe], axis=0, return_inverse=True, return_counts=True)
    shared = count[row.reshape(-1)] > 1
    return among[maybe[shared]], row.reshape(-1)[shared]


def spread(
    vertices: Vertices,
    faces: Faces,
    *,
    among: NDArray[np.int64] | None = None,
    middle: NDArray[np.int64] | None = None,
) -> Vertices:
    """Moves coinciding vertices a few float32 steps apart: all but one at each place, into the cone that its faces form.

    The one that stays has its solid outside its cone, where there is such a one, since the others then lie in that cone; else
    it is the bluntest. Vertices at open edges stay too: those are to be joined. among: the only ones to look at. middle: of
    edges that lie on others, and are moved in any case.
    """
    if among is None:
        used = np.zeros(len(vertices), dtype=bool)
        used[faces.reshape(-1)] = True
        among = np.flatnonzero(used)
    at, place = _coincident(vertices, among)
    if middle is not None and len(middle):
        # each at a place of its own, where it is not the one that stays
        alone = -1 - np.arange(len(middle))
        at, place = np.concatenate([at, middle]), np.concatenate([place, alone])
    if not len(at):
        return vertices
    marked = np.zeros(len(vertices), dtype=bool)
    marked[at] = True
    near = faces[marked[faces].any(axis=1)]
    half = edges(near, len(vertices))
    ends = np.stack([half.key // len(vertices), half.key % len(vertices)], axis=1)
    marked[ends[half.count == 1].reshape(-1)] = False
    way, hollow = _cones(vertices, near, ends, at)
    sharpness = np.linalg.norm(way, axis=1)
    order = np.lexsort((sharpness, ~hollow, marked[at], place))
    stays = order[np.concatenate([[True], place[order[1:]] != place[order[:-1]]]) & (place[order] >= 0)]
    marked[at[stays]] = False
    moved = marked[at] & (sharpness > 1e-6)
    movable, way = at[moved], way[moved] / sharpness[moved, None]
    step = 8.0 * float(np.spacing(np.float32(np.abs(vertices).max(initial=1.0))))
    out = vertices.copy()
    still = np.ones(len(movable), dtype=bool)
    for _ in range(4):
        out[movable[still]] = vertices[movable[still]] + step * way[still]
        still = np.isin(movable, _coincident(out, at)[0])
        if not still.any():
            break
        step *= 2.0
    return out


def _cones(
    vertices: Vertices, faces: Faces, ends: NDArray[np.int64], at: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean direction (len(at), 3) from some vertices to their neighbours, and whether their solid lies on the other side."""
    row = np.full(len(vertices), -1)
    row[at] = np.arange(len(at))
    total, normal, count = np.zeros((len(at), 3)), np.zeros((len(at), 3)), np.zeros(len(at))
    for one, other in ((0, 1), (1, 0)):
        mine = row[ends[:, one]] >= 0
        spoke = vertices[ends[mine, other]] - vertices[ends[mine, one]]
        length = np.linalg.norm(spoke, axis=1, keepdims=True)
        here = row[ends[mine, one]]
        np.add.at(total, here, np.divide(spoke, length, out=np.zeros_like(spoke), where=length > 0))
        np.add.at(count, here, 1.0)
    area = face_normals(vertices, faces)
    for corner in range(3):
        mine = row[faces[:, corner]] >= 0
        np.add.at(normal, row[faces[mine, corner]], area[mine])
    return total / np.maximum(count, 1.0)[:, None], np.einsum("ij,ij->i", total, normal) > 0


def compact(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces, NDArray[np.int64]]:
    """Drops unused vertices; also returns the old index of each vertex kept."""
    used = np.zeros(len(vertices), dtype=bool)
    used[faces.reshape(-1)] = True
    kept = np.flatnonzero(used)
    number = np.empty(len(vertices), dtype=np.int64)
    number[kept] = np.arange(len(kept))
    return vertices[kept], number[faces], kept


def face_normals(vertices: Vertices, faces: Faces) -> NDArray[np.float64]:
    """(M, 3) normals whose length is twice the area."""
    a = vertices[faces[:, 0]]
    u, v = vertices[faces[:, 1]] - a, vertices[faces[:, 2]] - a
    out = np.empty_like(u)
    # by hand: numpy's cross product takes three times as long on many short rows
    for n, (p, q) in enumerate(((1, 2), (2, 0), (0, 1))):
        np.subtract(u[:, p] * v[:, q], u[:, q] * v[:, p], out=out[:, n])
    return out


def vertex_normals(vertices: Vertices, faces: Faces, normal: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """(N, 3) unit normals, weighted by area; zero where the triangles cancel."""
    normal = face_normals(vertices, faces) if normal is None else normal
    out = np.empty_like(vertices)
    for axis in range(3):
        weight = np.repeat(normal[:, axis], 3)
        out[:, axis] = np.bincount(faces.reshape(-1), weights=weight, minlength=len(vertices))
    length = np.linalg.norm(out, axis=1, keepdims=True)
    np.divide(out, length, out=out, where=length > 0)
    return out


def piece_volumes(vertices: Vertices, faces: Faces, piece: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(count,) signed volume in mm³ of each piece; cavities are negative."""
    corner = vertices - vertices.mean(axis=0)
    six = np.einsum("ij,ij->i", corner[faces[:, 0]], face_normals(corner, faces))
    return np.bincount(piece, weights=six / 6.0, minlength=count).astype(np.float64)


def pair_edges(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
    """Divides edges with four or more faces: each face stays with the one it encloses material with.

    Around such an edge the faces alternate between entering and leaving the solid; a leaving face is paired with the next
    entering one in angle, so that two bodies that touch along the edge come apart. Then every fan gets its own vertices.
    """
    half = edges(faces, len(vertices))
    bad = np.flatnonzero((half.count > 2) & (half.balance == 0))
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    opposite = np.roll(faces, -2, axis=1).reshape(-1)
    order = np.argsort(half.of_half, kind="stable")
    first = np.searchsorted(half.of_half[order], np.arange(len(half.key)))
    join_a, join_b = [], []
    for edge in bad:
        halves = order[first[edge] : first[edge] + half.count[edge]]
        low = min(int(start[halves[0]]), int(end[halves[0]]))
        high = max(int(start[halves[0]]), int(end[halves[0]]))
        axis = vertices[high] - vertices[low]
        axis = axis / max(float(np.linalg.norm(axis)), 1e-300)
        spoke = vertices[opposite[halves]] - vertices[low]
        spoke = spoke - np.outer(spoke @ axis, axis)
        u = spoke[0] / max(float(np.linalg.norm(spoke[0])), 1e-300)
        angle = np.arctan2(spoke @ np.cross(axis, u), spoke @ u)
        around = halves[np.argsort(angle, kind="stable")]
        upward = start[around] == low
        # An outward face that runs up the edge has its material on the side of smaller angles.
        for n, h in enumerate(around):
            if upward[n]:
                m = n
                for _ in range(len(around)):
                    m = (m - 1) % len(around)
                    if not upward[m]:
                        break
                join_a.append(h)
                join_b.append(around[m])
    fans = _fans(faces, len(vertices), extra=(np.asarray(join_a, dtype=np.int64), np.asarray(join_b, dtype=np.int64)))
    return vertices[fans.vertex], fans.of_corner.reshape(-1, 3)


def split_by_owner(vertices: Vertices, faces: Faces, owner: NDArray[np.int64]) -> tuple[Vertices, Faces]:
    """Divides edges with more than two faces so that faces of one owner stay together, then vertices with several fans.

    What is divided is also put apart, see `spread`. Every vertex is used by a face.
    owner: (M,) the voxel that each face bounds from outside. Two voxels that touch only along an edge come apart there.
    """
    half = edges(faces, len(vertices))
    at = np.flatnonzero(half.count[half.of_half] > 2)
    rising = faces.reshape(-1)[at] < np.roll(faces, -1, axis=1).reshape(-1)[at]
    order = np.lexsort((rising, owner[at // 3], half.of_half[at]))
    at, rising = at[order], rising[order]
    same = (half.of_half[at[1:]] == half.of_half[at[:-1]]) & (owner[at[1:] // 3] == owner[at[:-1] // 3])
    pair = np.flatnonzero(same & (rising[1:] != rising[:-1]))
    fans = _fans(faces, len(vertices), extra=(at[pair], at[pair + 1]), half=half)
    if len(fans.vertex) == len(vertices) and not len(at):
        return vertices, faces
    copies = np.flatnonzero(np.bincount(fans.vertex)[fans.vertex] > 1)
    vertices, faces = vertices[fans.vertex], fans.of_corner.reshape(-1, 3)
    count = len(vertices)
    if len(at):
        vertices, faces = _split_edges(vertices, faces, owner)
    middle = np.arange(count, len(vertices))
    return spread(vertices, faces, among=copies, middle=middle), faces


def _split_edges(vertices: Vertices, faces: Faces, owner: NDArray[np.int64]) -> tuple[Vertices, Faces]:
    """Puts an own middle vertex on an edge that two owners share although both its ends are single fans."""
    half = edges(faces, len(vertices))
    new_vertices: list[NDArray[np.float64]] = []
    new_faces: list[tuple[int, int, int]] = []
    gone: set[int] = set()
    for edge in np.flatnonzero(half.count > 2):
        halves = np.flatnonzero(half.of_half == edge)
        for one in np.unique(owner[halves // 3])[1:]:
            middle = len(vertices) + len(new_vertices)
            mine = halves[owner[halves // 3] == one]
            a, b = faces[mine[0] // 3, mine[0] % 3], faces[mine[0] // 3, (mine[0] + 1) % 3]
            new_vertices.append((vertices[a] + vertices[b]) / 2.0)
            for h in mine:
                face = faces[h // 3]
                start, end, across = face[h % 3], face[(h + 1) % 3], face[(h + 2) % 3]
                if int(h // 3) in gone:
                    continue
                gone.add(int(h // 3))
                new_faces += [(start, middle, across), (middle, end, across)]
    if not new_faces:
        return vertices, faces
    kept = np.delete(faces, sorted(gone), axis=0)
    return np.concatenate([vertices, new_vertices]), np.concatenate([kept, np.asarray(new_faces, dtype=np.int64)])
