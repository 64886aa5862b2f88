from __future__ import annotations

import pickle

import numpy as np
import pytest

from slice3d import Finding, Mesh, Segmentation, Volume
from slice3d.errors import GeometryError, InputError
from slice3d.volume import freeze
from tests.builders import oblique_grid

GRID = oblique_grid()


def _labels() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:3, 2:5, 3:9] = 1
    labels[2, 3, 4:6] = 2
    return labels


def test_volume_owns_its_array() -> None:
    data = np.zeros(GRID.shape, np.int16)
    volume = Volume(data, GRID, "CT")
    data[0, 0, 0] = 5
    assert volume.data[0, 0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        volume.data[0, 0, 0] = 1


def test_a_view_of_a_writable_array_is_copied() -> None:
    base = np.zeros((5, 7, 12), np.int16)
    view = base[:, :, 1:]
    view.flags.writeable = False
    volume = Volume(view, GRID)
    base[0, 0, 1] = 7
    assert volume.data[0, 0, 0] == 0


def test_freeze_hands_over_without_a_copy() -> None:
    data = np.zeros(GRID.shape, np.int16)
    assert Volume(freeze(data), GRID).data is data


def test_volume_describes_itself_and_pickles() -> None:
    volume = Volume(np.arange(5 * 7 * 11).reshape(GRID.shape), GRID, "MR", {"SliceThickness": 4.0})
    assert repr(volume) == "Volume(5×7×11, 0.7×1.3×4 mm, RAS, int64, MR)"
    again = pickle.loads(pickle.dumps(volume))
    assert np.array_equal(again.data, volume.data)
    assert again.grid == volume.grid
    assert dict(again.metadata) == {"SliceThickness": 4.0}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (np.zeros((5, 7, 10)), GeometryError),
        (np.zeros((5, 7)), GeometryError),
        (np.zeros(GRID.shape, dtype="U3"), InputError),
        (np.zeros(GRID.shape, dtype=complex), InputError),
    ],
)
def test_volume_refuses(data: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        Volume(data, GRID)


def test_groups_overlap_labels() -> None:
    seg = Segmentation(_labels(), GRID, {1: "liver", 2: "liver_tumor"}, {"liver": (1, 2)})
    assert seg.structures == ("liver", "liver_tumor")
    assert seg.mask("liver").sum() == 2 * 3 * 6
    assert seg.mask("liver_tumor").sum() == 2
    assert seg.volume_ml("liver_tumor") == pytest.approx(2 * 0.7 * 1.3 * 4 / 1000)
    with pytest.raises(InputError, match=r"no structure 'spleen'.*liver, liver_tumor"):
        seg.mask("spleen")


def test_segmentation_keeps_probabilities_and_findings() -> None:
    seg = Segmentation(_labels() > 0, GRID, {1: "liver"}, probabilities={"liver": np.ones(GRID.shape, np.float16)})
    assert seg.labels.dtype == np.uint8
    more = seg.with_findings([Finding("odd", "looks odd")])
    assert more.findings[0].to_dict()["severity"] == "warning"
    assert seg.findings == ()
    assert pickle.loads(pickle.dumps(more)).probabilities["liver"].shape == GRID.shape


@pytest.mark.parametrize("names", [{0: "air"}, {1: "liver", 2: "liver"}])
def test_segmentation_refuses_ambiguous_names(names: dict[int, str]) -> None:
    with pytest.raises(InputError):
        Segmentation(_labels(), GRID, names)


def test_segmentation_refuses_float_labels() -> None:
    with pytest.raises(InputError, match="integers"):
        Segmentation(_labels().astype(float), GRID, {1: "liver"})


def _tetrahedron(offset: float = 0.0) -> Mesh:
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 5.0]]) + offset
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    return Mesh(vertices, faces, "tetrahedron")


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_mesh_volume_is_exact_and_signed_also_far_from_the_origin(offset: float) -> None:
    mesh = _tetrahedron(offset)
    assert mesh.volume_mm3 == pytest.approx(5.0, rel=1e-6)
    assert Mesh(mesh.vertices, mesh.faces[:, ::-1]).volume_mm3 == pytest.approx(-5.0, rel=1e-6)


def test_mesh_area_and_bounds() -> None:
    mesh = _tetrahedron()
    slanted = np.linalg.norm(np.cross([-2, 3, 0], [-2, 0, 5])) / 2
    assert mesh.area_mm2 == pytest.approx(3 + 5 + 7.5 + slanted)
    assert mesh.bounds_mm.tolist() == [[0, 0, 0], [2, 3, 5]]
    assert repr(mesh).startswith("Mesh(tetrahedron: 4 vertices, 4 faces")


def test_mesh_refuses_bad_parts() -> None:
    with pytest.raises(InputError, match="0 to 4; expected 0 to 3"):
        Mesh(np.zeros((4, 3)), [[0, 1, 4]])
    with pytest.raises(InputError, match="NaN"):
        Mesh(np.full((3, 3), np.nan), [[0, 1, 2]])
    with pytest.raises(InputError, match="one per vertex"):
        Mesh(np.zeros((3, 3)), [[0, 1, 2]], scalars={"error_mm": np.zeros(2)})
    with pytest.raises(InputError, match="empty"):
        _ = Mesh(np.zeros((0, 3)), np.zeros((0, 3))).bounds_mm


def test_mesh_scalars_are_a_read_only_copy() -> None:
    values = np.arange(4.0)
    mesh = Mesh(_tetrahedron().vertices, _tetrahedron().faces, scalars={"error_mm": values})
    values[0] = 9.0
    assert mesh.scalars["error_mm"][0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        mesh.scalars["error_mm"][0] = 1.0
