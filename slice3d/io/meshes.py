"""Mesh files: which suffix is written and read by what. World RAS mm inside; each writer converts to its format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slice3d.io.meshes_basic import read_stl, write_ply, write_stl
from slice3d.io.meshes_dicom import read_encapsulated, write_encapsulated
from slice3d.io.meshes_scene import read_obj, write_3mf, write_glb, write_obj
from slice3d.io.meshes_vtk import read_vtp, write_mrb, write_mrml, write_vtm, write_vtp
from slice3d.mesh import Mesh

# suffix → (mesh or meshes, path); .dcm also takes source=the volume loaded from DICOM and kind="stl" or "obj"
MESH_WRITERS: dict[str, Callable[..., Any]] = {
    ".stl": write_stl,
    ".ply": write_ply,
    ".obj": write_obj,
    ".3mf": write_3mf,
    ".glb": write_glb,
    ".vtp": write_vtp,
    ".vtm": write_vtm,
    ".mrml": write_mrml,
    ".mrb": write_mrb,
    ".dcm": write_encapsulated,
}
MESH_READERS: dict[str, Callable[[Path], Sequence[Mesh]]] = {
    ".stl": read_stl,
    ".obj": read_obj,
    ".vtp": read_vtp,
    ".dcm": read_encapsulated,
}
