"""Surfaces against analytic truth, on anisotropic, oblique and left-handed grids; and what happens on bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slice3d
from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.surface import SurfaceSettings, check, surface, surfaces
from slice3d.surface.fractions import fraction, is_partial_volume, plane_distance
from slice3d.volume import Segmentation
from tests.surface.shapes import Shape, all_shapes, ellipsoid, sample, torus, tube

THIN, THICK3, THICK5 = (1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.8, 0.8, 5.0)
# smaller than the benchmark's, to keep the tests quick
SMALL = (ellipsoid(22, 15, 18), torus(16, 6.5), tube(5.0))


def segmented(shape: Shape, spacing: tuple[float, float, float], *, seed: int, probability: bool) -> Segmentation:
    part, grid = sample(shape, spacing, seed=seed, parts=4, rotate=seed % 2 == 1)
    labels = (part >= 0.5).astype(np.uint8)
    return Segmentation(labels, grid, {1: "liver"}, probabilities={"liver": part} if probability else {})


def errors(shape: Shape, mesh: Mesh) -> tuple[float, float]:
    """(area-weighted mean distance of the surface from the truth in mm, relative volume error)."""
    corner = mesh.vertices[mesh.faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    distance = shape.distance(corner.mean(axis=1))
    return float((distance * area).sum() / area.sum()), mesh.volume_mm3 / shape.volume_mm3 - 1


# the last tube is thinner than two thick slices, where no voxel is inside it as a whole: it is left to 3 mm
@pytest.mark.parametrize(
    ("shape", "spacing", "seed"),
    [
        (SMALL[0], THIN, 3),
        (SMALL[0], THICK5, 3),
        (SMALL[1], THIN, 3),
        (SMALL[1], THICK3, 2),
        (SMALL[1], THICK5, 2),
        (SMALL[2], THIN, 2),
        (SMALL[2], THICK3, 3),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_partial_volume_is_met_to_a_twentieth_of_a_voxel(
    shape: Shape, spacing: tuple[float, float, float], seed: int
) -> None:
    mesh = surface(segmented(shape, spacing, seed=seed, probability=True), "liver")
    mean, volume = errors(shape, mesh)
    voxel = float(np.prod(spacing)) ** (1 / 3)
    assert mean <= 0.05 * voxel
    assert abs(volume) <= 0.003
    assert check(mesh, wall=False).passed


@pytest.mark.parametrize("shape", SMALL, ids=lambda s: s.name)
def test_binary_masks_at_one_millimetre(shape: Shape) -> None:
    mesh = surface(segmented(shape, THIN, seed=5, probability=False), "liver")
    mean, volume = errors(shape, mesh)
    assert mean <= 0.15
    assert abs(volume) <= 0.01
    assert check(mesh, wall=False).passed


@pytest.mark.parametrize("shape", all_shapes(), ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [4, 5])
def test_thick_slices_beat_marching_cubes_by_half_and_keep_the_volume(shape: Shape, seed: int) -> None:
    """Turned, and upright, where the torus fills four slices only and its volume comes from how it closes."""
    from skimage.measure import marching_cubes

    segmentation = segmented(shape, THICK5, seed=seed, probability=False)
    mesh = surface(segmentation, "liver")
    mean, volume = errors(shape, mesh)
    vertices, faces, _, _ = marching_cubes(np.pad(segmentation.labels, 1).astype(np.float32), 0.5)
    peer = Mesh(segmentation.grid.to_world(vertices - 1), faces)
    assert mean <= 0.5 * errors(shape, peer)[0]
    # where the ends of a vessel lie between two slices is not in the labels
    assert abs(volume) <= (0.015 if shape.name == "branching tube" else 0.01)
    assert check(mesh, wall=False).passed


@pytest.mark.parametrize("seed", [1, 3, 5])
@pytest.mark.parametrize("shape", [torus(18, 5), torus(18, 6.5)], ids=["thin", "thicker"])
def test_rings_of_two_or_three_thick_slices_keep_their_volume(shape: Shape, seed: int) -> None:
    part, grid = sample(shape, THICK5, seed=seed, parts=4)
    labels = (part >= 0.5).astype(np.uint8)
    assert 2 <= labels.any(axis=(0, 1)).sum() <= 3
    mesh = surface(Segmentation(labels, grid, {1: "liver"}), "liver")
    assert abs(errors(shape, mesh)[1]) <= 0.08
    assert check(mesh, wall=False).passed


def test_a_flat_end_between_two_slices_lies_halfway() -> None:
    """Where no slice shows the body closing, its end is as likely to be near the one slice as near the other."""
    labels = np.zeros((50, 60, 12), dtype=np.uint8)
    labels[6:42, 8:50, 4:8] = 1
    grid = Grid.from_spacing(labels.shape, THICK5)
    mesh = surface(Segmentation(labels, grid, {1: "liver"}), "liver")
    inner = np.abs(mesh.vertices[:, :2] - grid.to_world((23.5, 28.5, 0))[:2]).max(axis=1) < 6
    ends = mesh.vertices[inner][:, 2] / 5.0
    low, high = ends[ends < 5.5], ends[ends > 5.5]
    assert low.mean() == pytest.approx(3.5, abs=0.15)
    assert high.mean() == pytest.approx(7.5, abs=0.15)


def test_topology_is_that_of_the_body() -> None:
    reports = [check(surface(segmented(s, THICK3, seed=2, probability=False), "liver"), wall=False) for s in SMALL]
    assert [r.genus for r in reports] == [0, 1, 0]
    assert [r.components for r in reports] == [1, 1, 1]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), mirror=st.booleans(), order=st.permutations([0, 1, 2]))
def test_faces_look_outwards_and_vertices_lie_in_the_patient(seed: int, mirror: bool, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation)) * (-1 if mirror else 1)
    affine = np.eye(4)
    affine[:3, :3] = (rotation * (0.9, 1.3, 4.0))[:, order]
    affine[:3, 3] = rng.normal(scale=300, size=3)
    labels = np.zeros((15, 17, 13), dtype=np.uint8)
    labels[4:9, 5:12, 3:8] = 3
    grid = Grid(labels.shape, affine)
    mesh = surface(Segmentation(labels, grid, {3: "spleen"}), "spleen")
    assert mesh.volume_mm3 == pytest.approx(175 * grid.voxel_volume_mm3, rel=0.12)
    centre = grid.to_world((6, 8, 5))
    assert np.linalg.norm(mesh.vertices.mean(axis=0) - centre) < 1.0
    assert check(mesh, wall=False).passed


def test_a_structure_at_the_border_is_closed_flat_with_a_finding() -> None:
    labels = np.zeros((20, 24, 9), dtype=np.uint8)
    labels[5:15, 6:18, 4:] = 1
    grid = Grid.from_spacing(labels.shape, (1, 1, 3), (0, 0, 0))
    for segmentation in (
        Segmentation(labels, grid, {1: "liver"}),
        Segmentation(labels, grid, {1: "liver"}, probabilities={"liver": labels.astype(np.float32)}),
    ):
        mesh = surface(segmentation, "liver")
        assert [f.code for f in mesh.findings] == ["closed-at-field-of-view"]
        assert "field of view (upper end)" in mesh.findings[0].message
        assert mesh.bounds_mm[1, 2] == pytest.approx(8.5 * 3, abs=0.1)
        assert check(mesh, wall=False).passed
        assert mesh.volume_mm3 == pytest.approx(
            float(labels.sum()) * 3, rel=0.05 if segmentation.probabilities == {} else 1e-3
        )


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("spacing", [THIN, THICK3, THICK5])
def test_the_volume_is_kept_at_the_border_and_nothing_passes_it(
    spacing: tuple[float, float, float], rotate: bool
) -> None:
    part, whole = sample(SMALL[0], spacing, seed=3, rotate=rotate)
    low, high = (0, 0, part.shape[2] // 2), (part.shape[0] // 2 + 3, *part.shape[1:])
    part = part[: high[0], :, low[2] :]
    grid = whole.crop(low, high)
    segmentation = Segmentation((part >= 0.5).astype(np.uint8), grid, {1: "liver"}, probabilities={"liver": part})
    for used in (True, False):
        mesh = surface(segmentation, "liver", settings=SurfaceSettings(use_probabilities=used))
        counted = (part if used else segmentation.labels).sum(dtype=float) * grid.voxel_volume_mm3
        assert mesh.volume_mm3 == pytest.approx(counted, rel=1e-4 if used or spacing == THIN else 0.015)
        index = grid.to_index(mesh.vertices)
        assert index[:, 0].max() == pytest.approx(part.shape[0] - 0.5, abs=1e-3)
        assert index[:, 2].min() == pytest.approx(-0.5, abs=1e-3)
        assert check(mesh, wall=False).passed


def test_single_voxel_and_thin_sheet_survive() -> None:
    for spacing in (THIN, (0.7, 0.9, 4.0)):
        labels = np.zeros((9, 11, 10), dtype=np.uint8)
        labels[4, 5, 6] = 1
        labels[2:8, 2:9, 2] = 2
        grid = Grid.from_spacing(labels.shape, spacing)
        for name in ("voxel", "sheet"):
            mesh = surface(Segmentation(labels, grid, {1: "voxel", 2: "sheet"}), name)
            assert len(mesh.faces) >= 8
            assert mesh.volume_mm3 > 0
            assert check(mesh, wall=False).passed


def test_empty_structure_is_a_finding() -> None:
    segmentation = Segmentation(
        np.zeros((4, 5, 6), np.uint8), Grid.from_spacing((4, 5, 6), THIN), {1: "liver", 2: "aorta"}
    )
    mesh = surface(segmentation, "liver")
    assert not len(mesh.faces)
    assert [f.code for f in mesh.findings] == ["empty-structure"]
    assert [len(m.faces) for m in surfaces(segmentation).values()] == [0, 0]
    with pytest.raises(InputError, match="no structure 'livr'"):
        surface(segmentation, "livr")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 255.0])
def test_probabilities_that_are_none_give_one_line(bad: float) -> None:
    part = np.zeros((6, 7, 8), dtype=np.float32)
    part[2:4, 2:5, 2:5] = 1
    part[0, 0, 0] = bad
    grid = Grid.from_spacing(part.shape, THIN)
    segmentation = Segmentation(np.zeros(part.shape, np.uint8), grid, {1: "liver"}, probabilities={"liver": part})
    with pytest.raises(InputError) as caught:
        surface(segmentation, "liver")
    assert "\n" not in str(caught.value)


def test_fading_network_output_is_contoured_at_a_half() -> None:
    grid = Grid.from_spacing((60, 60, 60), THIN)
    index = np.stack(np.meshgrid(*(np.arange(60),) * 3, indexing="ij"), axis=-1)
    distance = 18.3 - np.linalg.norm(index - (29.6, 30.2, 28.9), axis=-1)
    part = (1 / (1 + np.exp(-distance / 1.5))).astype(np.float32)
    assert not is_partial_volume(part)
    mesh = surface(Segmentation((part > 0.5).astype(np.uint8), grid, {1: "x"}, probabilities={"x": part}), "x")
    radius = np.linalg.norm(mesh.vertices - (29.6, 30.2, 28.9), axis=1)
    assert np.abs(radius - 18.3).max() < 0.05


def test_the_same_input_gives_the_same_bytes() -> None:
    one, two = (surface(segmented(SMALL[1], THICK3, seed=2, probability=False), "liver") for _ in range(2))
    assert one.vertices.tobytes() == two.vertices.tobytes()
    assert one.faces.tobytes() == two.faces.tobytes()


def test_small_parts_go_only_when_asked() -> None:
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    labels[5:30, 5:30, 5:30] = 1
    labels[12:15, 12:15, 12:15] = 0
    labels[34:37, 34:37, 34:37] = 1
    segmentation = Segmentation(labels, Grid.from_spacing(labels.shape, THIN), {1: "liver"})
    whole = check(surface(segmentation, "liver"), wall=False)
    assert (whole.components, whole.cavities) == (2, 1)
    mesh = surface(segmentation, "liver", settings=SurfaceSettings(min_fragment_mm3=100, min_cavity_mm3=100))
    cleaned = check(mesh, wall=False)
    assert (cleaned.components, cleaned.cavities) == (1, 0)
    assert {f.code for f in mesh.findings} == {"small-fragments-removed", "small-cavities-removed"}


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda n: np.linalg.norm(n) > 1e-2), st.floats(0.01, 0.99)
)
def test_plane_distance_inverts_the_fraction(normal: list[float], part: float) -> None:
    unit = np.abs(normal) / np.linalg.norm(normal)
    widths = (unit * (0.8, 1.1, 5.0))[None]
    distance = plane_distance(np.array([part]), widths)
    assert fraction(distance, widths)[0] == pytest.approx(part, abs=2e-3)


def test_fraction_of_an_oblique_plane_by_counting() -> None:
    normal, size = np.array([0.36, 0.48, 0.8]), np.array([1.0, 2.0, 3.0])
    axis = (np.arange(60) + 0.5) / 60 - 0.5
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1) * size
    for offset in (-1.2, -0.3, 0.0, 0.7):
        counted = float((points @ normal <= offset).mean())
        assert fraction(np.array([offset]), (normal * size)[None])[0] == pytest.approx(counted, abs=2e-3)


def test_the_package_can_be_called_whatever_was_imported_before() -> None:
    segmentation = segmented(SMALL[0], (2.0, 2.0, 4.0), seed=2, probability=False)
    assert len(slice3d.surface(segmentation, "liver").faces) > 100
    assert slice3d.surface.check(slice3d.surface(segmentation, "liver"), wall=False).passed


@pytest.mark.parametrize(
    "bad", [{"smoothing_mm": -1.0}, {"resolution_mm": 0.0}, {"target_triangles": 3}, {"max_error_mm": float("nan")}]
)
def test_settings_refuse_nonsense(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SurfaceSettings(**bad)  # type: ignore[arg-type]
