"""The print gate sees each defect, repair mends it, and measurements agree with geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.errors import InputError, QualityError
from slice3d.grid import Grid
from slice3d.mesh import Mesh
from slice3d.surface import (
    Limits,
    _vtk,
    annotate,
    check,
    cut,
    decimate,
    deviation,
    distance_between,
    intersect,
    measure,
    plane,
    remesh,
    repair,
    smooth,
    surface,
)  # fmt: skip
from slice3d.surface.intersect import self_intersections
from slice3d.volume import Segmentation, Volume


def box(size: tuple[float, float, float] = (2, 3, 5), at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    corner = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float) * size + at
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Mesh(corner, [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], name="box")


def ball(radius: float = 10.0, centre: tuple[float, float, float] = (14.0, 15.0, 16.0), spacing: float = 1.0) -> Mesh:
    n = int(2 * radius / spacing + 12)
    grid = Grid.from_spacing((n, n + 1, n + 2), (spacing,) * 3, np.asarray(centre) - radius - 5 * spacing)
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)) - centre
    steps = (np.arange(4) - 1.5) / 4 * spacing
    inside = [np.linalg.norm(np.add(points, (a, b, c)), axis=-1) <= radius for a in steps for b in steps for c in steps]
    part = np.mean(inside, axis=0).astype(np.float32)
    labels = (part > 0.5).astype(np.uint8)
    return surface(Segmentation(labels, grid, {1: "liver"}, probabilities={"liver": part}), "liver")


def joined(*meshes: Mesh) -> Mesh:
    offsets = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = [m.faces + o for m, o in zip(meshes, offsets, strict=False)]
    return Mesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces), name="both")


def test_a_box_passes_with_its_measures() -> None:
    report = check(box())
    assert report.passed
    assert (report.components, report.genus, report.cavities) == (1, 0, 0)
    assert report.minimum_wall_mm == pytest.approx(2.0, abs=1e-2)
    assert report.to_dict()["passed"] is True


def flipped() -> Mesh:
    faces = box().faces.copy()
    faces[3] = faces[3, ::-1]
    return Mesh(box().vertices, faces)


def thin() -> Mesh:
    """A box with an extra vertex on an edge: one face is a line."""
    whole = box()
    vertices = np.vstack([whole.vertices, whole.vertices[:2].mean(axis=0)])
    out = []
    for face in whole.faces.tolist():
        if {0, 1} <= set(face) and not any({0, 1} <= set(f) and 8 in f for f in out):
            n = next(n for n in range(3) if {face[n], face[(n + 1) % 3]} == {0, 1})
            a, b, c = face[n], face[(n + 1) % 3], face[(n + 2) % 3]
            out += [(a, 8, c), (8, b, c), (a, b, 8)]
        else:
            out.append(tuple(face))
    return Mesh(vertices, out)


DEFECTS = {
    "not closed": Mesh(box().vertices, box().faces[:-1]),
    "which side is out": flipped(),
    "inside out": Mesh(box().vertices, box().faces[:, ::-1]),
    "more than two faces": joined(box(), Mesh(box().vertices[[0, 1, 2]], [(0, 1, 2)])),
    "touch in a point": Mesh(
        np.vstack([box().vertices, box().vertices[1:] * -1]),
        np.vstack([box().faces, np.where(box().faces == 0, 0, box().faces + 7)[:, ::-1]]),
    ),
    "run through each other": joined(box(), box((1, 1, 9), (0.4, 0.7, -2))),
    "degenerate": thin(),
}


@pytest.mark.parametrize("reason", DEFECTS)
def test_each_defect_is_named_and_mended(reason: str) -> None:
    mesh = DEFECTS[reason]
    if reason == "more than two faces":
        mesh = Mesh(box().vertices, np.vstack([box().faces, [(0, 5, 3)]]))
    report = check(mesh, wall=False)
    assert not report.passed
    assert any(reason in r for r in report.reasons), report.reasons
    if reason == "more than two faces":
        return
    mended = repair(mesh)
    assert check(mended, wall=False).passed, check(mended, wall=False).reasons
    assert "mesh-repaired" in [f.code for f in mended.findings]
    if reason == "run through each other":
        assert mended.volume_mm3 == pytest.approx(30 + 9 - 5, rel=1e-6)
    elif reason != "touch in a point":
        assert mended.volume_mm3 == pytest.approx(30, rel=1e-6)


def test_a_sound_mesh_is_returned_as_it_is() -> None:
    whole = box()
    assert repair(whole) is whole


def test_nothing_to_repair_or_print() -> None:
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int), name="liver")
    assert check(nothing).reasons == ("no faces: there is nothing to print",)
    for work in (repair, measure, lambda m: decimate(m, target_triangles=10), lambda m: distance_between(m, box())):
        with pytest.raises(InputError, match="no faces"):
            work(nothing)
    with pytest.raises(QualityError):
        repair(Mesh(np.zeros((3, 3)), [(0, 1, 2)]))


def test_a_mesh_that_crosses_itself_is_made_anew() -> None:
    mesh = ball(8.0)
    vertices = mesh.vertices.copy()
    top = np.argmax(vertices[:, 2])
    vertices[top] += (0.0, 0.0, -25)  # a spike through the far side, its edges through the edges there
    broken = Mesh(vertices, mesh.faces, name="ball")
    assert check(broken, wall=False).self_intersections > 0
    mended = repair(broken)
    assert check(mended, wall=False).passed


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_crossings_agree_with_a_test_of_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.normal(size=(12, 1, 3)) * 1.5 + rng.normal(size=(12, 3, 3))
    mesh = Mesh(corner.reshape(-1, 3), np.arange(36).reshape(-1, 3))
    found = {tuple(sorted(p)) for p in self_intersections(mesh.vertices, mesh.faces).tolist()}
    expected = set()
    for a in range(12):
        for b in range(a + 1, 12):
            for one, two in ((corner[a], corner[b]), (corner[b], corner[a])):
                for n in range(3):
                    start, step = one[n], one[(n + 1) % 3] - one[n]
                    t, u, v = np.linalg.solve(
                        np.stack([-step, two[1] - two[0], two[2] - two[0]], axis=1), start - two[0]
                    )
                    if 0 < t < 1 and u > 0 and v > 0 and u + v < 1:
                        expected.add((a, b))
    assert found == expected


@pytest.mark.parametrize("rounded", [False, True])
def test_no_crossing_is_lost_among_what_is_sorted_out_first(rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crumpled triangles, rounded so that corners coincide and lie in others' planes; every pair tested at length."""
    rng = np.random.default_rng(8)
    corner = rng.normal(size=(120, 1, 3)) * 2.5 + rng.normal(size=(120, 3, 3)) * 1.5
    vertices, faces = np.unique((corner.round() if rounded else corner).reshape(-1, 3), axis=0, return_inverse=True)
    faces = faces.reshape(-1, 3)
    faces = faces[[len({*face}) == 3 for face in faces.tolist()]]
    found = self_intersections(vertices, faces)
    every = np.stack(np.triu_indices(len(faces), 1), axis=1)
    low, high = vertices[faces].min(axis=1), vertices[faces].max(axis=1)
    one, two = every.T
    every = every[((low[one] <= high[two]) & (low[two] <= high[one])).all(axis=1)]
    common = np.array([len({*a} & {*b}) for a, b in zip(faces[every[:, 0]], faces[every[:, 1]], strict=True)])
    monkeypatch.setattr(intersect, "_candidates", lambda *_: (every[common < 2], every[common >= 2]))
    expected = self_intersections(vertices, faces)
    assert len(expected) > 100
    assert {tuple(sorted(p)) for p in found.tolist()} == {tuple(sorted(p)) for p in expected.tolist()}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 7, 300]))
