from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.samples import anatomy
from slice3d.samples.solids import Solid

_RADIUS = st.floats(3, 60)
_PLACE = st.floats(-40, 40)
_SCALE = st.floats(0.5, 2)


@given(r=st.tuples(_RADIUS, _RADIUS, _RADIUS), c=st.tuples(_PLACE, _PLACE, _PLACE))
@settings(max_examples=20, deadline=None)
def test_ellipsoid_volume_is_the_closed_form(r: tuple[float, float, float], c: tuple[float, float, float]) -> None:
    assert Solid(c, r).volume_mm3() == pytest.approx(4 / 3 * math.pi * math.prod(r), rel=2e-4)


def test_cap_volume_is_the_closed_form() -> None:
    # Cap of height h of a sphere: pi h² (3r - h) / 3.
    r, h = 23.0, 7.0
    for axis in range(3):
        low = [-99.0, -99.0, -99.0]
        cap = Solid((0, 0, 0), (r, r, r)).between(axis, r - h, r + 1)
        assert cap.volume_mm3(low=low, high=(99, 99, 99)) == pytest.approx(math.pi * h * h * (3 * r - h) / 3, rel=3e-4)


@given(scale=st.tuples(_SCALE, _SCALE, _SCALE), shift=st.tuples(_PLACE, _PLACE, _PLACE), n=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_transformed_contains_exactly_the_transformed_points(
    scale: tuple[float, float, float], shift: tuple[float, float, float], n: int
) -> None:
    solid = (anatomy.liver(), anatomy.lung(1), anatomy.kidney(-1), anatomy.skeleton()[3], anatomy.skeleton()[-1])[n]
    rng = np.random.default_rng(n)
    low, high = solid.bounds()
    points = rng.uniform(low, high, (4000, 3))
    inside = solid.contains(points)
    assert 0 < inside.sum() < len(points)
    moved = solid.transformed(scale, shift)
    assert (moved.contains(points * scale + shift) == inside).mean() > 0.9995  # rounding at the very border
    assert moved.volume_mm3(steps=200) == pytest.approx(solid.volume_mm3(steps=200) * math.prod(scale), rel=1e-6)


@pytest.mark.parametrize("n", range(5))
def test_volume_agrees_with_counting_points(n: int) -> None:
    solid = (anatomy.liver(), anatomy.lung(1), anatomy.lung(-1), anatomy.skeleton()[-3], anatomy.skeleton()[-1])[n]
    low, high = solid.bounds()
    axes = [np.linspace(a, b, 181)[:-1] + (b - a) / 360 for a, b in zip(low, high, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    points = np.stack(np.broadcast_arrays(x, y, z), axis=-1)
    counted = solid.contains(points).mean() * np.prod(high - low)
    assert solid.volume_mm3() == pytest.approx(counted, rel=5e-3)


# Volumes that ORNL/TM-8381 prints for the adult (Cristy & Eckerman 1987; same figures in NUREG/CR-1159), ml.
@pytest.mark.parametrize(
    ("solids", "printed_ml"),
    [
        ([anatomy.liver()], 1830),
        ([anatomy.spleen()], 176),
        ([anatomy.kidney(1), anatomy.kidney(-1)], 288),
        ([anatomy.lung(1), anatomy.lung(-1)], 3380),
        (anatomy.skeleton()[1:13], 694),
        (anatomy.skeleton()[13:15], 606),
        (anatomy.skeleton()[15:], 202),
    ],
    ids=["liver", "spleen", "kidneys", "lungs", "ribs", "pelvis", "scapulae"],
)
def test_organs_have_the_published_volumes(solids: list[Solid], printed_ml: float) -> None:
    assert sum(s.volume_mm3() for s in solids) / 1000 == pytest.approx(printed_ml, rel=3e-3)


def test_volume_can_be_limited_to_a_field_of_view() -> None:
    ball = Solid((1, 2, 3), (10, 10, 10))
    half = ball.volume_mm3(low=(-99, 2, -99), high=(99, 99, 99))
    assert half == pytest.approx(ball.volume_mm3() / 2, rel=1e-3)
    assert ball.volume_mm3(low=(20, -99, -99), high=(99, 99, 99)) == 0
