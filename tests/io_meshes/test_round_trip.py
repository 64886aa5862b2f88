"""What passes the print gate passes it again when it is read back, from every format, by an independent reader or ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.grid import Grid
from slice3d.io.meshes import MESH_READERS, MESH_WRITERS
from slice3d.mesh import Mesh
from slice3d.surface import check, decimate, repair, surface, surfaces
from slice3d.volume import Segmentation


def by_trimesh(path: Path) -> Mesh:
    import trimesh

    # `process` joins vertices at one place, as slicing programs do
    loaded = trimesh.load(path, process=True, force="mesh")
    assert loaded.is_watertight
    assert loaded.is_winding_consistent
    return Mesh(loaded.vertices * (1000.0 if path.suffix == ".glb" else 1.0), loaded.faces)


def by_lib3mf(path: Path) -> Mesh:
    lib3mf = pytest.importorskip("lib3mf")
    model = lib3mf.get_wrapper().CreateModel()
    model.QueryReader("3mf").ReadFromFile(str(path))
    objects = model.GetMeshObjects()
    assert objects.MoveNext()
    item = objects.GetCurrentMeshObject()
    assert item.IsManifoldAndOriented()
    points = np.array([tuple(v.Coordinates) for v in item.GetVertices()])
    return Mesh(points, np.array([tuple(t.Indices) for t in item.GetTriangleIndices()]))


def by_ours(path: Path) -> Mesh:
    (mesh,) = MESH_READERS[path.suffix](path)
    return mesh


READERS: dict[tuple[str, str], Callable[[Path], Mesh]] = {
    **{(suffix, "ours"): by_ours for suffix in MESH_READERS},
    **{(suffix, "trimesh"): by_trimesh for suffix in (".stl", ".obj", ".ply", ".glb")},
    (".3mf", "lib3mf"): by_lib3mf,
}


def touching() -> Segmentation:
    """Blocks that touch along edges and in corners, 0.9 m from the origin, where float32 is coarse."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 3, size=(4, 4, 3)).astype(np.uint8)
    labels = np.pad(coarse.repeat(3, 0).repeat(2, 1).repeat(2, 2), 2)
    return Segmentation(labels, Grid.from_spacing(labels.shape, (0.7, 0.7, 1.0), (900, -620, 777)), {1: "a", 2: "b"})


def body() -> Mesh:
    index = np.stack(np.meshgrid(*map(np.arange, (34, 31, 29)), indexing="ij"), axis=-1)
    radius = np.linalg.norm((index - (16, 15, 14)) * (1, 1.1, 1.2), axis=-1)
    labels = (radius + 1.5 * np.sin(index[..., 0] * 0.7) < 12).astype(np.uint8)
    labels[3:31, 14:16, 13:15] = 1
    grid = Grid.from_spacing(labels.shape, (0.8, 0.8, 1.1), (-310, 95, -1150))
    return surface(Segmentation(labels, grid, {1: "liver"}), "liver")


def crossing() -> Mesh:
    one = body()
    other = Mesh(np.add(one.vertices, (7.3, 2.1, 3.7)), one.faces)
    return Mesh(
        np.concatenate([one.vertices, other.vertices]), np.concatenate([one.faces, other.faces + len(one.vertices)])
    )


MESHES: dict[str, Callable[[], Mesh]] = {
    "shared surfaces of touching blocks": lambda: surfaces(touching())["a"],
    "one structure of touching blocks": lambda: surface(touching(), "b"),
    "decimated to a tenth": lambda: decimate(body(), target_triangles=len(body().faces) // 10),
    "decimated within an error": lambda: decimate(body(), max_error_mm=0.4),
    "repaired touching blocks": lambda: repair(joined_at_equal_points(surfaces(touching())["a"])),
    "repaired crossing bodies": lambda: repair(crossing()),
}  # fmt: skip


def joined_at_equal_points(mesh: Mesh) -> Mesh:
    """The parts of a mesh brought into touch again."""
    _, index = np.unique(mesh.vertices.round(2), axis=0, return_inverse=True)
    first = np.zeros(index.max() + 1, dtype=int)
    first[index.reshape(-1)] = np.arange(len(index.reshape(-1)))
    return Mesh(mesh.vertices[first], index.reshape(-1)[mesh.faces])


@pytest.mark.parametrize("what", MESHES)
def test_what_passes_the_gate_passes_again_when_read_back(what: str, tmp_path: Path) -> None:
    mesh = MESHES[what]()
    report = check(mesh, wall=False)
    assert report.passed, report.reasons
    for suffix, reader in READERS:
        path = tmp_path / f"{reader}{suffix}"
        MESH_WRITERS[suffix](mesh, path)
        found = check(READERS[suffix, reader](path), wall=False)
        assert found.passed, (suffix, reader, found.reasons)
        assert (found.components, found.genus, found.faces) == (report.components, report.genus, report.faces)
        assert found.volume_mm3 == pytest.approx(report.volume_mm3, rel=1e-4)


def test_touching_parts_fail_and_are_mended() -> None:
    mesh = joined_at_equal_points(surfaces(touching())["a"])
    assert not check(mesh, wall=False).passed
    doubled = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3))
    for broken in (mesh, doubled):
        mended = repair(broken)
        assert check(mended, wall=False).passed
        assert np.abs(np.sort(mended.bounds_mm) - np.sort(mesh.bounds_mm)).max() < 0.01
        assert mended.volume_mm3 == pytest.approx(mesh.volume_mm3, rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_the_verdict_is_the_same_for_a_mesh_and_its_stl(seed: int) -> None:
    from slice3d.io.meshes_basic import stl_bytes, stl_mesh

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size=(6, 5, 7)).astype(np.uint8)
    grid = Grid(labels.shape, np.array([[-0.6, 0.1, 0, -400], [0.1, 0.9, 0, 300], [0, 0, 1.5, 900], [0, 0, 0, 1]]))
    for mesh in surfaces(Segmentation(labels, grid, {1: "a", 2: "b"})).values():
        if not len(mesh.faces):
            continue
        here, there = check(mesh, wall=False), check(stl_mesh(stl_bytes(mesh), "x"), wall=False)
        assert (here.manifold, here.coincident_vertices, here.components) == (there.manifold, 0, there.components)
        assert here.passed == there.passed, (here.reasons, there.reasons)
