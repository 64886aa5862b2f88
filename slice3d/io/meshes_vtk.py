"""VTK XML files (VTP, VTM) with scalars per vertex, and 3D Slicer scenes (.mrml with files, .mrb)."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.io.files import atomic, text_path
from slice3d.io.meshes_basic import LPS, color_of, meshes_of, names_of
from slice3d.io.meshes_scene import zip_bytes
from slice3d.mesh import Mesh


def vtp_bytes(mesh: Mesh) -> bytes:
    """A vtkPolyData XML file in LPS millimetres; says so in the field array `SPACE`, which 3D Slicer also writes."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints, vtkStringArray
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
    from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

    data, points, cells = vtkPolyData(), vtkPoints(), vtkCellArray()
    coordinates = np.ascontiguousarray(mesh.vertices * LPS)
    points.SetDataTypeToDouble()
    points.SetData(numpy_to_vtk(coordinates))
    offsets = numpy_to_vtkIdTypeArray(np.arange(0, 3 * len(mesh.faces) + 1, 3, dtype=np.int64), deep=True)
    cells.SetData(offsets, numpy_to_vtkIdTypeArray(mesh.faces.reshape(-1).copy(), deep=True))
    data.SetPoints(points)
    data.SetPolys(cells)
    for name, values in mesh.scalars.items():
        numbers = np.asarray(values)
        array = numpy_to_vtk(
            np.ascontiguousarray(numbers.astype(np.uint8) if numbers.dtype.kind == "b" else numbers), deep=True
        )
        array.SetName(name)
        data.GetPointData().AddArray(array)
    for key, text in (("SPACE", "LPS"), ("name", mesh.name), ("color", " ".join(map(str, color_of(mesh))))):
        entry = vtkStringArray()
        entry.SetName(key)
        entry.InsertNextValue(text)
        data.GetFieldData().AddArray(entry)
    writer: Any = vtkXMLPolyDataWriter()
    writer.SetInputData(data)
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()
    writer.SetCompressorTypeToZLib()
    writer.WriteToOutputStringOn()
    writer.Write()
    out = writer.GetOutputString()
    return out if isinstance(out, bytes) else out.encode("latin-1")


