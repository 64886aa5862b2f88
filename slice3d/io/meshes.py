"""Mesh files: which suffix is written and read by what. World RAS mm inside; each writer converts to its format's frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slice3d.io.meshes_basic import read_stl, write_stl
from slice3d.mesh import Mesh

MESH_WRITERS: dict[str, Callable[..., Any]] = {".stl": write_stl}
MESH_READERS: dict[str, Callable[[Path], Sequence[Mesh]]] = {".stl": read_stl}
