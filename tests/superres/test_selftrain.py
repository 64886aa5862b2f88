"""Self-training: agreement by construction, truthful training pairs, repeatability, and that it learns something."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slice3d.errors import InputError
from slice3d.superres import SliceProfile, UpsampleSettings, slice_operator, upsample
from slice3d.superres.network import Frame, SliceNetwork
from slice3d.superres.selftrain import InPlane, TrainSettings, fit
from tests.superres.phantoms import thick_volume, truth_and_slices

SMALL = TrainSettings(steps=3, channels=8, blocks=1, batch=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_whatever_the_network_says_agrees_with_the_slices():
    frame = Frame(9, 4, 6.0, SliceProfile("gaussian", 4.5))
    operator = slice_operator(frame.slices_mm, frame.fine_mm, SliceProfile("gaussian", 4.5))
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(3, 9, generator=generator) * 100
    detail = torch.randn(3, 36, generator=generator) * 100
    again = operator.forward(frame.compose(slices, detail).numpy())
    np.testing.assert_allclose(again, slices.numpy(), atol=0.2)


def test_the_network_writes_factor_samples_per_slice_in_order():
    network = SliceNetwork(5, channels=8, blocks=1)
    with torch.no_grad():
        network.tail.weight.zero_()
        network.tail.bias.copy_(torch.arange(5.0))
        out = network(torch.zeros(2, 1, 7, 6))
    assert out.shape == (2, 7, 30)
    np.testing.assert_array_equal(out[1, 3].numpy(), np.tile(np.arange(5.0), 6))


@pytest.mark.parametrize("in_plane", [(1.5, 1.5), (1.1, 1.5)])
def test_training_pairs_are_what_the_profile_makes(in_plane):
    _, slices, profile = truth_and_slices((90, 60), in_plane_mm=in_plane)
    source = InPlane(slices, in_plane, 4, 6.0, profile, 0)
    low, high = source.batch(6)
    assert low.shape == (6, source.lines, source.count)
    assert high.shape == (6, source.lines, source.count * 4)
    fine = np.arange(source.count * 4) * 1.5
    again = slice_operator(np.arange(source.count) * 6.0, fine, profile).forward(high.numpy())
    inner = np.abs(again - low.numpy())[..., 2:-2]
    assert inner.mean() < 0.03 * low.numpy().std()


def test_training_repeats_exactly_and_depends_on_the_seed():
    _, slices, profile = truth_and_slices((60, 52))
    results = []
    for seed in (0, 0, 1):
        settings = TrainSettings(steps=3, channels=8, blocks=1, batch=2, seed=seed)
        trained = fit(slices, (1.5, 1.5), 6.0, 1.5, profile, settings=settings)
        results.append(trained.apply(slices, np.arange(-2, 56) * 1.5))
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_factor_that_is_no_whole_number_is_placed_in_millimetres():
    # A hardly trained network adds noise, but a wrong place would shift or stretch the whole ramp.
    _, slices, profile = truth_and_slices((60, 52))
    trained = fit(slices, (1.5, 1.5), 6.0, 1.7, profile, settings=SMALL)
    ramp = np.broadcast_to(np.arange(14, dtype=np.float32) * 6.0, slices.shape)
    fine = np.arange(5, 40) * 1.7
    estimate = trained.planes(np.ascontiguousarray(ramp), fine)
    slope, offset = np.polyfit(fine, estimate[:, 10:-10].mean(axis=(0, 1)), 1)
    assert slope == pytest.approx(1.0, abs=0.02)
    assert offset + slope * fine.mean() == pytest.approx(fine.mean(), abs=0.4)


def test_the_time_budget_is_kept_and_the_steps_are_told():
    import time

    _, slices, profile = truth_and_slices((60, 52))
    start = time.perf_counter()
    settings = TrainSettings(minutes=0.03, channels=8, blocks=1, batch=2)
    trained = fit(slices, (1.5, 1.5), 6.0, 1.5, profile, settings=settings)
    # a busy machine may stretch a step, never the plan
    assert time.perf_counter() - start < 20
    assert trained.steps >= 10


def test_slices_too_small_to_learn_from_are_refused():
    _, slices, _ = truth_and_slices((30, 26))
    with pytest.raises(InputError, match=r"slices measure 45×39 mm.*bspline"):
        upsample(thick_volume(slices), spacing_mm=1.5, method="selftrain")


def test_auto_leaves_small_slices_and_short_times_to_the_spline():
    _, slices, _ = truth_and_slices((30, 26))
    fine = upsample(thick_volume(slices), spacing_mm=1.5)
    finding = next(f for f in fine.findings if f.code == "superres-method")
    assert finding.details["method"] == "bspline"
    assert "too small to train on" in finding.message
    _, slices, _ = truth_and_slices((70, 60))
    hurried = upsample(thick_volume(slices), spacing_mm=1.5, settings=UpsampleSettings(minutes=0.2))
    assert "too few to train" in next(f for f in hurried.findings if f.code == "superres-method").message


@pytest.mark.slow
def test_it_learns_more_than_interpolation_knows():
    truth, slices, _ = truth_and_slices((70, 62), thickness_mm=5.0)
    volume = thick_volume(slices, thickness_mm=5.0)
    error = {}
    progress: list[tuple[str, float]] = []
    for method in ("bspline", "selftrain"):
        settings = UpsampleSettings(steps=100)
        fine = upsample(
            volume, spacing_mm=1.5, method=method, settings=settings, progress=lambda s, f: progress.append((s, f))
        )
        error[method] = float(np.sqrt(np.mean((fine.data - truth) ** 2)))
        assert next(f for f in fine.findings if f.code == "superres").details["consistency_rms"] < 0.1
    assert error["selftrain"] < 0.93 * error["bspline"]
    stages = {stage for stage, _ in progress}
    assert {"self-training", "super-resolution"} <= stages
    assert fine.uncertainty is not None
    assert np.isfinite(fine.uncertainty).all()