def test_edges_that_meet_edges_exactly(seed: int, shift: int) -> None:
    """Both faces cover the same piece of the line that they have in common, or pieces that end at one point of it."""
    rng = np.random.default_rng(seed)
    p, q, one, two = rng.normal(size=(4, 3)).round(6) + shift
    for start, end, crossing in ((p, q, True), (q, 2 * q - p, False), (p + 2 * (p - q), 2 * q - p, True)):
        corner = np.stack([one, 2 * p - one, 2 * q - one, two, 2 * start - two, 2 * end - two])
        found = self_intersections(corner, np.arange(6).reshape(2, 3))
        assert found.tolist() == ([[0, 1]] if crossing else [])


def test_edges_that_lie_in_a_face_cross_it_or_touch_it() -> None:
    axes = np.eye(3) * 0.4
    corner = np.concatenate([axes, -axes])
    faces = [(x, y, z) if (x < 3) ^ (y < 4) ^ (z < 5) else (x, z, y) for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    octahedron = Mesh(corner, faces, name="octahedron")
    under = box(at=(-1.1, -1.2, -5.0))
    assert check(joined(under, octahedron), wall=False).self_intersections >= 4
    for lifted in (0.4, 0.5):
        touching = joined(under, Mesh(np.add(corner, (0, 0, lifted)), faces))
        assert not len(self_intersections(touching.vertices, touching.faces))
    stacked = joined(under, box(at=(-1.1, -1.2, 0.0)), box((1, 1, 1), (-0.6, -0.6, 5.0)))
    assert not len(self_intersections(stacked.vertices, stacked.faces))


def test_limits_speak_up() -> None:
    report = check(box(), reference_volume_mm3=33.0, limits=Limits(wall_mm=2.5, drift=0.05, components=0))
    assert len(report.reasons) == 3
    assert report.volume_drift == pytest.approx(30 / 33 - 1)


def test_torus_and_cavity_are_counted() -> None:
    hollow = joined(box((9, 9, 9)), Mesh(box((2, 2, 2), (3, 3, 3)).vertices, box().faces[:, ::-1]))
    report = check(hollow)
    assert (report.components, report.cavities, report.genus) == (1, 1, 0)
    assert report.passed
    assert report.minimum_wall_mm == pytest.approx(3.0, abs=0.01)


def test_measurements_of_a_box() -> None:
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned *= np.sign(np.linalg.det(turned))
    mesh = Mesh(box((2, 3, 50)).vertices @ turned.T + (100, -40, 900), box().faces)
    found = measure(mesh)
    assert found.volume_ml == pytest.approx(0.3)
    assert found.area_mm2 == pytest.approx(2 * (6 + 100 + 150))
    assert found.diameter_mm == pytest.approx(np.sqrt(4 + 9 + 2500))
    assert found.extents_mm == pytest.approx((50, 3, 2))
    assert abs(np.dot(found.axes[0], turned[:, 2])) == pytest.approx(1.0)
    assert found.centroid_mm == pytest.approx(tuple(turned @ (1, 1.5, 25) + (100, -40, 900)))
    assert np.linalg.norm(np.subtract(*found.diameter_points_mm)) == pytest.approx(found.diameter_mm)


def test_distance_between_structures_with_its_points() -> None:
    tumour, vessel = ball(6.0), ball(4.0, (30.0, 15.0, 16.0))
    gap = distance_between(tumour, vessel)
    assert gap.distance_mm == pytest.approx(6.0, abs=0.2)
    assert gap.point_a_mm == pytest.approx((20, 15, 16), abs=0.6)
    assert gap.point_b_mm == pytest.approx((26, 15, 16), abs=0.6)
    back = distance_between(vessel, tumour)
    assert back.distance_mm == pytest.approx(gap.distance_mm, abs=1e-6)
    assert back.point_a_mm == pytest.approx(gap.point_b_mm, abs=1e-6)
    inside = distance_between(tumour, ball(2.0))
    assert inside.overlap
    assert inside.distance_mm == 0.0


def test_resection_volumes_add_up() -> None:
    mesh = ball(10.0)
    middle = measure(mesh).centroid_mm
    parts = cut(mesh, plane(middle, (1, 2, -0.5)))
    assert parts.resected_ml + parts.remnant_ml == pytest.approx(mesh.volume_ml, rel=1e-6)
    assert parts.resected_ml == pytest.approx(mesh.volume_ml / 2, rel=0.01)
    assert parts.area_mm2 == pytest.approx(np.pi * 100, rel=0.03)
    assert check(parts.resected, wall=False).closed
    assert (parts.resected.vertices @ (1, 2, -0.5)).min() >= np.dot(middle, (1, 2, -0.5)) - 1e-6
    missed = cut(mesh, plane((500, 0, 0), (1, 0, 0)))
    assert missed.resected_ml == 0
    with pytest.raises(InputError, match="not zero"):
        plane((0, 0, 0), (0, 0, 0))
    with pytest.raises(InputError, match="repair it first"):
        cut(DEFECTS["not closed"], plane((1, 1, 1), (1, 0, 0)))


def test_decimation_keeps_shape_volume_and_gate() -> None:
    mesh = ball(14.0)
    less = decimate(mesh, target_triangles=len(mesh.faces) // 10)
    assert len(less.faces) <= len(mesh.faces) // 9
    assert less.volume_mm3 == pytest.approx(mesh.volume_mm3, rel=1e-4)
    assert deviation(less, mesh)["mean_mm"] <= 0.1
    assert check(less, wall=False).passed
    bounded = decimate(mesh, max_error_mm=0.05)
    assert len(bounded.faces) < len(mesh.faces)
    assert deviation(bounded, mesh)["max_mm"] <= 0.05
    assert decimate(mesh, target_triangles=10**9) is mesh
    with pytest.raises(InputError, match="at least 4"):
        decimate(mesh, target_triangles=0)
    with pytest.raises(InputError, match="give at least one"):
        decimate(mesh)


def test_decimation_that_misses_its_target_says_so() -> None:
    """No ring can be made of four triangles; an error of a nanometre lets nothing go."""
    grid = Grid.from_spacing((40, 41, 16), (1, 1, 1))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1) - (19.6, 20.1, 7.3)
    inside = np.hypot(np.hypot(index[..., 0], index[..., 1]) - 12, index[..., 2]) < 4.5
    ring = surface(Segmentation(inside.astype(np.uint8), grid, {1: "ring"}), "ring")
    less = decimate(ring, target_triangles=4)
    report = check(less, wall=False)
    assert report.passed
    assert report.genus == 1
    assert "decimation-target-missed" in [f.code for f in less.findings]
    assert f"{len(less.faces)} triangles are left where 4 were asked for" in less.findings[-1].message
    mesh = ball(10.0)
    same = decimate(mesh, max_error_mm=1e-6)
    assert len(same.faces) == len(mesh.faces)
    assert [f.code for f in same.findings] == ["decimation-target-missed"]
    assert "decimation-target-missed" not in [f.code for f in decimate(mesh, target_triangles=400).findings]
    both = decimate(mesh, target_triangles=400, max_error_mm=0.05)  # whichever stops first is no miss
    assert "decimation-target-missed" not in [f.code for f in both.findings]


@pytest.mark.parametrize("wanted", [{"target_triangles": 400}, {"max_error_mm": 0.5}])
def test_decimation_that_leaves_no_face_is_not_taken(wanted: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = ball(10.0)
    nothing = np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)
    monkeypatch.setattr(_vtk, "arrays", lambda *_: nothing)
    out = decimate(mesh, **wanted)  # type: ignore[arg-type]
    assert len(out.faces) == len(mesh.faces)
    assert [f.code for f in out.findings] == ["decimation-target-missed"]


def test_smoothing_removes_short_ripples_and_keeps_long_ones() -> None:
    mesh = ball(20.0)
    radial = mesh.vertices - mesh.vertices.mean(axis=0)
    angle = np.arctan2(radial[:, 1], radial[:, 0])
    unit = radial / np.linalg.norm(radial, axis=1, keepdims=True)
    for waves, kept in ((2, True), (40, False)):  # wavelengths of about 60 and 3 mm
        rippled = Mesh(mesh.vertices + 0.4 * np.cos(waves * angle)[:, None] * unit, mesh.faces)
        out = smooth(rippled, cutoff_mm=12.0)
        assert out.volume_mm3 == pytest.approx(rippled.volume_mm3, rel=1e-5)
        equator = np.abs(unit[:, 2]) < 0.3
        centre = mesh.vertices.mean(axis=0)
        height = np.abs(np.linalg.norm(out.vertices - centre, axis=1) - 20.0)[equator].mean()
        assert (height > 0.2) == kept, height
        assert kept or height < 0.06, height
    with pytest.raises(InputError, match="positive"):
        smooth(mesh, cutoff_mm=0)


def test_remeshing_gives_even_triangles_on_the_same_body() -> None:
    mesh = ball(10.0)
    out = remesh(mesh, edge_mm=2.0)
    assert check(out, wall=False).passed
    assert out.volume_mm3 == pytest.approx(mesh.volume_mm3, rel=1e-3)
    assert deviation(out, mesh)["mean_mm"] < 0.1
    with pytest.raises(InputError, match="positive"):
        remesh(mesh, edge_mm=-1)


def test_scalars_come_from_the_volume_and_from_the_wall() -> None:
    mesh = ball(10.0)
    grid = Grid.from_spacing((30, 31, 32), (1, 1, 1))
    marked = np.zeros(grid.shape, dtype=bool)
    marked[:, :, 16:] = True
    volume = Volume(np.zeros(grid.shape, np.int16), grid, synthesised=marked)
    out = annotate(mesh, volume=volume, wall_thickness=True)
    above = mesh.vertices[:, 2] > 17
    assert (out.scalars["synthesised"][above] == 1).all()
    assert (out.scalars["synthesised"][mesh.vertices[:, 2] < 14] == 0).all()
    assert np.median(out.scalars["wall_thickness_mm"]) == pytest.approx(20, rel=0.05)
