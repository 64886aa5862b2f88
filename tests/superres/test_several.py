"""Several stacks: where they lie, exact adjoints, motion found where there is some and none where there is none, and a
better volume than any single stack gives. The stacks are computed from formulas, not by the code under test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.superres import SliceProfile, UpsampleSettings, upsample
from slice3d.superres.motion import register
from slice3d.superres.scene import Separable, Turned, View, coarser, resampled, rigid, slices_last, view_of
from slice3d.superres.several import prepare
from slice3d.superres.stack import make_stack
from slice3d.volume import Volume
from tests.builders import rotation
from tests.superres.phantoms import blobs

PIXEL, STEP, THICK, SIZE = 1.5, 5.0, 4.0, 66.0
CENTRE = np.array([40.0, -90.0, 12.0])
PLACE = rotation((11.0, -23.0, 37.0))
# columns: the directions of a stack's axes, slices last, before the whole scene is turned by PLACE
AXIAL, CORONAL, SAGITTAL = np.eye(3), np.eye(3)[:, [0, 2, 1]], np.eye(3)[:, [1, 2, 0]]
OBLIQUE = rotation((35.0, 0.0, 20.0)) @ CORONAL


def anatomy(world: np.ndarray) -> np.ndarray:
    """(…, 3) world mm → intensities."""
    return blobs((world - CENTRE) @ PLACE + SIZE / 2, count=40, extent_mm=SIZE)


def stack_of(
    axes: np.ndarray,
    *,
    pose: np.ndarray | None = None,
    scale: tuple[float, float] = (1.0, 0.0),
    sizes: tuple[float, float, float] = (SIZE, SIZE, SIZE),
    noise: float = 0.0,
    blank: bool = False,
) -> Volume:
    """Thick slices of `anatomy` as a stack with these axes measures it; its header knows nothing of `pose`."""
    shape = (int(sizes[0] / PIXEL), int(sizes[1] / PIXEL), int(sizes[2] / STEP))
    affine = np.eye(4)
    affine[:3, :3] = PLACE @ axes @ np.diag([PIXEL, PIXEL, STEP])
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape, affine)
    if blank:
        return Volume(np.zeros(shape, np.float32), grid, "MR", {"SliceThickness": THICK})
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    moved = rigid(np.zeros(6) if pose is None else pose, CENTRE)
    normal = grid.directions[:, 2]
    shares = (np.arange(9) + 0.5) / 9
    data = np.zeros(shape)
    for offset in SliceProfile("gaussian", THICK).quantile(shares):
        world = grid.to_world(index) + offset * normal
        data += anatomy(world @ moved[:3, :3].T + moved[:3, 3]) / len(shares)
    data = data * scale[0] + scale[1] + noise * np.random.default_rng(int(shape[0])).normal(size=shape)
    return Volume(data.astype(np.float32), grid, "MR", {"SliceThickness": THICK})


def scene(volumes: list[Volume]) -> tuple[Grid, list[View], tuple[float, float]]:
    stacks = [make_stack(volume, spacing_mm=PIXEL, axis=2, profile=None) for volume in volumes]
    lattice = slices_last(stacks[0].grid, 2)
    data = np.asarray(volumes[0].data)
    return lattice, [view_of(stack, CENTRE) for stack in stacks], (float(data.min()), float(np.ptp(data)))


def motion(seed: int, shift_mm: float = 2.0, turn_deg: float = 3.0) -> np.ndarray:
    a, b = np.random.default_rng(seed).normal(size=(2, 3))
    return np.concatenate([np.deg2rad(turn_deg) * a / np.linalg.norm(a), shift_mm * b / np.linalg.norm(b)])


def errors(view: View, true: np.ndarray) -> tuple[float, float]:
    """mm at the centre and degrees between a found pose and the true one."""
    turn = Rotation.from_rotvec(view.pose[:3]) * Rotation.from_rotvec(true[:3]).inv()
    return float(np.linalg.norm(view.pose[3:] - true[3:])), float(np.rad2deg(turn.magnitude()))


def details(volume: Volume, code: str) -> dict:
    return dict(next(finding for finding in volume.findings if finding.code == code).details)


@pytest.fixture(scope="module")
def still() -> list[Volume]:
    return [stack_of(axes) for axes in (AXIAL, CORONAL, SAGITTAL)]


def ramp_on(grid: Grid) -> np.ndarray:
    world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    return (world @ [2.0, -3.0, 0.5]).astype(np.float32)


@pytest.mark.parametrize("axes", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_every_stack_sees_a_ramp_where_it_lies(axes, small, moved):
    # a ramp is measured exactly at the slice's centre: anything else would shift anatomy
    lattice, (_, view), _ = scene([stack_of(AXIAL, blank=True), stack_of(axes, blank=True)])
    if moved:
        view = replace(view, pose=motion(3))
    if small:
        lattice, view = coarser(lattice, 3.1), view.coarser(3.1)
    seen = view.project(lattice).forward(ramp_on(lattice))
    place = (view.operator.slices_mm - view.operator.fine_mm[0]) / view.operator.step_mm
    steps = [np.arange(n, dtype=float) for n in seen.shape[:2]] + [place]
    world = view.frame.to_world(np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1))
    move = rigid(view.pose, view.centre)
    world = world @ move[:3, :3].T + move[:3, 3]
    index = lattice.to_index(world)
    margin = 9.0 / np.array(lattice.spacing_mm)
    deep = ((index > margin) & (index < np.array(lattice.shape) - 1 - margin)).all(axis=-1)
    deep[..., :2] = deep[..., -2:] = False  # what lies beyond a stack's own ends weighs in at the ends alone
    assert deep.sum() > 30
    np.testing.assert_allclose(seen[deep], (world @ [2.0, -3.0, 0.5])[deep], atol=0.02)


def test_a_coarser_stack_keeps_its_place(still):
    view = scene(still)[1][1]
    small = view.coarser(3.1)
    a, b, _ = small.slices.shape
    blocks = view.slices[: 2 * a, : 2 * b].reshape(a, 2, b, 2, -1).mean(axis=(1, 3))
    np.testing.assert_allclose(small.slices, blocks, rtol=1e-5)
    fine = view.operator.slices_mm[3] - view.operator.fine_mm[0]
    thick = small.operator.slices_mm[3] - small.operator.fine_mm[0]
    np.testing.assert_allclose(
        small.frame.to_world((2, 4, thick / small.operator.step_mm)),
        view.frame.to_world((4.5, 8.5, fine / view.operator.step_mm)),
        atol=1e-6,
    )


@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2, 3]))
@settings(max_examples=12, deadline=None)
def test_the_adjoint_is_the_exact_transpose(seed, kind):
    rng = np.random.default_rng(seed)
    volumes = [
        stack_of(AXIAL, sizes=(18.0, 21.0, 30.0), blank=True),
        stack_of([AXIAL, CORONAL, SAGITTAL, OBLIQUE][kind], sizes=(24.0, 18.0, 20.0), blank=True),
    ]
    lattice, (_, view), _ = scene(volumes)
    projector = replace(view, pose=motion(seed) * (kind % 2)).project(lattice)
    assert isinstance(projector, Turned if kind % 2 else Separable)
    x = rng.normal(size=lattice.shape).astype(np.float32)
    y = rng.normal(size=view.slices.shape).astype(np.float32)
    left = float(np.sum(projector.forward(x).astype(np.float64) * y))
    assert left == pytest.approx(float(np.sum(x.astype(np.float64) * projector.adjoint(y))), rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("axes", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
def test_matrices_and_sampling_see_the_same(still, axes):
    lattice, (_, view), _ = scene([still[0], stack_of(axes, blank=True)])
    fast = view.project(lattice)
    assert isinstance(fast, Separable)
    shape = (*view.slices.shape[:2], len(view.operator.fine_mm))
    slow = Turned(view.to_lattice(lattice), lattice.shape, shape, view.operator)
    image = np.random.default_rng(0).normal(size=lattice.shape).astype(np.float32)
    np.testing.assert_allclose(fast.forward(image), slow.forward(image), atol=2e-4)


def test_resampling_keeps_parabolas():
    coarse, fine = Grid((9, 11, 8), np.diag([3.0, 3.0, 3.0, 1.0])), Grid((12, 12, 12), np.diag([1.5, 1.5, 1.5, 1.0]))
    fine = Grid(fine.shape, fine.affine + np.array([[0, 0, 0, 3.2]] * 3 + [[0] * 4]))

    def parabola(grid):
        x, y, z = np.moveaxis(
            grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)), -1, 0
        )
        return (0.2 * x * x - 0.1 * y * y + 0.3 * z).astype(np.float32)

    inner = (slice(None, 10),) * 3
    np.testing.assert_allclose(resampled(parabola(coarse), coarse, fine)[inner], parabola(fine)[inner], atol=1e-3)


def test_no_motion_is_found_where_there_is_none(still):
    lattice, views, bounds = scene(still)
    for view in register(views, lattice, bounds).views:
        shift, turn = errors(view, np.zeros(6))
        assert shift < 0.2
        assert turn < 0.2
    rows = prepare(still, spacing_mm=PIXEL, profile=None, settings=UpsampleSettings()).rows
    assert all(row["moved_mm"] == row["turned_deg"] == 0 for row in rows)


@pytest.mark.parametrize("count", [2, 3])
def test_a_turn_that_cannot_be_seen_is_not_invented(count):
    # a ball looks the same however it is turned
    volumes = []
    for axes in (AXIAL, CORONAL, SAGITTAL)[:count]:
        blank = stack_of(axes, blank=True)
        index = np.stack(np.meshgrid(*map(np.arange, blank.grid.shape), indexing="ij"), axis=-1)
        radius = np.linalg.norm(blank.grid.to_world(index) - CENTRE - (2.0, 1.0, -3.0), axis=-1)
        volumes.append(replace(blank, data=(1000 / (1 + np.exp((radius - 20) / 2))).astype(np.float32)))
    lattice, views, bounds = scene(volumes)
    for view in register(views, lattice, bounds).views:
        shift, turn = errors(view, np.zeros(6))
        assert shift < 0.3
        assert turn < 1.0
    rows = prepare(volumes, spacing_mm=PIXEL, profile=None, settings=UpsampleSettings()).rows
    assert all(row["moved_mm"] == row["turned_deg"] == 0 for row in rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_motion_is_found(seed):
    true = [np.zeros(6), motion(seed), motion(seed + 100)]
    volumes = [stack_of(axes, pose=pose) for axes, pose in zip((AXIAL, CORONAL, SAGITTAL), true, strict=True)]
    lattice, views, bounds = scene(volumes)
    found = register(views, lattice, bounds)
    np.testing.assert_array_equal(found.views[0].pose, np.zeros(6))  # the first stack is the frame
    for view, pose in zip(found.views[1:], true[1:], strict=True):
        shift, turn = errors(view, pose)
        assert shift < 0.2
        assert turn < 0.2
    assert min(held_out.correlation for held_out in found.held_out) > 0.95


def test_motion_and_brightness_are_told_apart_in_noise():
    true = [np.zeros(6), motion(5), motion(6)]
    scales = [(1.0, 0.0), (1.6, 40.0), (0.7, -15.0)]
    volumes = [
        stack_of(axes, pose=pose, scale=scale, noise=20.0)
        for axes, pose, scale in zip((AXIAL, OBLIQUE, SAGITTAL), true, scales, strict=True)
    ]
    lattice, views, bounds = scene(volumes)
    found = register(views, lattice, bounds).views
    for view, pose, scale in zip(found[1:], true[1:], scales[1:], strict=True):
        shift, turn = errors(view, pose)
        assert shift < 0.3
        assert turn < 0.4
        assert view.scale[0] == pytest.approx(scale[0], rel=0.05)
    fixed = register(views[:2], lattice, bounds, scales=False).views
    assert fixed[1].scale == (1.0, 0.0)


def rmse(volume: Volume) -> float:
    world = volume.grid.to_world(np.stack(np.meshgrid(*map(np.arange, volume.grid.shape), indexing="ij"), axis=-1))
    return float(np.sqrt(np.mean(np.square(volume.data - anatomy(world))[5:-5, 5:-5, 5:-5])))


@pytest.mark.parametrize("moved", [False, True])
def test_three_stacks_beat_any_single_one_and_agree_with_all(still, moved):
    poses = [None, motion(8), motion(9)] if moved else [None] * 3
    volumes = [stack_of(axes, pose=pose) for axes, pose in zip((AXIAL, OBLIQUE, SAGITTAL), poses, strict=True)]
    stages: set[str] = set()
    joined = upsample(volumes, spacing_mm=PIXEL, progress=lambda stage, _: stages.add(stage))
    alone = [
        upsample(v, spacing_mm=PIXEL, method="bspline", settings=UpsampleSettings(self_check=False)) for v in still
    ]
    assert rmse(joined) < 0.5 * min(map(rmse, alone))
    assert {"registration", "reconstruction"} <= stages
    found = details(joined, "superres")
    assert found["method"] == "tv"
    assert len(found["stacks"]) == 3
    spread = float(np.asarray(volumes[0].data).std())
    for row in found["stacks"]:
        assert row["consistency_rms"] < 0.02 * spread
    assert (found["stacks"][1]["moved_mm"] > 1.5) == moved
    assert bool(details(joined, "superres-motion")["moved"]) == moved
    assert joined.grid.matches(alone[0].grid)
    assert 0.3 < joined.synthesised.mean() < 0.95
    assert not joined.synthesised[..., ~alone[0].synthesised[0, 0]].any()
    world = joined.grid.to_world(np.stack(np.meshgrid(*map(np.arange, joined.grid.shape), indexing="ij"), axis=-1))
    error = np.abs(joined.data - anatomy(world))[5:-5, 5:-5, 5:-5]
    assert np.mean(error < 2 * joined.uncertainty[5:-5, 5:-5, 5:-5]) > 0.9


def test_noise_is_not_reproduced(still):
    noisy = [stack_of(axes, noise=30.0) for axes in (AXIAL, CORONAL, SAGITTAL)]
    joined = upsample(noisy, spacing_mm=PIXEL)
    assert rmse(joined) < 0.8 * rmse(upsample(noisy[0], spacing_mm=PIXEL, method="bspline"))
    assert rmse(joined) < 1.3 * max(30.0, rmse(upsample(still, spacing_mm=PIXEL)))
    for row in details(joined, "superres")["stacks"]:
        assert row["noise"] == pytest.approx(30.0, rel=0.15)
        assert row["consistency_rms"] < 1.5 * row["noise"]


def test_two_stacks_and_repeatability(still):
    once, again = (upsample(still[:2], spacing_mm=PIXEL, method="tv") for _ in range(2))
    np.testing.assert_array_equal(once.data, again.data)
    one = upsample([still[0]], spacing_mm=PIXEL, method="bspline")
    assert rmse(once) < 0.75 * rmse(one)
    assert one.grid.matches(once.grid)


def test_slices_along_any_axis_of_the_first_stack(still):
    turned = replace(
        still[0],
        data=np.ascontiguousarray(still[0].data.transpose(2, 0, 1)),
        grid=Grid((still[0].grid.shape[2], *still[0].grid.shape[:2]), still[0].grid.affine[:, [2, 0, 1, 3]]),
    )
    plain = upsample([still[0], still[1]], spacing_mm=PIXEL)
    other = upsample([turned, still[1]], spacing_mm=PIXEL)
    np.testing.assert_allclose(other.data.transpose(1, 2, 0), plain.data, atol=1e-3 * np.ptp(plain.data))
    np.testing.assert_array_equal(other.synthesised.transpose(1, 2, 0), plain.synthesised)
    assert other.grid.shape == (plain.grid.shape[2], *plain.grid.shape[:2])


def test_a_smaller_stack_helps_where_it_is_and_harms_nowhere_else(still):
    small = stack_of(CORONAL, sizes=(45.0, 45.0, 40.0))
    joined = upsample([still[0], small], spacing_mm=PIXEL)
    alone = upsample(still[0], spacing_mm=PIXEL, method="tv")
    assert rmse(joined) < rmse(alone)
    inside = slices_last(joined.grid, 2)
    index = small.grid.to_index(
        inside.to_world(np.stack(np.meshgrid(*map(np.arange, inside.shape), indexing="ij"), axis=-1))
    )
    far = ((index < -6) | (index > np.array(small.grid.shape) + 5)).any(axis=-1)
    assert far.sum() > 1000
    difference = np.abs(joined.data - alone.data)[far]
    assert difference.mean() < 0.02 * float(np.asarray(still[0].data).std())


def test_stacks_of_something_else_are_told(still):
    rng = np.random.default_rng(1)
    from scipy import ndimage

    other = ndimage.gaussian_filter(rng.normal(size=still[1].data.shape), 2.0).astype(np.float32) * 1000
    joined = upsample([still[0], replace(still[1], data=other)], spacing_mm=PIXEL)
    finding = next(f for f in joined.findings if f.code == "superres-stacks-disagree")
    assert finding.severity == "warning"
    assert "stack 2" in finding.message


def test_stacks_that_cannot_be_joined_are_refused_in_one_line(still):
    def elsewhere(volume: Volume, mm: float) -> Volume:
        affine = volume.grid.affine.copy()
        affine[:3, 3] += mm
        return replace(volume, grid=Grid(volume.grid.shape, affine))

    few = replace(still[1], data=np.asarray(still[1].data)[..., :3], grid=still[1].grid.crop((0, 0, 0), (44, 44, 3)))
    flat = Volume(
        np.zeros((20, 20, 20), np.float32), Grid((20, 20, 20), still[0].grid.affine @ np.diag([1, 1, 0.3, 1]))
    )
    cases = [
        (
            [still[0], elsewhere(still[1], 300.0)],
            {},
            GeometryError,
            "stack 2 sees 0% of the first stack's field of view",
        ),
        ([still[0], replace(still[1], modality="CT")], {}, InputError, r"different modality \(CT, MR\)"),
        (
            still,
            {"method": "bspline"},
            InputError,
            "'bspline' takes one stack and was given 3; expected one of auto, tv",
        ),
        ([still[0], few], {}, InputError, "stack 2: the study has 3 slices; expected at least 4"),
        ([still[0], flat], {}, InputError, "stack 2 is isotropic"),
        ([], {}, InputError, "given list; expected one Volume"),
        ([still[0], np.zeros((4, 5, 6, 7))], {}, InputError, "given list; expected one Volume"),
    ]
    for volumes, options, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            upsample(volumes, spacing_mm=PIXEL, **options)
        assert "\n" not in str(caught.value)


def test_gaps_and_findings_name_their_stack(still):
    thin = replace(still[1], metadata={"SliceThickness": 1.0})
    joined = upsample([still[0], thin], spacing_mm=PIXEL)
    assert any(f.code == "superres-gap" and f.message.startswith("stack 2: gaps of 4.00 mm") for f in joined.findings)
