"""Formats with one coloured object per structure: OBJ + MTL, 3MF, GLB."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.io.files import atomic
from slice3d.io.meshes_basic import LPS, color_of, meshes_of, names_of, read_bytes
from slice3d.mesh import Mesh


def obj_text(meshes: Sequence[Mesh], material_file: str | None) -> str:
    """Wavefront OBJ in LPS millimetres, one group and material per structure."""
    out = ["# slice3d, mm, SPACE=LPS"]
    if material_file:
        out.append(f"mtllib {material_file}")
    base = 1
    for mesh, name in zip(meshes, names_of(meshes), strict=True):
        out += [f"o {name}", f"g {name}"]
        if material_file:
            out.append(f"usemtl {name}")
        out += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in _float32(mesh.vertices * LPS)]
        out += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + base).tolist()]
        base += len(mesh.vertices)
    return "\n".join(out) + "\n"


def _float32(points: NDArray[np.float64]) -> list[list[float]]:
    """What float32 holds of the points: nine digits give it back to the bit, and it is what the print gate looked at."""
    out: list[list[float]] = points.astype(np.float32).astype(np.float64).tolist()
    return out


def mtl_text(meshes: Sequence[Mesh]) -> str:
    """The materials that `obj_text` names."""
    out = ["# slice3d"]
    for mesh, name in zip(meshes, names_of(meshes), strict=True):
        r, g, b = (c / 255.0 for c in color_of(mesh))
        out += [
            f"newmtl {name}",
            f"Ka {r:.4f} {g:.4f} {b:.4f}",
            f"Kd {r:.4f} {g:.4f} {b:.4f}",
            "Ks 0.1 0.1 0.1",
            "d 1",
            "",
        ]
    return "\n".join(out)


def write_obj(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """`path` and, beside it, the `.mtl` with the colours."""
    meshes = meshes_of(mesh)
    material = path.with_suffix(".mtl")
    with atomic(material) as part:
        part.write_bytes(mtl_text(meshes).encode("ascii"))
    with atomic(path) as part:
        part.write_bytes(obj_text(meshes, material.name.replace(" ", "_")).encode("utf-8"))


def read_obj(path: Path) -> list[Mesh]:
    """One mesh per object; LPS unless the first lines say `SPACE=RAS`. Raises `InputError` for a damaged file."""
    return obj_meshes(read_bytes(path), path.stem)


def obj_meshes(raw: bytes, name: str) -> list[Mesh]:
    """Meshes from the bytes of an OBJ; polygons become fans of triangles."""
    text = raw.decode("utf-8", errors="replace")
    sign = 1.0 if "SPACE=RAS" in text[:400].upper() else LPS
    points: list[list[float]] = []
    groups: dict[str, list[tuple[int, int, int]]] = {}
    faces = groups.setdefault(name, [])
    try:
        for line in text.splitlines():
            words = line.split()
            if not words:
                continue
            if words[0] == "v":
                points.append([float(w) for w in words[1:4]])
            elif words[0] == "o":
                faces = groups.setdefault(" ".join(words[1:]) or name, [])
            elif words[0] == "f":
                corner = [int(w.split("/")[0]) for w in words[1:]]
                corner = [c - 1 if c > 0 else len(points) + c for c in corner]
                faces += [(corner[0], corner[n], corner[n + 1]) for n in range(1, len(corner) - 1)]
        vertices = np.array(points, dtype=np.float64).reshape(-1, 3) * sign
    except ValueError as error:
        raise InputError(f"{name} is a damaged OBJ ({error}); expected numbers; export it again") from error
    out = []
    for key, triangles in groups.items():
        if triangles:
            used, index = np.unique(np.asarray(triangles), return_inverse=True)
            if used.min() < 0 or used.max() >= len(vertices):
                raise InputError(
                    f"{name} is a damaged OBJ: a face points at a vertex that is not there; export it again"
                )
            out.append(Mesh(vertices[used], index.reshape(-1, 3), name=key))
    if not out:
        raise InputError(f"{name} holds no faces; expected an OBJ with a surface; export it again")
    return out


_TYPES = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>'
)
_RELATIONS = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Target="/3D/3dmodel.model" Id="rel0" '
    'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
)


def write_3mf(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """3MF core: millimetres, one object per structure with its name and colour, patient coordinates (LPS)."""
    meshes = meshes_of(mesh)
    names = names_of(meshes)
    colors = "".join(
        f'<base name={quoteattr(n)} displaycolor="#{r:02X}{g:02X}{b:02X}FF"/>'
        for n, (r, g, b) in zip(names, map(color_of, meshes), strict=True)
    )
    objects = []
    for number, (m, name) in enumerate(zip(meshes, names, strict=True)):
        points = "".join(f'<vertex x="{x:.9g}" y="{y:.9g}" z="{z:.9g}"/>' for x, y, z in _float32(m.vertices * LPS))
        triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in m.faces.tolist())
        objects.append(
            f'<object id="{number + 2}" name={quoteattr(name)} type="model" pid="1" pindex="{number}">'
            f"<mesh><vertices>{points}</vertices><triangles>{triangles}</triangles></mesh></object>"
        )
    items = "".join(f'<item objectid="{n + 2}"/>' for n in range(len(meshes)))
    model = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<model unit="millimeter" xml:lang="en-US" '
        'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><metadata name="Application">slice3d</metadata>'
        f'<resources><basematerials id="1">{colors}</basematerials>{"".join(objects)}</resources>'
        f"<build>{items}</build></model>\n"
    )
    content = zip_bytes(
        {"[Content_Types].xml": _TYPES.encode(), "_rels/.rels": _RELATIONS.encode(), "3D/3dmodel.model": model.encode()}
    )
    with atomic(path) as part:
        part.write_bytes(content)


def zip_bytes(members: Mapping[str, bytes]) -> bytes:
    """A .zip whose bytes depend on its content only (no dates)."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, content, compresslevel=6)
    return out.getvalue()


