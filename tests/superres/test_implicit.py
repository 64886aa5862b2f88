"""The coordinate network: it begins as its first estimate, fits what the slices saw, and repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slice3d.superres import UpsampleSettings, upsample
from slice3d.superres.implicit import Field, FieldSettings, fit_field
from tests.superres.phantoms import thick_volume, truth_and_slices
from tests.superres.test_several import AXIAL, CORONAL, OBLIQUE, PIXEL, details, motion, rmse, scene, stack_of


def trained() -> Field:
    """A small field whose perceptron says something."""
    start = np.random.default_rng(0).normal(size=(19, 33, 10)).astype(np.float32)
    field = Field(start, FieldSettings())
    torch.nn.init.normal_(field.perceptron[-1].weight, generator=torch.Generator().manual_seed(1))
    for grid in field.grids[1:]:
        grid.normal_(generator=torch.Generator().manual_seed(2))
    return field


def test_it_begins_as_its_first_estimate():
    start = np.random.default_rng(0).normal(size=(19, 33, 10)).astype(np.float32)
    np.testing.assert_allclose(Field(start, FieldSettings()).render(), start, atol=1e-5)


def test_windows_hold_all_that_their_points_touch():
    field = trained()
    rng = np.random.default_rng(3)
    whole = [(slice(None), *(slice(0, n) for n in grid.shape[1:])) for grid in field.grids]
    for _ in range(20):
        low = rng.uniform(-4, 15, 3)
        points = torch.from_numpy((low + rng.uniform(0, 9, (3, 4, 5, 3))).astype(np.float32))
        windows = field.windows(points)
        parts = [grid[window] for grid, window in zip(field.grids, windows, strict=True)]
        with torch.inference_mode():
            torch.testing.assert_close(
                field.sample(points, parts, windows), field.sample(points, field.grids, whole), atol=1e-4, rtol=1e-4
            )


def test_an_update_changes_nothing_outside_its_windows():
    field = trained()
    before = [grid.clone() for grid in field.grids]
    points = torch.rand(3, 3, 3, 3) * 4 + 2
    windows = field.windows(points)
    parts = [grid[window].clone().requires_grad_(True) for grid, window in zip(field.grids, windows, strict=True)]
    field.sample(points, parts, windows).square().mean().backward()
    field.update(windows, parts, 0.1)
    for grid, old, window in zip(field.grids, before, windows, strict=True):
        assert not torch.equal(grid[window], old[window])
        changed = (grid - old).abs()
        changed[window] = 0
        assert float(changed.max()) == 0


@pytest.mark.parametrize("pose", [np.zeros(6), motion(3)], ids=["still", "moved"])
def test_from_nothing_it_learns_what_the_slices_saw(pose):
    volumes = [stack_of(AXIAL), stack_of(OBLIQUE, pose=pose)]
    lattice, views, bounds = scene(volumes)
    views[1] = type(views[1])(views[1].slices, views[1].operator, views[1].frame, views[1].centre, pose)
    start = np.full(lattice.shape, 0.3, dtype=np.float32)
    field, steps = fit_field(views, lattice, bounds, start, settings=FieldSettings(steps=150, learning_rate=0.02))
    assert steps == 150
    image = field.render()
    for view in views:
        inside = view.inside(lattice)
        target = ((view.target - bounds[0]) / bounds[1])[inside]
        seen = view.project(lattice).forward(image)[inside]
        assert np.sqrt(np.mean((seen - target) ** 2)) < 0.5 * np.sqrt(np.mean((0.3 - target) ** 2))


def test_one_stack_repeats_exactly_agrees_and_is_as_good_as_its_start():
    truth, slices, _ = truth_and_slices((60, 52))
    chosen = UpsampleSettings(steps=12, self_check=False)
    once, again = (upsample(thick_volume(slices), spacing_mm=1.5, method="implicit", settings=chosen) for _ in range(2))
    np.testing.assert_array_equal(once.data, again.data)
    found = details(once, "superres")
    assert found["training_steps"] == 12
    assert found["consistency_rms"] < 0.1
    assert once.uncertainty is not None
    spline = upsample(thick_volume(slices), spacing_mm=1.5, method="bspline", settings=chosen)
    assert np.mean((once.data - truth) ** 2) < 0.75 * np.mean((spline.data - truth) ** 2)


def test_several_stacks_and_the_time_budget():
    volumes = [stack_of(AXIAL), stack_of(CORONAL, pose=motion(4))]
    stages: set[str] = set()
    joined = upsample(
        volumes,
        spacing_mm=PIXEL,
        method="implicit",
        settings=UpsampleSettings(minutes=0.1),
        progress=lambda stage, _: stages.add(stage),
    )
    found = details(joined, "superres")
    assert found["method"] == "implicit"
    assert found["training_steps"] >= 1
    assert found["stacks"][1]["moved_mm"] > 1.5
    assert {"registration", "reconstruction", "implicit", "rendering"} <= stages
    assert rmse(joined) < 0.75 * rmse(upsample(volumes[0], spacing_mm=PIXEL, method="bspline"))
