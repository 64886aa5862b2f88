"""Self-training: agreement by construction, truthful training pairs, repeatability, and that it learns something."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slice3d.errors import InputError
from slice3d.superres import SliceProfile, UpsampleSettings, slice_operator, upsample
from slice3d.superres.network import RATE, Frame, SliceNetwork
from slice3d.superres.pairs import width_of
from slice3d.superres.selftrain import InPlane, TrainSettings, fit
from tests.superres.phantoms import thick_volume, truth_and_slices

SMALL = TrainSettings(steps=3, channels=8, blocks=1, batch=2)


def test_whatever_the_network_says_agrees_with_the_slices():
    profile = SliceProfile("gaussian", 4.5)
    frame = Frame(9, 6.0, profile)
    operator = slice_operator(frame.slices_mm, frame.fine_mm, profile)
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(3, 9, generator=generator) * 100
    detail = torch.randn(3, 9 * RATE, generator=generator) * 100
    again = operator.forward(frame.compose(slices, detail).numpy())
    np.testing.assert_allclose(again, slices.numpy(), atol=0.2)


@pytest.mark.parametrize("lines", [7, 8])
def test_the_network_writes_its_samples_in_order(lines):
    network = SliceNetwork(channels=8, blocks=1)
    with torch.no_grad():
        network.tail.weight.zero_()
        network.tail.bias.copy_(torch.arange(2.0 * RATE))
        out = network(torch.zeros(2, lines, 6), torch.zeros(1, 3))
    assert out.shape == (2, lines, 6 * RATE)
    # even lines take the first half of the outputs, odd lines the second
    np.testing.assert_array_equal(out[1, 4].numpy(), np.tile(np.arange(RATE), 6))
    np.testing.assert_array_equal(out[1, 3].numpy(), np.tile(np.arange(RATE) + RATE, 6))


@pytest.mark.parametrize("in_plane", [(1.5, 1.5), (1.1, 1.5)])
def test_training_pairs_are_what_the_profile_makes(in_plane):
    _, slices, profile = truth_and_slices((90, 60), in_plane_mm=in_plane)
    source = InPlane(slices, in_plane, 6.0, profile, 0)
    frame = Frame(source.count, 6.0, profile)
    operator = slice_operator(frame.slices_mm, frame.fine_mm, profile)
    for _ in range(4):  # both axes, with overwhelming odds
        low, high, _ = source.batch(6)
        assert low.shape == (6, source.lines, source.count)
        assert high.shape == (6, source.lines, source.count * RATE)
        inner = np.abs(operator.forward(high.numpy()) - low.numpy())[..., 2:-2]
        assert inner.mean() < 0.03 * low.numpy().std()


def test_the_condition_is_the_spacing_across_the_lines():
    _, slices, profile = truth_and_slices((90, 60), in_plane_mm=(1.1, 1.5))
    source = InPlane(slices, (1.1, 1.5), 6.0, profile, 0)
    # lines along the second axis lie 1.1 mm apart
    assert float(source.conditions[0][0, 0]) == pytest.approx(np.log2(6.0 / 1.1) - 2)
    assert source.widths[0] == width_of(source.count, 1.5, 6.0, profile)


def test_training_repeats_exactly_and_depends_on_the_seed():
    _, slices, profile = truth_and_slices((60, 52))
    results = []
    for seed in (0, 0, 1):
        settings = TrainSettings(steps=3, channels=8, blocks=1, batch=2, seed=seed)
        trained = fit(slices, (1.5, 1.5), 6.0, profile, settings=settings)
        results.append(trained.planes.volume(slices, (1.5, 1.5), np.arange(-2, 56) * 1.5))
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_stack_turned_round_gives_the_answer_turned_round():
    _, slices, profile = truth_and_slices((60, 52))
    trained = fit(slices, (1.5, 1.5), 6.0, profile, settings=SMALL)
    fine = np.arange(-2, 55) * 1.5
    end = 13 * 6.0
    there = trained.planes.volume(slices, (1.5, 1.5), fine)
    turned = np.ascontiguousarray(slices[::-1, ::-1, ::-1])
    back = trained.planes.volume(turned, (1.5, 1.5), end - fine[::-1])[::-1, ::-1, ::-1]
    np.testing.assert_allclose(there, back, atol=1e-2 * slices.std())


@pytest.mark.parametrize("line_mm", [1.5, 0.5])  # at 0.5 mm lines are joined
def test_samples_are_placed_in_millimetres(line_mm):
    # A hardly trained network adds noise, but a wrong place would shift or stretch the whole ramp.
    _, slices, profile = truth_and_slices((60, 52))
    trained = fit(slices, (1.5, 1.5), 6.0, profile, settings=SMALL)
    ramp = np.broadcast_to(np.arange(14, dtype=np.float32) * 6.0, slices.shape)
    fine = np.arange(5, 40) * 1.7
    estimate = trained.planes.planes(np.ascontiguousarray(ramp), line_mm, fine)
    slope, offset = np.polyfit(fine, estimate[:, 10:-10].mean(axis=(0, 1)), 1)
    assert slope == pytest.approx(1.0, abs=0.02)
    assert offset + slope * fine.mean() == pytest.approx(fine.mean(), abs=0.4)


def test_the_time_budget_is_kept_and_the_steps_are_told():
    import time

    _, slices, profile = truth_and_slices((60, 52))
    start = time.perf_counter()
    settings = TrainSettings(minutes=0.03, channels=8, blocks=1, batch=2)
    trained = fit(slices, (1.5, 1.5), 6.0, profile, settings=settings)
    # a busy machine may stretch a step, never the plan
    assert time.perf_counter() - start < 20
    assert trained.steps >= 10


def test_slices_too_small_to_learn_from_are_refused():
    _, slices, _ = truth_and_slices((30, 26))
    with pytest.raises(InputError, match=r"slices measure 45×39 mm.*bspline"):
        upsample(thick_volume(slices), spacing_mm=1.5, method="selftrain")


def test_auto_takes_the_shipped_weights_where_there_is_something_to_add():
    _, slices, _ = truth_and_slices((30, 26))
    fine = upsample(thick_volume(slices), spacing_mm=1.5, settings=UpsampleSettings(self_check=False))
    assert next(f for f in fine.findings if f.code == "superres-method").details["method"] == "pretrained"
    little = upsample(thick_volume(slices), spacing_mm=4.0, settings=UpsampleSettings(self_check=False))
    finding = next(f for f in little.findings if f.code == "superres-method")
    assert finding.details["method"] == "bspline"
    assert "factor of 1.5" in finding.message


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