# glTF is right-handed with +Y up and the front of a model towards +Z: left, superior, anterior.
RAS_MM_TO_GLTF = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 1000.0


def write_glb(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """Binary glTF 2.0 in metres, +Y superior, +Z anterior; one named node and material per structure."""
    meshes = meshes_of(mesh)
    blob = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add(values: NDArray[Any], target: int, kind: str, component: int, **more: Any) -> int:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": values.nbytes, "target": target})
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": component, "count": len(values), "type": kind, **more}
        )
        blob.extend(values.tobytes())
        blob.extend(b"\0" * (-len(blob) % 4))
        return len(accessors) - 1

    nodes, shapes, materials = [], [], []
    for number, (m, name) in enumerate(zip(meshes, names_of(meshes), strict=True)):
        points = (m.vertices @ RAS_MM_TO_GLTF.T).astype("<f4")
        low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        attributes = {
            "POSITION": add(points, 34962, "VEC3", 5126, min=low, max=high),
            "NORMAL": add(_normals(points, m.faces), 34962, "VEC3", 5126),
        }
        indices = add(m.faces.astype("<u4").reshape(-1), 34963, "SCALAR", 5125)
        shapes.append(
            {"name": name, "primitives": [{"attributes": attributes, "indices": indices, "material": number}]}
        )
        nodes.append({"name": name, "mesh": number})
        look = {"baseColorFactor": [*_linear(color_of(m)), 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.6}
        materials.append({"name": name, "pbrMetallicRoughness": look})
    document = {
        "asset": {"version": "2.0", "generator": "slice3d"},
        "scene": 0, "scenes": [{"nodes": list(range(len(nodes)))}], "nodes": nodes, "meshes": shapes,
        "materials": materials, "accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": len(blob)}],
    }  # fmt: skip
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(blob)
    with atomic(path) as part:
        part.write_bytes(
            struct.pack("<4sII", b"glTF", 2, total)
            + struct.pack("<I4s", len(text), b"JSON") + text
            + struct.pack("<I4s", len(blob), b"BIN\0") + bytes(blob)
        )  # fmt: skip


def _linear(color: tuple[int, int, int]) -> list[float]:
    """sRGB 0…255 to linear 0…1, which glTF expects of factors."""
    srgb = np.asarray(color) / 255.0
    values = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return [round(float(v), 6) for v in values]


def _normals(points: NDArray[Any], faces: NDArray[np.int64]) -> NDArray[Any]:
    a, b, c = (points[faces[:, n]].astype(np.float64) for n in range(3))
    face = np.cross(b - a, c - a)
    out = np.stack(
        [np.bincount(faces.reshape(-1), np.repeat(face[:, axis], 3), minlength=len(points)) for axis in range(3)],
        axis=1,
    )
    length = np.linalg.norm(out, axis=1, keepdims=True)
    out = np.where(length > 0, out / np.where(length > 0, length, 1.0), (0.0, 1.0, 0.0))
    return out.astype("<f4")
