"""Organs that the edge of a CT's reconstruction cuts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.inference.field_of_view import EDGE, beside_circle
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


def contact(image: Volume, result: Segmentation, name: str = "liver", *, ct: bool = True) -> float:
    found = check_result(result, [name], {}, {}, image=image, ct=ct)
    cut = [f for f in found if f.code == "organ-cut-by-field-of-view"]
    return float(cut[0].details["contact_cm2"].get(EDGE, 0.0)) if cut else 0.0


@pytest.mark.parametrize("orientation", ["RAS", "PIL", "SLA"])
@pytest.mark.parametrize("spacing", [(0.8, 4.0), (0.98, 3.0), (2.5, 2.5)])
def test_an_organ_that_the_circle_cuts_is_told_of(orientation: str, spacing: tuple[float, float]) -> None:
    image, result = scan(organ_to_mm=120, spacing=spacing)
    expected = np.pi / 3 * RADIUS * HEIGHT * spacing[1] / 100
    axes, flips = axis_moves(image.grid, orientation)
    image = reorient(image, orientation)
    result = Segmentation(apply_moves(result.labels, axes, flips), image.grid, result.names)
    assert contact(image, result) == pytest.approx(expected, rel=0.08)
    (finding,) = [f for f in check_result(result, ["liver"], {}, {}, image=image, ct=True) if "cut" in f.code]
    assert finding.severity == "warning"
    assert "liver is cut off by the field of view on its circular edge (" in finding.message
    # without the image nothing is known of it
    assert not [f for f in check_result(result, ["liver"], {}, {}) if "cut" in f.code]


@pytest.mark.parametrize("spacing", [0.7, 0.8, 0.98, 1.5, 2.5])
@pytest.mark.parametrize(("left_out_mm", "cut"), [(1.5, True), (2.5, True), (8.0, False)])
def test_an_edge_cuts_though_a_network_left_out_what_touches_it(spacing: float, left_out_mm: float, cut: bool) -> None:
    image, result = scan(organ_to_mm=RADIUS - left_out_mm, spacing=(spacing, 3.0))
    expected = np.pi / 3 * RADIUS * HEIGHT * 3.0 / 100
    assert contact(image, result) == pytest.approx(expected if cut else 0, rel=0.08)


@pytest.mark.parametrize("shift", [(0, 0), (40, -25)])
def test_a_circle_that_the_image_shows_in_part_is_one(shift: tuple[int, int]) -> None:
    image, result = scan(organ_to_mm=120)
    part = tuple(slice(max(0, s), 250 + min(0, s)) for s in shift)
    grid = Grid(image.data[part].shape, image.grid.affine)
    cut = contact(
        replace(image, data=image.data[part], grid=grid), Segmentation(result.labels[part], grid, {1: "liver"})
    )
    assert cut == pytest.approx(np.pi / 3 * RADIUS * HEIGHT * 4.0 / 100, rel=0.05)


def test_blank_may_ring() -> None:
    image, result = scan(organ_to_mm=120)
    rng = np.random.default_rng(0)
    ringing = image.data + np.where(image.data == -2000, rng.integers(-1, 2, image.data.shape), 0)
    assert contact(replace(image, data=ringing.astype(np.float32)), result) > 40


def test_air_around_a_patient_and_gas_within_are_no_edge() -> None:
    image, result = scan(organ_to_mm=RADIUS - 8, blank=-1000)
    gas = np.array(image.data)
    gas[(result.labels == 0) & (gas > -500)] = -1000  # as scans that were clipped have it: all of it the same value
    assert contact(replace(image, data=gas), result) == 0


def test_a_mask_is_no_edge() -> None:
    """An organ cut out of its CT, the rest set to the value of air."""
    image, result = scan(organ_to_mm=RADIUS - 8, blank=-1000)
    assert contact(replace(image, data=np.where(result.labels, image.data, -1024)), result) == 0
    i, j, k = np.indices(image.data.shape)
    egg = ((i - 120) / 80) ** 2 + ((j - 126) / 55) ** 2 + ((k - 10) / 9) ** 2 < 1
    brain = Segmentation(egg.astype(np.uint8), image.grid, {1: "liver"})
    assert contact(replace(image, data=np.where(egg, 30, -1024)), brain) == 0


def test_only_ct_has_such_an_edge_and_only_air_varies() -> None:
    image, result = scan(organ_to_mm=120)
    assert contact(image, result, ct=False) == 0, "background may have been masked"
    rng = np.random.default_rng(0)
    noisy = np.where(image.data == -2000, rng.normal(-1000, 15, image.data.shape), image.data).astype(np.int16)
    assert contact(replace(image, data=noisy), result) == 0
    bright = np.where(image.data == -2000, 0, image.data)
    assert contact(replace(image, data=bright), result) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("value", [-1024, 0])
def test_padded_planes_are_no_part_of_the_field_of_view(axis: int, value: int) -> None:
    labels = np.zeros((30, 28, 26), np.uint8)
    labels[8:20, 8:20, 8:20] = 1
    image = np.random.default_rng(0).normal(40, 20, labels.shape).astype(np.int16)
    for planes in (np.moveaxis(array, axis, 0) for array in (image, labels)):
        planes[:10] = 0
    np.moveaxis(image, axis, 0)[:10] = value
    grid = Grid(labels.shape, np.diag([3.0, 3.0, 3.0, 1.0]))
    result, volume = Segmentation(labels, grid, {1: "liver"}), Volume(image, grid)
    (cut,) = [f for f in check_result(result, ["liver"], {}, {}, image=volume) if "cut" in f.code]
    assert cut.details["contact_cm2"] == {grid.end(axis, False): pytest.approx(144 * 9 / 100, abs=0.05)}
    # an organ that was masked begins with a small part of its first plane
    masked = Volume(np.where(labels, image, value).astype(np.int16), grid)
    assert not [f for f in check_result(result, ["liver"], {}, {}, image=masked) if "cut" in f.code]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("planes", [10, 20])
def test_padding_that_ends_in_a_straight_line_is_no_circle(axis: int, planes: int) -> None:
    labels = np.zeros((100, 100, 10), np.uint8)
    labels[20:80, 30:90] = 1
    image = np.where(labels, 40, np.random.default_rng(0).normal(-990, 15, labels.shape)).astype(np.int16)
    np.moveaxis(image, axis, 0)[:planes] = -1024
    grid = Grid(labels.shape, np.diag([2.0, 2.0, 3.0, 1.0]))
    assert contact(Volume(image, grid, modality="CT"), Segmentation(labels, grid, {1: "liver"})) == 0


@pytest.mark.parametrize(
    ("axes_mm", "spacing", "margin_mm"),
    [
        *(
            (axes, spacing, margin)
            for axes, spacing in (
                ((30, 26), 1.5),
                ((30, 24), 1.5),
                ((28, 22), 3.0),
                ((160, 140), 5.0),
                ((130, 115), 3.0),
                ((90, 80), 3.0),
            )
            for margin in (6, 60)
        ),
        ((70, 70), 1.0, 60),  # one that filled its slices could not be told from a reconstruction
    ],
)
def test_bodies_and_organs_in_air_of_one_value_are_no_edge(
    axes_mm: tuple[int, int], spacing: float, margin_mm: int
) -> None:
    """A kidney cut out of its CT, a body, a round phantom: what touches air is their own border."""
    shape = tuple(int(2 * (axis + margin_mm) / spacing) for axis in axes_mm)
    x, y = ((at - (n - 1) / 2) * spacing for at, n in zip(np.indices(shape), shape, strict=True))
    inside = ((x / axes_mm[0]) ** 2 + (y / axes_mm[1]) ** 2 < 1)[:, :, None] & np.ones(8, bool)
    image = np.where(inside, np.random.default_rng(0).normal(40, 10, inside.shape), -1024).astype(np.int16)
    grid = Grid(inside.shape, np.diag([spacing, spacing, 3.0, 1.0]))
    whole = Segmentation(inside.astype(np.uint8), grid, {1: "liver"})
    assert contact(Volume(image, grid, modality="CT"), whole) == 0


def test_another_grid_is_refused() -> None:
    image, result = scan(organ_to_mm=120)
    with pytest.raises(InputError, match="expected one grid"):
        beside_circle(replace(result, labels=result.labels[1:], grid=Grid((249, 250, 20), np.eye(4))), image)


@pytest.mark.parametrize(
    ("name", "told"),
    [("kidneys", True), ("Liver", True), ("aorta", True), ("bone", False), ("body", False), ("thing", False)],
)
def test_what_may_lie_at_the_skin_is_not_judged(name: str, told: bool) -> None:
    image, result = scan(organ_to_mm=120)
    if name == "kidneys":
        named = replace(result, names={1: "kidney_left"}, groups={"kidneys": (1,)})
    else:
        named = replace(result, names={1: name})
    assert (contact(image, named, name) > 0) == told
