"""The total-variation prior and one stack under it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.superres import UpsampleSettings, upsample
from slice3d.superres._variation import edge_weights, laplacian
from slice3d.superres.profile import SliceProfile, fine_positions, slice_operator
from slice3d.superres.scene import Separable
from slice3d.superres.variation import Term, VariationSettings, agree, noise_of, reconstruct, strength_for
from tests.superres.phantoms import thick_volume, truth_and_slices


def apply(image: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    out = np.empty_like(image)
    laplacian(image, weight, scale, out, 0, len(image))
    return out


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_prior_is_the_energy_of_weighted_differences(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, 3))
    x, y = rng.normal(size=(2, *shape)).astype(np.float32)
    weight = rng.uniform(0.1, 2.0, shape).astype(np.float32)
    scale = rng.uniform(0.5, 2.0, 3).astype(np.float32)
    assert np.sum(apply(x, weight, scale) * y) == pytest.approx(np.sum(apply(y, weight, scale) * x), rel=1e-3, abs=1e-3)
    energy = 0.0
    for axis in range(3):
        kept = tuple(slice(0, -1) if n == axis else slice(None) for n in range(3))
        energy += float(np.sum(weight[kept] * np.square(np.diff(x, axis=axis) * scale[axis])))
    assert np.sum(apply(x, weight, scale) * x) == pytest.approx(energy, rel=1e-3, abs=1e-3)


def test_steep_places_are_smoothed_less():
    step = np.zeros((4, 4, 8), np.float32)
    step[..., 4:] = 1.0
    out = np.empty_like(step)
    edge_weights(step, np.ones(3, np.float32), 0.01, out, 0, 4)
    assert out[2, 2, 3] == pytest.approx(1.0, abs=1e-3)
    assert out[2, 2, 5] == pytest.approx(100.0)


def test_an_axis_of_infinite_spacing_has_no_prior():
    rng = np.random.default_rng(0)
    fine = fine_positions(8, 4.0, 1.0)
    operator = slice_operator(np.arange(8) * 4.0, fine, SliceProfile("gaussian", 4.0))
    target = rng.normal(size=(3, 6, 8)).astype(np.float32)
    projector = Separable((None, None, operator.matrix.astype(np.float32)), (0, 1, 2))
    chosen = VariationSettings(strength=0.05, rounds=4, steps=40)

    def solve(part: np.ndarray) -> np.ndarray:
        start = np.zeros((*part.shape[:2], len(fine)), np.float32)
        return reconstruct([Term(projector, part, None, 4.0)], start, (np.inf, 1.0, 1.0), settings=chosen)

    alone = np.concatenate([solve(target[n : n + 1]) for n in range(3)])
    np.testing.assert_allclose(solve(target), alone, atol=0.02)


@pytest.mark.parametrize("sigma", [2.0, 20.0])
def test_noise_is_measured_beside_anatomy(sigma):
    _, slices, _ = truth_and_slices((60, 52))
    noisy = slices + np.random.default_rng(0).normal(0, sigma, slices.shape).astype(np.float32)
    assert noise_of(noisy, float(slices.min())) == pytest.approx(sigma, rel=0.2)
    assert noise_of(slices, float(slices.min())) < 1.0
    assert noise_of(slices, float(slices.max())) == 0.0


def test_agreement_leaves_noise_alone():
    _, slices, profile = truth_and_slices((30, 26))
    operator = slice_operator(np.arange(14) * 6.0, fine_positions(14, 6.0, 1.5), profile)
    projector = Separable((None, None, operator.matrix.astype(np.float32)), (0, 1, 2))
    noise = np.random.default_rng(0).normal(0, 1.0, slices.shape).astype(np.float32)
    start = np.zeros((30, 26, len(operator.fine_mm)), np.float32)
    kept = agree([Term(projector, noise, None, 4.0, 1.0)], start)
    followed = agree([Term(projector, noise, None, 4.0)], start)
    assert np.abs(kept).mean() < 0.25 * np.abs(followed).mean()
    seen = agree([Term(projector, slices + noise, None, 4.0, 1.0)], start, steps=30)
    assert np.sqrt(np.mean((projector.forward(seen) - slices) ** 2)) < 2.0


def test_agreement_is_reached_by_a_small_change():
    truth, slices, profile = truth_and_slices((30, 26))
    operator = slice_operator(np.arange(14) * 6.0, fine_positions(14, 6.0, 1.5), profile)
    term = Term(Separable((None, None, operator.matrix.astype(np.float32)), (0, 1, 2)), slices, None, 4.0)
    start = (0.95 * truth + 3.0).astype(np.float32)
    better = agree([term], start, steps=30)
    assert np.sqrt(np.mean((term.projector.forward(better) - slices) ** 2)) < 0.01 * slices.std()
    assert np.abs(better - start).max() < 0.2 * np.abs(truth).max()


def test_one_stack_is_sharper_than_the_spline_and_agrees_with_its_slices():
    truth, slices, _ = truth_and_slices((60, 52))
    error = {}
    for method in ("bspline", "tv"):
        fine = upsample(thick_volume(slices), spacing_mm=1.5, method=method)
        error[method] = float(np.sqrt(np.mean((fine.data - truth) ** 2)))
    assert error["tv"] < 0.85 * error["bspline"]
    found = {f.code: f for f in fine.findings}
    assert found["superres"].details["consistency_rms"] < 0.1
    assert np.mean(np.abs(fine.data - truth) < 2 * fine.uncertainty) > 0.85
    again = upsample(thick_volume(slices), spacing_mm=1.5, method="tv", settings=UpsampleSettings(self_check=False))
    np.testing.assert_array_equal(again.data, fine.data)


def test_the_prior_grows_with_the_noise():
    projector = Separable((None, None, None), (0, 1, 2))
    target = np.zeros((2, 2, 2), np.float32)
    assert strength_for([Term(projector, target, None, 1.0, noise) for noise in (0.02, 0.04)]) == pytest.approx(0.03)
    assert strength_for([Term(projector, target, None, 1.0, 0.0)]) == VariationSettings().strength


def test_units_do_not_matter():
    _, slices, _ = truth_and_slices((30, 26))
    chosen = UpsampleSettings(self_check=False)
    plain = upsample(thick_volume(slices), spacing_mm=1.5, method="tv", settings=chosen)
    other = upsample(thick_volume(7 * slices + 400), spacing_mm=1.5, method="tv", settings=chosen)
    np.testing.assert_allclose((other.data - 400) / 7, plain.data, atol=2e-3 * float(plain.data.std()))
