"""`upsample`: geometry in millimetres on any axis, agreement with the slices, marks, findings and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slice3d.errors import GeometryError, InputError
from slice3d.grid import Grid
from slice3d.superres import SliceProfile, UpsampleSettings, slice_operator, upsample
from slice3d.superres.consistency import enforce, residual
from slice3d.superres.interpolate import BASELINES
from slice3d.superres.profile import fine_positions
from slice3d.superres.quality import body_mask, false_detail, hold_out, sharpness
from slice3d.superres.stack import step_of, through_plane_axis
from slice3d.volume import Volume
from tests.builders import oblique
from tests.superres.phantoms import thick_volume, truth_and_slices

NAMES = sorted(BASELINES)


def codes(volume: Volume) -> set[str]:
    return {finding.code for finding in volume.findings}


def details(volume: Volume, code: str) -> dict:
    return dict(next(finding for finding in volume.findings if finding.code == code).details)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("method", NAMES)
def test_slices_along_any_axis_give_the_same_anatomy_in_millimetres(axis, method):
    truth, slices, _ = truth_and_slices((30, 26))
    volume = thick_volume(slices, axis=axis)
    fine = upsample(volume, spacing_mm=1.5, method=method)
    assert fine.grid.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    # the same in-plane lattice, and the first slice's centre is where it was
    start = np.zeros(3)
    start[axis] = 2
    np.testing.assert_allclose(fine.grid.to_world(start), volume.grid.to_world((0, 0, 0)), atol=1e-9)
    np.testing.assert_allclose(fine.grid.directions, volume.grid.directions, atol=1e-12)
    error = np.moveaxis(np.asarray(fine.data), axis, -1) - truth
    assert np.sqrt(np.mean(error**2)) < 0.35 * truth.std()


def test_a_world_ramp_comes_back_as_the_same_ramp():
    grid = Grid((9, 14, 11), oblique((1.1, 5.0, 0.9)))
    world = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    slope = np.array([0.7, -1.3, 2.1])
    volume = Volume((world @ slope).astype(np.float32), grid, "MR", {"SliceThickness": 4.0})
    fine = upsample(volume, spacing_mm=1.0, method="bspline")
    assert fine.grid.shape[1] == len(fine_positions(14, 5.0, 1.0))
    there = fine.grid.to_world(np.stack(np.meshgrid(*map(np.arange, fine.grid.shape), indexing="ij"), axis=-1)) @ slope
    inner = (slice(None), slice(15, -15), slice(None))
    np.testing.assert_allclose(fine.data[inner], there[inner], atol=0.5)


@pytest.mark.parametrize("kind", ["gaussian", "rect"])
@pytest.mark.parametrize("step", [1.0, 1.3, 2.5])
@pytest.mark.parametrize("method", NAMES)
def test_resimulated_slices_are_the_acquired_ones(method, step, kind):
    _, slices, _ = truth_and_slices((24, 20), in_plane_mm=(0.9, 0.9))
    noisy = slices + np.random.default_rng(5).normal(0, 12, slices.shape).astype(np.float32)
    volume = thick_volume(noisy, in_plane_mm=(0.9, 0.9))
    fine = upsample(volume, spacing_mm=step, method=method, slice_profile=kind)
    again = slice_operator(np.arange(14) * 6.0, fine_positions(14, 6.0, step), SliceProfile(kind, 4.5)).forward(
        fine.data
    )
    assert np.abs(again - noisy).max() < 0.2
    assert details(fine, "superres")["consistency_rms"] < 0.05


def test_overlapping_slices_agree_to_the_noise_level():
    truth, slices, _profile = truth_and_slices((24, 20), slice_step_mm=3.0, thickness_mm=6.0, count=28)
    noisy = slices + np.random.default_rng(5).normal(0, 12, slices.shape).astype(np.float32)
    fine = upsample(thick_volume(noisy, slice_step_mm=3.0, thickness_mm=6.0), spacing_mm=1.5, method="bspline")
    assert details(fine, "superres")["consistency_rms"] < 12
    assert np.abs(fine.data).max() < 3 * np.abs(truth).max()


def test_consistency_moves_an_estimate_towards_the_truth():
    truth, slices, profile = truth_and_slices((24, 20))
    operator = slice_operator(np.arange(14) * 6.0, fine_positions(14, 6.0, 1.5), profile)
    wrong = truth + np.random.default_rng(0).normal(0, 30, truth.shape).astype(np.float32)
    right = enforce(wrong, slices, operator)
    assert np.abs(right - truth).mean() < np.abs(wrong - truth).mean()
    assert residual(right, slices, operator)[1] < 0.1
    np.testing.assert_allclose(enforce(truth, slices, operator), truth, atol=0.1)


def test_what_was_not_acquired_is_marked():
    _, slices, _ = truth_and_slices((24, 20))
    volume = thick_volume(slices, axis=1)
    fine = upsample(volume, spacing_mm=1.5, method="linear")
    planes = fine.synthesised.all(axis=(0, 2))
    assert np.array_equal(planes, fine.synthesised.any(axis=(0, 2)))
    measured = np.nonzero(~planes)[0]
    np.testing.assert_array_equal(measured, 2 + 4 * np.arange(14))
    for n, plane in enumerate(measured):
        np.testing.assert_allclose(fine.grid.to_world((3, plane, 7)), volume.grid.to_world((3, n, 7)), atol=1e-9)
    assert details(fine, "superres")["synthesised_share"] == pytest.approx(1 - 14 / len(planes))
    assert fine.metadata["superresolution"]["method"] == "linear"


def test_uncertainty_is_calibrated_and_larger_where_more_happens():
    truth, slices, _ = truth_and_slices((60, 52))
    fine = upsample(thick_volume(slices), spacing_mm=1.5, method="bspline")
    error, expected = np.abs(fine.data - truth), fine.uncertainty
    assert expected.shape == truth.shape
    assert np.isfinite(expected).all()
    assert expected.min() >= 0
    assert 0.85 < np.mean(error < 2 * expected + 1e-3) < 0.999
    large = expected > np.quantile(expected, 0.9)
    assert error[large].mean() > 5 * error[~large].mean()


def test_self_check_is_reported():
    _, slices, _ = truth_and_slices((40, 36), count=21, slice_step_mm=3.0, thickness_mm=3.0)
    fine = upsample(thick_volume(slices, slice_step_mm=3.0, thickness_mm=3.0), spacing_mm=1.5, method="bspline")
    check = details(fine, "superres-self-check")
    assert 0 < check["rmse"] < check["rmse_linear"]


def test_self_check_warns_of_a_method_that_does_harm(monkeypatch):
    _, slices, _ = truth_and_slices((40, 36), count=21, slice_step_mm=3.0, thickness_mm=3.0)
    # Noise between the slices: consistency can only mend what the slices would have seen.
    rng = np.random.default_rng(0)
    monkeypatch.setitem(
        BASELINES, "lanczos", lambda z, fine: (w := BASELINES["linear"](z, fine)) + rng.normal(0, 1.0, np.shape(w))
    )
    fine = upsample(thick_volume(slices, slice_step_mm=3.0, thickness_mm=3.0), spacing_mm=1.5, method="lanczos")
    finding = next(f for f in fine.findings if f.code == "superres-self-check")
    assert finding.severity == "warning"
    assert "do not rely on it" in finding.message


def test_sharpness_is_reported():
    _, slices, _ = truth_and_slices((60, 52))
    fine = upsample(thick_volume(slices), spacing_mm=1.5, method="linear")
    assert 0 < details(fine, "superres")["sharpness_ratio"] < 0.9


def test_sharpness_of_an_isotropic_image_is_one_and_of_a_blurred_one_is_less():
    from scipy import ndimage

    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(60, 60, 60)).astype(np.float32), 1.5)
    operator = slice_operator(np.arange(12) * 5.0, fine_positions(12, 5.0, 1.0), SliceProfile("gaussian", 4.0))
    image = image[..., : len(operator.fine_mm)]
    assert sharpness(image, (1.0, 1.0), operator) == pytest.approx(1.0, abs=0.25)
    assert sharpness(ndimage.gaussian_filter1d(image, 2.0, axis=2), (1.0, 1.0), operator) < 0.4


def test_false_detail_counts_invented_edges_and_not_missing_ones():
    truth, slices, _profile = truth_and_slices((40, 36))
    blurred = upsample(thick_volume(slices), spacing_mm=1.5, method="linear").data
    invented = truth + np.random.default_rng(0).normal(0, 40, truth.shape).astype(np.float32)
    assert false_detail(truth, truth, 1.5, 6.0) == pytest.approx(0, abs=1e-3)
    assert false_detail(invented, truth, 1.5, 6.0) > 3 * false_detail(blurred, truth, 1.5, 6.0)


def test_hold_out_needs_enough_slices():
    _, slices, profile = truth_and_slices((24, 20), count=6)
    operator = slice_operator(np.arange(6) * 6.0, fine_positions(6, 6.0, 1.5), profile)
    assert hold_out(slices, operator, lambda s, o: lambda a, b: a) is None


def test_body_mask_holds_the_lungs_and_not_the_table():
    data = np.full((40, 44, 8), -1000.0)
    data[8:32, 6:30] = 40.0
    data[14:20, 12:20] = -850.0
    data[4:36, 38:40] = 200.0
    mask = body_mask(data, ct=True)
    assert mask[16, 15].all()
    assert not mask[20, 39].any()
    assert not mask[2, 2].any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 0.92)])
def test_an_isotropic_study_is_returned_as_it_is(spacing):
    volume = Volume(np.zeros((6, 7, 8), dtype=np.int16), Grid((6, 7, 8), oblique(spacing)), "CT")
    result = upsample(volume, spacing_mm=0.5)
    assert result.data is volume.data
    assert result.synthesised is None
    assert codes(result) == {"superres-not-needed"}


def test_spacing_is_never_finer_than_the_plane_shows():
    _, slices, _ = truth_and_slices((24, 20))
    fine = upsample(thick_volume(slices), spacing_mm=0.5, method="linear")
    assert fine.grid.spacing_mm[2] == pytest.approx(1.5)
    assert "superres-spacing-limited" in codes(fine)
    assert step_of(thick_volume(slices), 2.0, 2) == 2.0


def test_slices_closer_than_asked_for_are_returned_and_said():
    _, slices, _ = truth_and_slices((24, 20))
    volume = thick_volume(slices)
    result = upsample(volume, spacing_mm=12.0)
    assert result.data is volume.data
    (finding,) = (f for f in result.findings if f.code == "superres-not-needed")
    assert finding.message.startswith("12 mm was asked for, but the slices lie 6 mm apart already")


def test_an_empty_image_raises_no_doubts():
    volume = thick_volume(np.zeros((24, 20, 14), dtype=np.float32))
    fine = upsample(volume, spacing_mm=1.5, method="bspline")
    assert not fine.data.any()
    assert "superres-self-check" not in codes(fine)


def test_the_axis_is_found_or_named():
    assert through_plane_axis(Grid((4, 5, 6), oblique((5.0, 0.8, 0.9)))) == 0
    assert through_plane_axis(Grid((4, 5, 6), oblique((2.0, 2.0, 2.05)))) is None
    _, slices, _ = truth_and_slices((24, 20))
    named = upsample(thick_volume(slices), spacing_mm=1.5, method="linear", settings=UpsampleSettings(axis=2))
    assert named.grid.shape[2] > 14


def test_too_few_slices():
    _, slices, _ = truth_and_slices((24, 20), count=3)
    with pytest.raises(InputError, match="3 slices; expected at least 4"):
        upsample(thick_volume(slices), spacing_mm=1.5)


def test_large_gaps_are_not_filled_by_learning():
    _, slices, _ = truth_and_slices((60, 52))
    volume = thick_volume(slices, thickness_mm=1.2)
    for method in ("selftrain", "pretrained"):
        with pytest.raises(InputError, match=r"gaps of 4\.80 mm.*bspline"):
            upsample(volume, spacing_mm=1.5, method=method)
    fine = upsample(volume, spacing_mm=1.5)
    assert details(fine, "superres")["method"] == "bspline"
    assert "superres-gap" in codes(fine)


def test_an_unknown_thickness_is_assumed_and_said():
    _, slices, _ = truth_and_slices((24, 20))
    fine = upsample(thick_volume(slices, thickness_mm=None), spacing_mm=1.5, method="bspline")
    finding = next(f for f in fine.findings if f.code == "superres-profile")
    assert finding.severity == "warning"
    assert finding.details["source"] == "assumed"


def test_a_given_profile_wins_over_the_header():
    _, slices, _ = truth_and_slices((24, 20))
    fine = upsample(thick_volume(slices), spacing_mm=1.5, method="bspline", slice_profile=SliceProfile("rect", 3.0))
    assert fine.metadata["superresolution"]["profile"] == {"kind": "rect", "fwhm_mm": 3.0, "source": "given"}


def test_the_profile_can_be_estimated():
    _, slices, _ = truth_and_slices((60, 52))
    fine = upsample(thick_volume(slices), spacing_mm=1.5, method="bspline", slice_profile="estimate")
    assert details(fine, "superres-profile")["source"] == "estimated"


def test_bad_arguments_are_refused_in_one_line():
    _, slices, _ = truth_and_slices((24, 20))
    volume = thick_volume(slices)
    cases = [
        ({"method": "magic"}, InputError, "method is 'magic'; expected one of auto"),
        ({"slice_profile": "sinc"}, InputError, "slice profile is 'sinc'"),
        (
            {"slice_profile": SliceProfile("gaussian", 40.0)},
            InputError,
            r"40 mm wide with slices 6 mm apart; expected at most 3",
        ),
        ({"spacing_mm": 0.0}, InputError, "spacing is 0.0 mm"),
        ({"spacing_mm": float("nan")}, InputError, "spacing is nan mm"),
        ({"settings": UpsampleSettings(axis=3)}, InputError, "axis is 3"),
        ({"settings": UpsampleSettings(minutes=0)}, InputError, "time budget is 0 minutes"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            upsample(volume, **{"spacing_mm": 1.5, **options})
        assert "\n" not in str(caught.value)


def test_bad_volumes_are_refused_in_one_line():
    _, slices, _ = truth_and_slices((24, 20))
    broken = slices.copy()
    broken[3, 4, 5] = np.nan
    with pytest.raises(InputError, match="1 voxels are NaN"):
        upsample(thick_volume(broken), spacing_mm=1.5)
    with pytest.raises(InputError, match=r"ndarray of shape \(4, 5, 6, 7\); expected one Volume"):
        upsample(np.zeros((4, 5, 6, 7)))
    with pytest.raises(InputError, match="given list; expected one Volume"):
        upsample([thick_volume(slices), slices])
    volume = thick_volume(slices)
    affine = volume.grid.affine.copy()
    affine[:3, 2] += 0.5 * affine[:3, 0]
    with pytest.raises(GeometryError, match="sheared"):
        upsample(replace(volume, grid=Grid(volume.grid.shape, affine)), spacing_mm=1.5)


def test_findings_and_metadata_of_the_study_survive():
    from slice3d.findings import Finding

    _, slices, _ = truth_and_slices((24, 20))
    volume = replace(thick_volume(slices), findings=(Finding("gantry-tilt", "tilted"),), source=("acquired",))
    fine = upsample(volume, spacing_mm=1.5, method="linear")
    assert fine.findings[0].code == "gantry-tilt"
    assert fine.source == ("acquired",)
    assert fine.modality == "CT"
