"""Every mesh writer against an independent reader, on an asymmetric body far from the origin."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np
import pytest

from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.io.meshes import MESH_READERS, MESH_WRITERS
from slice3d.io.meshes_basic import names_of
from slice3d.mesh import Mesh

LPS = np.array([-1.0, -1.0, 1.0])


def wedge(name: str = "liver", shift: tuple[float, float, float] = (40.0, -130.5, 812.25)) -> Mesh:
    """A tetrahedron with four different sides: any swapped or mirrored axis changes it."""
    vertices = np.array([(0, 0, 0), (10, 0, 0), (0, 20, 0), (0, 0, 45.5)], dtype=float) + shift
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    return Mesh(vertices, faces, name=name, scalars={"uncertainty": np.array([0.1, 0.2, 0.3, 0.4])})


PAIR = [wedge(), wedge("kidney_left", (-60.0, -20.0, 700.0))]


def write(suffix: str, mesh: Mesh | list[Mesh], folder: Path, **options: object) -> Path:
    path = folder / f"out{suffix}"
    MESH_WRITERS[suffix](mesh, path, **options)
    return path


@pytest.mark.parametrize("suffix", sorted(MESH_WRITERS))
def test_bytes_depend_on_the_mesh_only_and_nothing_temporary_stays(suffix: str, tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write(suffix, wedge(), folder)
        contents.append({p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
        assert not [p for p in folder.rglob("*") if ".part" in p.name]
    assert contents[0] == contents[1]
    assert all(contents[0].values())


@pytest.mark.parametrize("suffix", sorted(MESH_WRITERS))
def test_an_empty_mesh_is_refused_and_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match="no faces"):
        MESH_WRITERS[suffix](Mesh(np.zeros((0, 3)), np.zeros((0, 3), int), name="spleen"), path)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("suffix", sorted(MESH_READERS))
def test_our_readers_return_what_was_written(suffix: str, tmp_path: Path) -> None:
    (mesh,) = MESH_READERS[suffix](write(suffix, wedge(), tmp_path))
    assert mesh.volume_mm3 == pytest.approx(wedge().volume_mm3, rel=1e-4)
    np.testing.assert_allclose(mesh.bounds_mm, wedge().bounds_mm, atol=1e-4)


def test_stl_by_trimesh_and_vtk(tmp_path: Path) -> None:
    import trimesh
    from vtkmodules.vtkIOGeometry import vtkSTLReader

    path = write(".stl", wedge(), tmp_path)
    assert b"SPACE=LPS" in path.read_bytes()[:80]
    assert path.stat().st_size == 84 + 4 * 50
    loaded = trimesh.load(path)
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(wedge().volume_mm3, rel=1e-4)  # positive: the mirror to LPS is a rotation
    np.testing.assert_allclose(loaded.vertices.max(0), (wedge().vertices * LPS).max(0), atol=1e-3)
    reader = vtkSTLReader()
    reader.SetFileName(str(path))
    reader.Update()
    assert reader.GetOutput().GetNumberOfPolys() == 4


@pytest.mark.skipif(shutil.which("admesh") is None, reason="Debian package admesh is not installed")
def test_stl_by_admesh(tmp_path: Path) -> None:
    path = write(".stl", wedge(), tmp_path)
    text = subprocess.run(["admesh", str(path)], capture_output=True, text=True, check=True).stdout
    lines = {line.split(":")[0].strip(): line.split(":")[1].split() for line in text.splitlines() if ":" in line}
    assert lines["Number of parts"][0] == "1"
    assert float(text.split("Volume   :")[1].split()[0]) == pytest.approx(wedge().volume_mm3, rel=1e-3)
    assert lines["Total disconnected facets"][-1] == "0"
    assert lines["Degenerate facets"][0] == "0"
    assert lines["Facets reversed"][0] == "0"


def test_ply_by_trimesh_keeps_colours_and_vtk_keeps_scalars(tmp_path: Path) -> None:
    import trimesh

    path = write(".ply", wedge(), tmp_path)
    loaded = trimesh.load(path, process=False)
    np.testing.assert_allclose(loaded.vertices, wedge().vertices * LPS, atol=1e-9)
    assert loaded.volume == pytest.approx(wedge().volume_mm3)
    assert tuple(loaded.visual.vertex_colors[0][:3]) == (221, 130, 101)
    stored = loaded.metadata["_ply_raw"]["vertex"]["data"]["uncertainty"]
    np.testing.assert_allclose(np.ravel(stored), [0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_obj_and_mtl_by_vtk_and_trimesh(tmp_path: Path) -> None:
    import trimesh

    path = write(".obj", PAIR, tmp_path)
    scene = trimesh.load(path, split_object=True, group_material=False)
    volumes = sorted(g.volume for g in scene.geometry.values())
    assert volumes == pytest.approx(sorted(m.volume_mm3 for m in PAIR), rel=1e-6)
    material = (tmp_path / "out.mtl").read_text()
    assert "newmtl liver" in material
    assert f"Kd {221 / 255:.4f} {130 / 255:.4f} {101 / 255:.4f}" in material
    assert "mtllib out.mtl" in path.read_text()


def test_3mf_by_lib3mf(tmp_path: Path) -> None:
    lib3mf = pytest.importorskip("lib3mf")
    path = write(".3mf", PAIR, tmp_path)
    wrapper = lib3mf.get_wrapper()
    model = wrapper.CreateModel()
    reader = model.QueryReader("3mf")
    reader.SetStrictModeActive(True)
    reader.ReadFromFile(str(path))
    assert reader.GetWarningCount() == 0
    assert model.GetUnit() == lib3mf.ModelUnit.MilliMeter
    objects = model.GetMeshObjects()
    found = {}
    while objects.MoveNext():
        item = objects.GetCurrentMeshObject()
        assert item.IsManifoldAndOriented()
        points = np.array([tuple(v.Coordinates) for v in item.GetVertices()])
        resource, index, has = item.GetObjectLevelProperty()
        assert has
        color = model.GetBaseMaterialGroupByID(resource).GetDisplayColor(index)
        found[item.GetName()] = (points, (color.Red, color.Green, color.Blue))
    assert set(found) == {"liver", "kidney_left"}
    np.testing.assert_allclose(found["liver"][0], wedge().vertices * LPS, atol=1e-4)
    assert found["kidney_left"][1] == anatomy.color("kidney_left")


def test_glb_by_trimesh_is_in_metres_upright_and_named(tmp_path: Path) -> None:
    import trimesh

    path = write(".glb", PAIR, tmp_path)
    scene = trimesh.load(path)
    assert set(scene.geometry) == {"liver", "kidney_left"}
    liver = scene.geometry["liver"]
    assert liver.volume == pytest.approx(wedge().volume_mm3 * 1e-9, rel=1e-4)
    # the sharp tip points to superior: +Y; the body lies on the patient's right: -X
    assert np.ptp(liver.vertices[:, 1]) == pytest.approx(0.0455, rel=1e-4)
    assert liver.vertices[:, 0].max() == pytest.approx(-0.040, rel=1e-4)
    assert liver.vertices[:, 2].min() == pytest.approx(-0.1305, rel=1e-4)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_ply_obj_and_glb_by_vtk(suffix: str, tmp_path: Path) -> None:
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkFiltersCore import vtkMassProperties
    from vtkmodules.vtkIOGeometry import vtkGLTFReader, vtkOBJReader
    from vtkmodules.vtkIOPLY import vtkPLYReader

    reader = {".ply": vtkPLYReader, ".obj": vtkOBJReader, ".glb": vtkGLTFReader}[suffix]()
    reader.SetFileName(str(write(suffix, wedge(), tmp_path)))
    reader.Update()
    data = reader.GetOutputDataObject(0)
    while data.IsA("vtkMultiBlockDataSet"):
        data = data.GetBlock(0)
    unit = 1000.0 if suffix == ".glb" else 1.0
    expected = wedge().vertices * LPS
    if suffix == ".glb":
        expected = wedge().vertices @ np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]).T
    found = vtk_to_numpy(data.GetPoints().GetData()) * unit
    np.testing.assert_allclose(np.unique(found.round(2), axis=0), np.unique(expected.round(2), axis=0), atol=0.011)
    assert data.GetNumberOfPolys() == 4
    volume = vtkMassProperties()
    volume.SetInputData(data)
    assert volume.GetVolume() * unit**3 == pytest.approx(wedge().volume_mm3, rel=1e-3)
    if suffix == ".ply":
        assert data.GetPointData().GetScalars().GetTuple3(0) == (221, 130, 101)


def test_glb_container_follows_the_specification(tmp_path: Path) -> None:
    raw = write(".glb", PAIR, tmp_path).read_bytes()
    magic, version, total, length, kind = struct.unpack("<4sIII4s", raw[:20])
    assert (magic, version, total, kind) == (b"glTF", 2, len(raw), b"JSON")
    document = json.loads(raw[20 : 20 + length])
    assert length % 4 == 0
    for accessor in document["accessors"]:
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= document["buffers"][0]["byteLength"]
    factor = document["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"]
    assert factor[0] == pytest.approx(((221 / 255 + 0.055) / 1.055) ** 2.4, abs=1e-5)


def test_vtp_by_vtk_keeps_scalars_and_frame(tmp_path: Path) -> None:
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    path = write(".vtp", wedge(), tmp_path)
    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    data = reader.GetOutput()
    np.testing.assert_allclose(vtk_to_numpy(data.GetPoints().GetData()), wedge().vertices * LPS)
    np.testing.assert_allclose(vtk_to_numpy(data.GetPointData().GetArray("uncertainty")), [0.1, 0.2, 0.3, 0.4])
    assert data.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "LPS"
    with pytest.raises(InputError, match="one structure"):
        MESH_WRITERS[".vtp"](PAIR, path)


def test_vtm_by_vtk(tmp_path: Path) -> None:
    from vtkmodules.vtkIOXML import vtkXMLMultiBlockDataReader

    path = write(".vtm", PAIR, tmp_path)
    reader = vtkXMLMultiBlockDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    blocks = reader.GetOutput()
    assert blocks.GetNumberOfBlocks() == 2
    assert [blocks.GetBlock(n).GetNumberOfPolys() for n in range(2)] == [4, 4]
    assert blocks.GetMetaData(1).Get(blocks.NAME()) == "kidney_left"


def scene_nodes(text: str) -> ET.Element:
    root = ET.fromstring(text)
    ids = {e.get("id") for e in root}
    for model in root.iter("Model"):
        assert model.get("displayNodeRef") in ids
        assert model.get("storageNodeRef") in ids
    return root


def test_slicer_scene_names_files_colours_and_folders(tmp_path: Path) -> None:
    path = write(".mrml", [*PAIR, wedge("bone")], tmp_path)
    root = scene_nodes(path.read_text())
    for storage in root.iter("ModelStorage"):
        assert (tmp_path / storage.get("fileName", "")).is_file()
        assert storage.get("coordinateSystem") == "LPS"
    colors = [d.get("color") for d in root.iter("ModelDisplay")]
    assert colors[0] == f"{221 / 255:.4f} {130 / 255:.4f} {101 / 255:.4f}"
    folders = {
        item.get("name"): [c.get("name") for c in item]
        for item in root.iter("SubjectHierarchyItem")
        if item.get("type") == "Folder"
    }
    assert folders == {"bone": ["bone"], "organ": ["liver", "kidney_left"]}


def test_slicer_bundle_holds_the_scene_and_its_files(tmp_path: Path) -> None:
    path = write(".mrb", PAIR, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        root = scene_nodes(archive.read("out/out.mrml").decode())
    assert all(f"out/{s.get('fileName')}" in names for s in root.iter("ModelStorage"))


@pytest.mark.parametrize("kind", ["stl", "obj"])
def test_encapsulated_dicom_by_pydicom(kind: str, tmp_path: Path) -> None:
    import pydicom

    path = write(".dcm", wedge(), tmp_path, kind=kind)
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID.name == f"Encapsulated {kind.upper()} Storage"
    assert dataset.Modality == "M3D"
    assert dataset.MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    assert dataset.AnatomicRegionSequence[0].CodeValue == "10200004"
    assert dataset.MIMETypeOfEncapsulatedDocument == f"model/{kind}"
    (mesh,) = MESH_READERS[".dcm"](path)
    assert mesh.volume_mm3 == pytest.approx(wedge().volume_mm3, rel=1e-4)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="Debian package dicom3tools is not installed")
@pytest.mark.parametrize("kind", ["stl", "obj"])
@pytest.mark.parametrize("name", ["liver", "kidney_left", "thing"])
def test_encapsulated_dicom_by_dciodvfy(kind: str, name: str, tmp_path: Path) -> None:
    import pydicom

    path = write(".dcm", wedge(name), tmp_path, kind=kind)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    if kind == "obj" and "Information Object Not found" in done.stderr:
        # This dicom3tools is older than Supplement 217; the OBJ object has the modules of the STL one, so its twin is tried.
        twin = pydicom.dcmread(path)
        twin.SOPClassUID = twin.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.3"
        twin.MIMETypeOfEncapsulatedDocument = "model/stl"
        twin.save_as(path)
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert "EncapsulatedSTL" in done.stderr + done.stdout
    assert not [line for line in done.stderr.splitlines() if line.startswith("Error")], done.stderr


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".stl", b""),
        (".stl", b"\0" * 80 + b"\xff\xff\xff\x00" + b"\0" * 50),
        (".stl", b"solid x\nfacet\nvertex 1 2\n"),
        (".obj", b"v 1 2 3\n"),
        (".obj", b"v 1 2 3\nf 1 2 3\n"),
        (".obj", b"v 1 2 zebra\n"),
        (".vtp", b"hello"),
        (".vtp", b'<?xml version="1.0"?><VTKFile type="PolyData"><PolyData>'),
        (".dcm", b"no dicom at all"),
    ],
)
def test_damaged_files_give_one_line(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        MESH_READERS[suffix](path)
    assert "\n" not in str(caught.value)


def test_names_are_safe_and_different() -> None:
    meshes = [wedge(n) for n in ("Liver", "liver", "a/b: <c>", "../../etc", "", "żółw")]
    names = names_of(meshes)
    assert len({n.lower() for n in names}) == len(names)
    assert all("/" not in n and "<" not in n and not n.startswith(".") for n in names)


def test_nan_in_an_stl_is_refused(tmp_path: Path) -> None:
    path = write(".stl", wedge(), tmp_path)
    raw = bytearray(path.read_bytes())
    raw[96:100] = struct.pack("<f", float("nan"))
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="NaN"):
        MESH_READERS[".stl"](path)
