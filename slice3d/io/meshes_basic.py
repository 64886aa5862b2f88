"""STL: binary triangles. The header names the frame, as 3D Slicer writes and reads it (`SPACE=LPS`)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.io.files import atomic
from slice3d.mesh import Mesh

LPS = np.array([-1.0, -1.0, 1.0])
_RECORD = np.dtype([("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("attribute", "<u2")])


def meshes_of(mesh: Mesh | Sequence[Mesh]) -> list[Mesh]:
    """One or several meshes as a list. Raises `InputError` where no mesh has faces."""
    meshes = [mesh] if isinstance(mesh, Mesh) else list(mesh)
    filled = [m for m in meshes if len(m.faces)]
    if not filled:
        names = ", ".join(m.name for m in meshes if m.name) or "the mesh"
        raise InputError(f"{names} has no faces; expected a surface to write; check that the structure is not empty")
    return filled


def merged(meshes: Sequence[Mesh]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices and faces of several meshes in one list."""
    offsets = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    vertices = np.concatenate([m.vertices for m in meshes])
    faces = np.concatenate([m.faces + offset for m, offset in zip(meshes, offsets, strict=False)])
    return vertices, faces


def write_stl(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """Binary STL in LPS millimetres, all structures in one shell list."""
    vertices, faces = merged(meshes_of(mesh))
    corner = (vertices * LPS)[faces].astype("<f4")
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    record = np.zeros(len(faces), dtype=_RECORD)
    np.divide(normal, length, out=record["normal"], where=length > 0)
    record["corner"] = corner
    header = b"slice3d binary STL, mm, SPACE=LPS".ljust(80)
    with atomic(path) as part:
        part.write_bytes(header + struct.pack("<I", len(faces)) + record.tobytes())


def read_stl(path: Path) -> list[Mesh]:
    """One mesh from a binary or text STL; LPS is turned to RAS where the header says LPS or says nothing.

    Corners at the same place become one vertex. Raises `InputError` for a damaged file.
    """
    raw = path.read_bytes()
    if len(raw) >= 84 and len(raw) >= 84 + 50 * struct.unpack("<I", raw[80:84])[0] > 84:
        count = struct.unpack("<I", raw[80:84])[0]
        corner = np.frombuffer(raw, dtype=_RECORD, count=count, offset=84)["corner"].astype(np.float64)
    elif raw[:5] == b"solid":
        words = [line.split()[1:4] for line in raw.splitlines() if line.strip().startswith(b"vertex")]
        if not words or len(words) % 3:
            raise InputError(f"{path.name} is a text STL with {len(words)} corners; expected a multiple of three")
        corner = np.array(words, dtype=np.float64).reshape(-1, 3, 3)
    else:
        raise InputError(
            f"{path.name} is not a whole STL ({len(raw)} bytes); expected as many triangles as it announces"
        )
    if not np.isfinite(corner).all():
        raise InputError(f"{path.name} holds NaN or infinity; expected finite millimetres")
    vertices, index = np.unique(corner.reshape(-1, 3), axis=0, return_inverse=True)
    sign = 1.0 if b"SPACE=RAS" in raw[:80].upper() else LPS
    return [Mesh(vertices * sign, index.reshape(-1, 3), name=path.stem)]
