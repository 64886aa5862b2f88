"""The forward model: adjoint, means, widths, positions, and what a header says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.errors import InputError
from slice3d.superres import SliceProfile, estimate_profile, slice_operator
from slice3d.superres.profile import fine_positions, profile_from_header
from tests.superres.phantoms import blobs

operators = st.builds(
    lambda kind, width, step, slice_step, count: slice_operator(
        np.arange(count) * slice_step, fine_positions(count, slice_step, step), SliceProfile(kind, width)
    ),
    st.sampled_from(["gaussian", "rect"]),
    st.floats(0.5, 9.0),
    st.floats(0.4, 1.6),
    st.floats(1.7, 7.3),
    st.integers(2, 9),
)


@given(operators, st.integers(0, 2**31))
def test_adjoint_is_the_exact_transpose(operator, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, len(operator.fine_mm)))
    y = rng.normal(size=(3, len(operator.slices_mm)))
    assert np.sum(operator.forward(x) * y) == pytest.approx(np.sum(x * operator.adjoint(y)), rel=1e-12, abs=1e-12)


@given(operators)
def test_a_constant_stays_that_constant_and_weights_are_not_negative(operator):
    np.testing.assert_allclose(operator.forward(np.full((2, len(operator.fine_mm)), -731.5)), -731.5, rtol=1e-12)
    assert operator.matrix.min() >= 0


@pytest.mark.parametrize("kind", ["gaussian", "rect"])
def test_mean_of_a_volume_is_preserved_when_slices_touch(kind):
    fine = fine_positions(40, 4.0, 1.0)
    operator = slice_operator(np.arange(40) * 4.0, fine, SliceProfile(kind, 4.0))
    signal = np.zeros(len(fine))
    signal[60:100] = np.random.default_rng(0).normal(300, 50, 40)
    assert operator.forward(signal).sum() * 4.0 == pytest.approx(signal.sum() * 1.0, rel=2e-3)


def test_full_width_at_half_maximum_is_what_it_says():
    fine = np.arange(-30, 30, 0.01)
    for kind in ("gaussian", "rect"):
        weights = slice_operator([0.0], fine, SliceProfile(kind, 4.3)).matrix[0]
        above = fine[weights >= 0.5 * weights.max()]
        assert np.ptp(above) == pytest.approx(4.3, abs=0.03)


def test_a_ramp_is_measured_at_the_slice_centre():
    # symmetric profiles keep positions: anything else would shift anatomy
    operator = slice_operator(np.arange(8) * 5.0, fine_positions(8, 5.0, 1.0), SliceProfile("gaussian", 4.0))
    measured = operator.forward(10.0 * operator.fine_mm)
    np.testing.assert_allclose(measured[1:-1], 10.0 * operator.slices_mm[1:-1], atol=1e-2)


@given(st.integers(2, 30), st.floats(1.5, 8.0), st.floats(0.3, 1.5))
def test_fine_positions_hold_the_first_slice_and_stay_in_the_field_of_view(count, slice_step, step):
    fine = fine_positions(count, slice_step, step)
    assert np.abs(fine).min() < 1e-9
    assert fine[0] >= -slice_step / 2 - 1e-5
    assert fine[-1] <= (count - 0.5) * slice_step + 1e-5
    assert fine[-1] + step > (count - 0.5) * slice_step - 1e-5


@given(st.sampled_from(["gaussian", "rect"]), st.floats(0.01, 0.99))
@settings(max_examples=30)
def test_quantile_inverts_the_cumulative_weight(kind, share):
    profile = SliceProfile(kind, 3.7)
    assert float(profile.cumulative(profile.quantile(share))) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize(
    ("metadata", "width", "source"),
    [
        ({"SliceThickness": 3.0}, 3.0, "SliceThickness"),
        ({"SliceThickness": "3.0"}, 3.0, "SliceThickness"),
        ({}, 5.0, "assumed"),
        ({"SliceThickness": 0}, 5.0, "assumed"),
        ({"SliceThickness": None}, 5.0, "assumed"),
        ({"SliceThickness": "thin"}, 5.0, "assumed"),
        ({"SliceThickness": 60.0}, 5.0, "assumed"),
        ({"SliceThickness": float("nan")}, 5.0, "assumed"),
    ],
)
def test_width_from_the_header(metadata, width, source):
    profile, text = profile_from_header(metadata, 5.0)
    assert (profile.fwhm_mm, profile.source) == (width, source)
    assert text


@pytest.mark.parametrize(("kind", "width"), [("sinc", 4.0), ("gaussian", 0.0), ("rect", -1.0), ("rect", float("nan"))])
def test_bad_profiles_are_refused(kind, width):
    with pytest.raises(InputError, match="slice profile is"):
        SliceProfile(kind, width)


def test_a_slice_outside_the_samples_is_refused():
    with pytest.raises(InputError, match="slice 1 at 80"):
        slice_operator([0.0, 80.0], np.arange(10.0), SliceProfile("rect", 4.0))


@pytest.fixture(scope="module")
def isotropic():
    points = np.stack(np.meshgrid(np.arange(84.0), np.arange(76.0), np.arange(90.0), indexing="ij"), axis=-1)
    return blobs(points, count=40, extent_mm=90.0)


@pytest.mark.parametrize("thickness", [3.0, 6.0, 9.0])
def test_estimated_width_is_near_the_true_one(isotropic, thickness):
    centres = np.arange(5.0, 86.0, 5.0)
    slices = slice_operator(centres, np.arange(90.0), SliceProfile("gaussian", thickness)).forward(isotropic)
    found = estimate_profile(slices, (1.0, 1.0), 5.0)
    assert found.source == "estimated"
    assert found.fwhm_mm == pytest.approx(thickness, rel=0.35)


def test_estimating_from_too_little_is_refused():
    with pytest.raises(InputError, match="cannot be estimated"):
        estimate_profile(np.zeros((20, 20, 5), dtype=np.float32), (1.0, 1.0), 5.0)