def write_vtp(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """One structure with its scalars. Raises `InputError` for several: those are a .vtm."""
    meshes = meshes_of(mesh)
    if len(meshes) > 1:
        raise InputError(f"a .vtp holds one structure, found {len(meshes)}; write .vtm, or one file each")
    content = vtp_bytes(meshes[0])
    with atomic(path) as part:
        part.write_bytes(content)


def write_vtm(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """Several structures: `path` lists one .vtp each in the folder beside it that has its name."""
    meshes = meshes_of(mesh)
    names = names_of(meshes)
    folder = path.with_suffix("")
    blocks = "".join(
        f'    <DataSet index="{n}" name={quoteattr(name)} file={quoteattr(f"{folder.name}/{name}.vtp")}/>\n'
        for n, name in enumerate(names)
    )
    text = (
        '<?xml version="1.0"?>\n<VTKFile type="vtkMultiBlockDataSet" version="1.0" byte_order="LittleEndian">\n'
        f"  <vtkMultiBlockDataSet>\n{blocks}  </vtkMultiBlockDataSet>\n</VTKFile>\n"
    )
    _write_folder(folder, {f"{name}.vtp": vtp_bytes(m) for m, name in zip(meshes, names, strict=True)})
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Writes all files beside `folder`, then puts each into it."""
    if not folder.parent.is_dir():
        raise InputError(f"folder {folder.parent.name!r} does not exist; expected one to write into; create it first")
    part = folder.parent / f".{folder.name[:40]}.{secrets.token_hex(6)}.part"
    try:
        part.mkdir()
        for name, content in files.items():
            (part / name).write_bytes(content)
        folder.mkdir(exist_ok=True)
        for name in files:
            (part / name).replace(folder / name)
    except OSError as error:
        raise InputError(
            f"cannot write into {folder.name}: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_vtp(path: Path) -> list[Mesh]:
    """One mesh with its scalars; LPS unless the field array `SPACE` says RAS. Raises `InputError` for a damaged file."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonCore import vtkObject
    from vtkmodules.vtkFiltersCore import vtkTriangleFilter
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    if not path.is_file() or b"PolyData" not in path.read_bytes()[:400]:
        raise InputError(f"{path.name} is not a VTK PolyData file; expected a .vtp; check the path")
    reader: Any = vtkXMLPolyDataReader()
    before = vtkObject.GetGlobalWarningDisplay()
    vtkObject.GlobalWarningDisplayOff()
    try:
        reader.SetFileName(text_path(path))
        reader.Update()
    finally:
        vtkObject.SetGlobalWarningDisplay(before)
    triangles = vtkTriangleFilter()
    triangles.SetInputData(reader.GetOutput())
    triangles.PassLinesOff()
    triangles.PassVertsOff()
    triangles.Update()
    data = triangles.GetOutput()
    if reader.GetErrorCode() or not data.GetNumberOfPolys():
        raise InputError(f"{path.name} is damaged or holds no surface; expected triangles; export it again")
    said = {key: _field(data, key) for key in ("SPACE", "name", "color")}
    vertices = vtk_to_numpy(data.GetPoints().GetData()).astype(np.float64) * (1.0 if said["SPACE"] == "RAS" else LPS)
    faces = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    found = [data.GetPointData().GetArray(n) for n in range(data.GetPointData().GetNumberOfArrays())]
    scalars = {a.GetName(): vtk_to_numpy(a).copy() for a in found if a is not None and a.GetNumberOfComponents() == 1}
    rgb = [int(v) for v in said["color"].split()] if re.fullmatch(r"\d+ \d+ \d+", said["color"]) else None
    color = (rgb[0], rgb[1], rgb[2]) if rgb else None
    return [Mesh(vertices, faces, name=said["name"] or path.stem, color=color, scalars=scalars)]


def _field(data: Any, key: str) -> str:
    array = data.GetFieldData().GetAbstractArray(key)
    return str(array.GetValue(0)) if array is not None and array.GetNumberOfValues() else ""


def scene_xml(meshes: Sequence[Mesh], names: Sequence[str], folder: str) -> str:
    """A MRML scene that shows each mesh in its colour, sorted into folders by kind of structure."""
    out = ['<MRML version="Slicer5.6.2" userTags="">']
    kinds: dict[str, list[tuple[int, str]]] = {}
    for n, (mesh, name) in enumerate(zip(meshes, names, strict=True), start=1):
        r, g, b = (c / 255.0 for c in color_of(mesh))
        structure = anatomy.STRUCTURES.get(anatomy.canonical(mesh.name))
        kinds.setdefault(structure.kind if structure else "other", []).append((n, name))
        refs = f"display:vtkMRMLModelDisplayNode{n};storage:vtkMRMLModelStorageNode{n};"
        out += [
            f'<ModelDisplay id="vtkMRMLModelDisplayNode{n}" name={quoteattr(name + " display")} '
            f'color="{r:.4f} {g:.4f} {b:.4f}" opacity="1" visibility="true" backfaceCulling="false"></ModelDisplay>',
            f'<ModelStorage id="vtkMRMLModelStorageNode{n}" name={quoteattr(name + " storage")} '
            f'fileName={quoteattr(f"{folder}/{name}.vtp")} useCompression="1" coordinateSystem="LPS"></ModelStorage>',
            f'<Model id="vtkMRMLModelNode{n}" name={quoteattr(mesh.name or name)} references="{refs}" '
            f'displayNodeRef="vtkMRMLModelDisplayNode{n}" storageNodeRef="vtkMRMLModelStorageNode{n}"></Model>',
        ]
    folders, item = [], 3
    for kind, members in sorted(kinds.items()):
        item += 1
        head = item
        entries = []
        for n, name in members:
            item += 1
            entries.append(
                f'<SubjectHierarchyItem id="{item}" dataNode="vtkMRMLModelNode{n}" parentItem="{head}" '
                f'type="Models" name={quoteattr(name)} expanded="true"></SubjectHierarchyItem>'
            )
        folders.append(
            f'<SubjectHierarchyItem id="{head}" name="{kind}" parentItem="3" type="Folder" expanded="true" '
            f'attributes="Level^Folder|">{"".join(entries)}</SubjectHierarchyItem>'
        )
    out.append(
        '<SubjectHierarchy id="vtkMRMLSubjectHierarchyNode1" name="SubjectHierarchy">'
        f'<SubjectHierarchyItem id="3" name="Scene" parentItem="0" type="" expanded="true">{"".join(folders)}'
        "</SubjectHierarchyItem></SubjectHierarchy>"
    )
    return "\n".join([*out, "</MRML>", ""])


def write_mrml(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """A 3D Slicer scene: `path`, and a folder of .vtp files beside it that has its name."""
    meshes = meshes_of(mesh)
    names = names_of(meshes)
    folder = path.with_suffix("")
    text = scene_xml(meshes, names, folder.name)
    _write_folder(folder, {f"{name}.vtp": vtp_bytes(m) for m, name in zip(meshes, names, strict=True)})
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_mrb(mesh: Mesh | Sequence[Mesh], path: Path) -> None:
    """A 3D Slicer scene and its files in one .zip, as Slicer bundles them."""
    meshes = meshes_of(mesh)
    names = names_of(meshes)
    top = names_of([Mesh(meshes[0].vertices, meshes[0].faces, name=path.stem)])[0]
    members = {f"{top}/{top}.mrml": scene_xml(meshes, names, "Data").encode()}
    members |= {f"{top}/Data/{name}.vtp": vtp_bytes(m) for m, name in zip(meshes, names, strict=True)}
    content = zip_bytes(members)
    with atomic(path) as part:
        part.write_bytes(content)
