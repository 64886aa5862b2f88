"""Organs that the edge of a CT's reconstruction cuts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slice3d.grid import Grid
from slice3d.inference.field_of_view import EDGE
from slice3d.inference.reliability import check_result
from slice3d.resample import apply_moves, axis_moves, reorient
from slice3d.volume import Segmentation, Volume

RADIUS, HEIGHT = 90.0, 12


def scan(
    *, organ_to_mm: float, blank: int = -2000, spacing: tuple[float, float] = (0.8, 4.0)
) -> tuple[Volume, Segmentation]:
    """A sixth of a ring of liver in a body wider than the circle of 90 mm that was reconstructed; 12 slices of it.

    organ_to_mm: outer radius of the liver. The patient lies askew by 12°.
    """
    n = int(200 / spacing[0])
    i, j, _ = np.indices((n, n, 20))
    x, y = ((at - (n - 1) / 2) * spacing[0] for at in (i, j))
    radius, angle = np.hypot(x, y), np.rad2deg(np.arctan2(y, x))
    labels = (radius > 40) & (radius < organ_to_mm) & (np.abs(angle - 25) < 30)
    labels[:, :, :4] = labels[:, :, 4 + HEIGHT :] = False
    rng = np.random.default_rng(1)
    image = np.where(labels, 110, 20) + rng.normal(0, 12, labels.shape)
    outside = radius > RADIUS
    image[outside], labels[outside] = blank, False
    turn = np.deg2rad(12)
    affine = np.diag([spacing[0], *spacing, 1.0])
    affine[:3, :3] = (
        np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]) @ affine[:3, :3]
    )
    grid = Grid(labels.shape, affine)
    return (
        Volume(np.rint(image).astype(np.int16), grid, modality="CT"),
        Segmentation(labels.astype(np.uint8), grid, {1: "liver"}),
    )


def contact(image: Volume, result: Segmentation, name: str = "liver") -> float:
    cut = [f for f in check_result(result, [name], {}, {}, image=image) if f.code == "organ-cut-by-field-of-view"]
    return float(cut[0].details["contact_cm2"].get(EDGE, 0.0)) if cut else 0.0


@pytest.mark.parametrize("orientation", ["RAS", "PIL", "SLA"])
@pytest.mark.parametrize("spacing", [(0.8, 4.0), (2.5, 2.5)])
def test_an_organ_that_the_circle_cuts_is_told_of(orientation: str, spacing: tuple[float, float]) -> None:
    image, result = scan(organ_to_mm=120, spacing=spacing)
    axes, flips = axis_moves(image.grid, orientation)
    image = reorient(image, orientation)
    result = Segmentation(apply_moves(result.labels, axes, flips), image.grid, result.names)
    expected = np.pi / 3 * RADIUS * HEIGHT * spacing[1] / 100
    assert contact(image, result) == pytest.approx(expected, rel=0.12)
    (finding,) = [f for f in check_result(result, ["liver"], {}, {}, image=image) if "cut" in f.code]
    assert finding.severity == "warning"
    assert "edge of the reconstruction" in finding.message
    # without the image nothing is known of it
    assert not [f for f in check_result(result, ["liver"], {}, {}) if "cut" in f.code]


def test_an_organ_inside_the_circle_is_whole_though_a_voxel_may_be_left_out_at_an_edge_that_cuts() -> None:
    image, result = scan(organ_to_mm=RADIUS - 8)
    assert contact(image, result) == 0
    image, result = scan(organ_to_mm=RADIUS - 1.5)
    assert contact(image, result) > 20


def test_air_around_a_patient_and_gas_within_are_no_edge() -> None:
    image, result = scan(organ_to_mm=RADIUS - 8, blank=-1000)
    gas = np.array(image.data)
    gas[(result.labels == 0) & (gas > -500)] = -1000  # as scans that were clipped have it: all of it the same value
    i, j, _ = np.indices(gas.shape)
    wall = np.hypot(i - 124.5, j - 124.5) * 0.8
    gas[(wall > RADIUS - 6) & (wall < RADIUS)] = 40  # not connected with what is outside
    assert contact(replace(image, data=gas), result) == 0


def test_only_ct_has_such_an_edge_and_only_air_varies() -> None:
    image, result = scan(organ_to_mm=120)
    assert contact(replace(image, modality="MR"), result) == 0, "background may have been masked"
    rng = np.random.default_rng(0)
    noisy = np.where(image.data == -2000, rng.normal(-1000, 15, image.data.shape), image.data).astype(np.int16)
    assert contact(replace(image, data=noisy), result) == 0


@pytest.mark.parametrize(
    ("name", "told"), [("kidneys", True), ("aorta", True), ("bone", False), ("body", False), ("thing", False)]
)
def test_what_may_lie_at_the_skin_is_not_judged(name: str, told: bool) -> None:
    image, result = scan(organ_to_mm=120)
    if name == "kidneys":
        named = replace(result, names={1: "kidney_left"}, groups={"kidneys": (1,)})
    else:
        named = replace(result, names={1: name})
    assert (contact(image, named, name) > 0) == told
