"""STL and PLY: plain triangles. Both name their frame the way 3D Slicer writes and reads it (`SPACE=LPS`)."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.io.files import atomic
from slice3d.mesh import Mesh

LPS = np.array([-1.0, -1.0, 1.0])
_RECORD = np.dtype([("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("attribute", "<u2")])


def meshes_of(mesh: Mesh | Sequence[Mesh]) -> list[Mesh]:
    """One or several meshes as a list, without empty ones. Raises `InputError` where no mesh has faces."""
    meshes = [mesh] if isinstance(mesh, Mesh) else list(mesh)
    filled = [m for m in meshes if len(m.faces)]
    if not filled:
        names = ", ".join(m.name for m in meshes if m.name) or "the mesh"
        raise InputError(f"{names} has no faces; expected a surface to write; check that the structure is not empty")
    return filled


def names_of(meshes: Sequence[Mesh]) -> list[str]:
    """One name for each, all different, safe as a file name and as an XML or MTL name."""
    out: list[str] = []
    for number, mesh in enumerate(meshes, start=1):
        base = re.sub(r"[^\w.+-]+", "_", mesh.name, flags=re.ASCII).strip("._")[:60] or f"structure_{number}"
        name, copy = base, 2
        while name.lower() in {o.lower() for o in out}:
            name, copy = f"{base}_{copy}", copy + 1
        out.append(name)
    return out


def color_of(mesh: Mesh) -> tuple[int, int, int]:
    """The mesh's colour, or else that of its structure; RGB 0…255."""
    return mesh.color if mesh.color is not None else anatomy.color(mesh.name)


def merged(meshes: Sequence[Mesh]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices and faces of several meshes in one list."""
    offsets = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    vertices = np.concatenate([m.vertices for m in meshes])
    faces = np.concatenate([m.faces + offset for m, offset in zip(meshes, offsets, strict=False)])
    return vertices, faces


def stl_bytes(mesh: Mesh | Sequence[Mesh]) -> bytes:
    """Binary STL in LPS millimetres."""
    vertices, faces = merged(meshes_of(mesh))
    corner = (vertices * LPS)[faces].astype("<f4")
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    record = np.zeros(len(faces), dtype=_RECORD)
    unit = np.zeros_like(normal)
    np.divide(normal, length, out=unit, where=length > 0)
    record["normal"], record["corner"] = unit, corner
    header = b"slice3d binary STL, mm, SPACE=LPS".ljust(80)
    return header + struct.pack("<I", len(faces)) + record.tobytes()


def write_stl(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """Binary STL in LPS millimetres, several structures in one list of triangles."""
    content = stl_bytes(mesh)
    with atomic(path) as part:
        part.write_bytes(content)


def read_stl(path: Path) -> list[Mesh]:
    """One mesh from a binary or text STL; taken as LPS unless the header says `SPACE=RAS`.

    Corners at the same place become one vertex. Raises `InputError` for a damaged file.
    """
    return [stl_mesh(read_bytes(path), path.stem)]


def stl_mesh(raw: bytes, name: str) -> Mesh:
    """A mesh from the bytes of an STL."""
    count = struct.unpack("<I", raw[80:84])[0] if len(raw) >= 84 else 0
    if count and len(raw) >= 84 + 50 * count:
        corner = np.frombuffer(raw, dtype=_RECORD, count=count, offset=84)["corner"].astype(np.float64)
    elif raw[:5].lower() == b"solid" and b"facet" in raw[:4096]:
        corner = _text_stl(raw, name)
    else:
        size = f"{len(raw)} bytes, {count} triangles announced"
        raise InputError(f"{name} is not a whole STL ({size}); expected 84 + 50 bytes per triangle; export it again")
    if not np.isfinite(corner).all():
        raise InputError(f"{name} holds NaN or infinity; expected finite millimetres; export it again")
    vertices, index = np.unique(corner.reshape(-1, 3), axis=0, return_inverse=True)
    sign = 1.0 if b"SPACE=RAS" in raw[:80].upper() else LPS
    return Mesh(vertices * sign, index.reshape(-1, 3), name=name)


def _text_stl(raw: bytes, name: str) -> NDArray[np.float64]:
    words = [line.split()[1:4] for line in raw.splitlines() if line.strip().startswith(b"vertex")]
    if not words or len(words) % 3 or any(len(w) != 3 for w in words):
        raise InputError(
            f"{name} is a text STL with {len(words)} corners; expected a multiple of three; export it again"
        )
    try:
        return np.array([[float(x) for x in w] for w in words]).reshape(-1, 3, 3)
    except ValueError as error:
        raise InputError(f"{name} is a text STL with a corner that is no number; export it again") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises `InputError` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror or error}; check the path") from error


def write_ply(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """Binary PLY in LPS millimetres with a colour per vertex and the scalars that every mesh carries."""
    meshes = meshes_of(mesh)
    vertices, faces = merged(meshes)
    shared = [name for name in meshes[0].scalars if all(name in m.scalars for m in meshes)]
    keys = [re.sub(r"\W+", "_", name, flags=re.ASCII) for name in shared]
    point = np.dtype([("p", "<f8", 3), ("c", "u1", 3), *((f"s{n}", "<f4") for n in range(len(shared)))])
    points = np.zeros(len(vertices), dtype=point)
    points["p"] = vertices * LPS
    points["c"] = np.concatenate([np.tile(np.array(color_of(m), dtype=np.uint8), (len(m.vertices), 1)) for m in meshes])
    for n, name in enumerate(shared):
        points[f"s{n}"] = np.concatenate([np.asarray(m.scalars[name], dtype=np.float32) for m in meshes])
    triangles = np.zeros(len(faces), dtype=np.dtype([("n", "u1"), ("v", "<i4", 3)]))
    triangles["n"], triangles["v"] = 3, faces
    header = [
        "ply", "format binary_little_endian 1.0", "comment slice3d, mm, SPACE=LPS", f"element vertex {len(vertices)}",
        *(f"property double {axis}" for axis in "xyz"), *(f"property uchar {c}" for c in ("red", "green", "blue")),
        *(f"property float {key}" for key in keys), f"element face {len(faces)}",
        "property list uchar int vertex_indices", "end_header\n",
    ]  # fmt: skip
    with atomic(path) as part:
        part.write_bytes("\n".join(header).encode("ascii") + points.tobytes() + triangles.tobytes())
