"""Several stacks: what each sees, its adjoint, motion found in millimetres, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.superres import SliceProfile, UpsampleSettings, upsample
from slice3d.superres.implicit import FieldSettings, HashField, fit_field
from slice3d.superres.reconstruct import average, register, solve
from slice3d.superres.scene import lay_out, rigid, sample
from slice3d.superres.stack import make_stack
from slice3d.volume import Volume
from tests.builders import rotation
from tests.superres.phantoms import blobs

SIZE, STEP, THICKNESS = 60.0, 5.0, 4.0
TURN = rotation((11.0, -23.0, 37.0))
PIXEL = 1.5


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene_stack(axis: int, *, motion: tuple | None = None, thickness: float = THICKNESS) -> Volume:
    """Slices along `axis` of a 60 mm box of blobs, in an obliquely placed patient; `motion` moves the anatomy."""
    spacing = [PIXEL] * 3
    spacing[axis] = STEP
    shape = tuple(int(SIZE // s) for s in spacing)
    local = np.diag([*spacing, 1.0])
    points = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    profile, data = SliceProfile("gaussian", thickness), 0.0
    nodes = profile.quantile((np.arange(9) + 0.5) / 9)
    turn, shift = (np.eye(3), np.zeros(3)) if motion is None else motion
    centre = np.full(3, SIZE / 2)
    for node in nodes:
        at = points + node * np.eye(3)[axis]
        data = data + blobs((at - centre) @ turn.T + centre + shift, count=25, extent_mm=SIZE) / len(nodes)
    place = np.eye(4)
    place[:3, :3] = TURN
    place[:3, 3] = (40.0, -90.0, 12.0)
    return Volume(data, Grid(shape, place @ local), "MR", {"SliceThickness": thickness})


@pytest.fixture(scope="module")
def still() -> list[Volume]:
    return [scene_stack(axis) for axis in (2, 1, 0)]


def laid_out(volumes):
    axes = [int(np.argmax(v.grid.spacing_mm)) for v in volumes]
    return lay_out([make_stack(v, spacing_mm=PIXEL, axis=a, profile=None) for v, a in zip(volumes, axes, strict=True)])


def truth_on(grid: Grid) -> np.ndarray:
    world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    return blobs((world - (40.0, -90.0, 12.0)) @ TURN, count=25, extent_mm=SIZE)


def test_every_stack_sees_a_ramp_where_it_lies(still):
    lattice, views = laid_out(still)
    axes = [
        torch.arange(n) * float(s) + float(o)
        for n, s, o in zip(lattice.shape, lattice.step, lattice.origin, strict=True)
    ]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ramp = (2.0 * x - 3.0 * y + 0.5 * z).float()
    for view in views:
        seen = view.see(ramp, lattice)
        expected = view.points @ torch.tensor([2.0, -3.0, 0.5])
        deep = ((view.points > 8) & (view.points < SIZE - 14)).all(dim=1)
        assert deep.sum() > 50
        torch.testing.assert_close(seen[deep], expected[deep], atol=1e-2, rtol=0)


def test_the_frame_keeps_patient_positions(still):
    lattice, views = laid_out(still)
    world = still[1].grid.to_world((3, 4, 5))
    first = make_stack(still[0], spacing_mm=PIXEL, axis=2, profile=None)
    index = first.grid.to_index(world)
    n = int(np.ravel_multi_index((3, 4, 5), still[1].grid.shape))
    np.testing.assert_allclose(views[1].points[n].numpy() / lattice.step, index, atol=1e-4)


def test_gradient_of_seeing_is_the_adjoint(still):
    lattice, views = laid_out(still)
    view = views[2]
    view.pose = np.array([0.02, -0.03, 0.01, 1.0, -2.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(lattice.shape, generator=generator, requires_grad=True)
    other = torch.randn(len(view.values), generator=generator)
    seen = view.see(image, lattice)
    (seen * other).sum().backward()
    left, right = float((seen * other).sum().detach()), float((image.detach() * image.grad).sum())
    assert left == pytest.approx(right, rel=1e-3)


def test_three_stacks_beat_any_single_one(still):
    lattice, views = laid_out(still)
    single = upsample(still[0], spacing_mm=PIXEL, method="bspline")
    truth = truth_on(single.grid)
    joined = solve(views, lattice, average(views, lattice), iterations=6).numpy()
    inner = (slice(4, -4),) * 3

    def error(data: np.ndarray) -> float:
        return float(np.sqrt(np.mean((data - truth)[inner] ** 2)))

    assert error(joined) < 0.6 * error(np.asarray(single.data))


@pytest.mark.slow
def test_motion_between_stacks_is_found():
    turn = Rotation.from_rotvec(np.deg2rad([1.5, -2.0, 1.0])).as_matrix()
    shift = np.array([1.2, -0.8, 1.5])
    moved = [scene_stack(2), scene_stack(1, motion=(turn, shift)), scene_stack(0)]
    lattice, views = laid_out(moved)
    register(views, lattice)
    grid = make_stack(moved[0], spacing_mm=PIXEL, axis=2, profile=None).grid
    corners = views[1].points[:: len(views[1].points) // 50].numpy()
    found, offset = rigid(views[1].pose)
    placed = (corners - views[1].centre) @ found.T + views[1].centre + offset
    # the lattice's origin lies half a slice distance before the first slice along the first stack's normal
    before = grid.to_index(moved[0].grid.to_world((0, 0, 0))) * lattice.step
    centre = np.full(3, SIZE / 2) + before
    expected = (corners - centre) @ turn.T + centre + shift
    untouched = np.linalg.norm(corners - expected, axis=1).mean()
    left = np.linalg.norm(placed - expected, axis=1).mean()
    assert left < 0.35
    assert left < 0.2 * untouched
    _, drift = rigid(views[2].pose)
    assert np.linalg.norm(drift) < 0.3


def test_upsample_joins_stacks_and_says_so(still):
    progress: list[str] = []
    fine = upsample(
        still, spacing_mm=PIXEL, settings=UpsampleSettings(steps=8), progress=lambda stage, _: progress.append(stage)
    )
    assert fine.grid.spacing_mm == pytest.approx((PIXEL,) * 3)
    assert fine.synthesised.all()
    details = next(f for f in fine.findings if f.code == "superres").details
    assert details["method"] == "implicit"
    assert len(details["stacks"]) == 3
    assert details["stacks"][0]["motion_mm"] == 0
    assert max(row["motion_mm"] for row in details["stacks"]) < 0.5
    assert details["consistency_rms"] < 0.2 * np.asarray(fine.data).std()
    assert fine.uncertainty.min() >= 0
    assert {"registration", "implicit", "rendering", "reconstruction"} <= set(progress)


def test_one_stack_by_coordinate_network_is_consistent_and_repeats(still):
    runs = [
        upsample(still[0], spacing_mm=PIXEL, method="implicit", settings=UpsampleSettings(steps=6, self_check=False))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0].data, runs[1].data)
    details = next(f for f in runs[0].findings if f.code == "superres").details
    assert details["consistency_rms"] < 0.5
    assert details["training_steps"] == 6


def test_the_coordinate_network_fits_what_the_slices_saw(still):
    lattice, views = laid_out(still[:1])
    fitted = fit_field(views, lattice, settings=FieldSettings(steps=60, finest_mm=PIXEL, levels=6, batch=1024))
    rendered = fitted.render(lattice)
    seen = views[0].see(rendered, lattice)
    assert float((seen - views[0].values).std()) < 0.5 * float(views[0].values.std())


def test_hash_places_stay_in_their_own_level():
    field = HashField(np.array([70.0, 50.0, 90.0]), finest_mm=1.0, levels=4, log2_table=10)
    corner = torch.randint(0, 60, (500, 3), generator=torch.Generator().manual_seed(1))
    for level in range(4):
        index, weight = field._corners(level, corner, torch.rand(500, 3))
        assert int(index.min()) >= field.starts[level]
        assert int(index.max()) < field.starts[level + 1]
        torch.testing.assert_close(weight.sum(dim=1), torch.ones(500))


def test_sampling_hits_voxel_centres():
    lattice, _ = laid_out([scene_stack(2)])
    image = torch.randn(lattice.shape, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[3.0, 5.0, 7.0], [0.0, 0.0, 0.0]]) * torch.tensor(lattice.step.astype(np.float32))
    torch.testing.assert_close(sample(image, lattice, points), torch.stack([image[3, 5, 7], image[0, 0, 0]]))


def test_stacks_that_cannot_be_joined_are_refused(still):
    far = still[1].grid.affine.copy()
    far[:3, 3] += 300.0
    elsewhere = replace(still[1], grid=Grid(still[1].grid.shape, far))
    with pytest.raises(GeometryError, match="stack 2 sees 0%"):
        upsample([still[0], elsewhere], spacing_mm=PIXEL)
    with pytest.raises(InputError, match="different modality"):
        upsample([still[0], replace(still[1], modality="CT")], spacing_mm=PIXEL)
    with pytest.raises(InputError, match="'bspline' takes one stack"):
        upsample(still, spacing_mm=PIXEL, method="bspline")
    isotropic = Volume(np.zeros((20, 20, 20), np.float32), Grid((20, 20, 20), np.eye(4)), "MR")
    with pytest.raises(InputError, match="stack 2 is isotropic"):
        upsample([still[0], isotropic], spacing_mm=PIXEL)
