"""The 3D network over the planes: samples in their places, agreement with the slices, tiles, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slice3d.superres import SliceProfile, UpsampleSettings, pretrained, slice_operator, upsample
from slice3d.superres import volumes as at_work
from slice3d.superres.consistency import enforce
from slice3d.superres.network import RATE, SliceNetwork
from slice3d.superres.pairs import scale_of
from slice3d.superres.planes import PlaneNetwork
from slice3d.superres.profile import fine_positions
from slice3d.superres.unet import VolumeNetwork
from slice3d.superres.unet_training import Batch, Subject, VolumeTraining, make_batch, train_volume
from slice3d.superres.volumes import VolumeEstimate
from tests.superres.phantoms import thick_volume, truth_and_slices

SMALL = (16, 16, 16)


def planes_for(slices: np.ndarray, profile: SliceProfile, *, turned: bool = True) -> PlaneNetwork:
    torch.manual_seed(0)
    return PlaneNetwork(SliceNetwork(channels=8, blocks=1), scale_of(slices), 6.0, profile, turned=turned)


def answering(network: VolumeNetwork, seed: int = 0) -> VolumeNetwork:
    """The same with a last layer that says something."""
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(network.unet.output_block.conv.conv.weight, std=0.05, generator=generator)
    return network


def test_a_fresh_network_leaves_the_planes_as_they_are() -> None:
    _, slices, profile = truth_and_slices((45, 38))
    planes = planes_for(slices, profile, turned=False)
    fine = fine_positions(14, 6.0, 1.5)
    alone = planes.volume(slices, (1.5, 1.5), fine)
    together = VolumeEstimate(planes, VolumeNetwork(filters=SMALL)).volume(slices, (1.5, 1.5), fine)
    np.testing.assert_allclose(together, alone, atol=2e-3 * float(slices.std()))


def test_samples_come_back_to_their_places() -> None:
    network = VolumeNetwork(filters=SMALL)

    class Echo(torch.nn.Module):
        """Of the 20 channels of each of the 2×2 lines the first sixteen: what is added, and the gate."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(len(x), 4, 20, *x.shape[2:])[:, :, : 2 * RATE].reshape(len(x), 8 * RATE, *x.shape[2:])

    network.unet = Echo()
    generator = torch.Generator().manual_seed(1)
    fine, apart = torch.randn(2, 2, 8, 16, 6 * RATE, generator=generator)
    slices = torch.randn(2, 8, 16, 6, generator=generator)
    out = network(fine, apart, slices, torch.zeros(1, 3))
    added = 0.1 * 2 * (fine - slices.repeat_interleave(RATE, dim=3))
    torch.testing.assert_close(out, added + 0.5 * (8 * apart) * apart)


@pytest.mark.parametrize("in_plane", [(1.5, 1.5), (0.5, 1.3)])  # at 0.5 mm lines are joined
def test_whatever_it_answers_agrees_with_the_slices(in_plane) -> None:
    _, slices, profile = truth_and_slices((33, 42), in_plane_mm=in_plane, count=9)
    fine = fine_positions(9, 6.0, 1.5)
    operator = slice_operator(np.arange(9) * 6.0, fine, profile)
    method = VolumeEstimate(planes_for(slices, profile), answering(VolumeNetwork(filters=SMALL)))
    estimate = method.volume(slices, in_plane, fine)
    # resampled from the network's own positions: nearly, and after the last step exactly
    assert np.abs(operator.forward(estimate) - slices).mean() < 0.02 * slices.std()
    np.testing.assert_allclose(operator.forward(enforce(estimate, slices, operator)), slices, atol=0.2)


def test_a_stack_turned_round_gives_the_answer_turned_round() -> None:
    _, slices, profile = truth_and_slices((32, 40))
    method = VolumeEstimate(planes_for(slices, profile), answering(VolumeNetwork(filters=SMALL)))
    fine = np.arange(-2, 55) * 1.5
    there = method.volume(slices, (1.5, 1.5), fine)
    turned = np.ascontiguousarray(slices[::-1, ::-1, ::-1])
    back = method.volume(turned, (1.5, 1.5), 13 * 6.0 - fine[::-1])[::-1, ::-1, ::-1]
    np.testing.assert_allclose(there, back, atol=2e-2 * float(slices.std()))


def test_tiles_make_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    _, slices, profile = truth_and_slices((70, 62))
    weights = pretrained.weights()
    planes = PlaneNetwork(pretrained.network(weights), scale_of(slices), 6.0, profile)
    method = VolumeEstimate(planes, pretrained.volume_network(weights))
    fine = fine_positions(14, 6.0, 1.5)
    whole = method.volume(slices, (1.5, 1.5), fine)
    monkeypatch.setattr(at_work, "_TILE", 36)
    tiled = method.volume(slices, (1.5, 1.5), fine)
    assert np.abs(tiled - whole).max() < 0.05 * slices.std()


def test_the_shipped_3d_network_is_used_and_named() -> None:
    _, slices, _ = truth_and_slices((40, 36))
    fine = upsample(
        thick_volume(slices), spacing_mm=1.5, method="pretrained", settings=UpsampleSettings(self_check=False)
    )
    facts = next(f.details for f in fine.findings if f.code == "superres")
    assert facts["volume_weights_sha256"] == pretrained.weights().volume_sha256


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_it_says_the_same() -> None:
    _, slices, _ = truth_and_slices((60, 52))
    made = [
        upsample(
            thick_volume(slices), spacing_mm=1.5, method="pretrained",
            settings=UpsampleSettings(self_check=False, device=device),
        ).data
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    np.testing.assert_allclose(made[0], made[1], atol=0.05 * float(slices.std()))


def subject(shape: tuple[int, int, int] = (40, 48, 100), *, side: int = 32) -> Subject:
    rng = np.random.default_rng(0)
    return Subject("noise", np.cumsum(rng.normal(size=shape), axis=2).astype(np.float32) / 8, axes=(2,), side=side)


SETTINGS = VolumeTraining(steps=3, voxels=2 * 32 * 32 * 12, pixels=(3.0, 5.0))


def drawn(seed: int = 0) -> Batch:
    network = SliceNetwork(channels=8, blocks=1).eval()
    batch = make_batch(subject(), network, SETTINGS, np.random.default_rng(seed))
    assert batch is not None
    return batch


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mirrored_and_scaled_batches_stay_true(seed: int) -> None:
    batch = drawn(seed)
    # of what is no answer to the slices, nothing is left by the null space: truth minus spline is nearly all detail
    slices, fine, _, truth = batch.augmented(np.random.default_rng(seed))
    assert fine.shape == truth.shape == (*slices.shape[:3], slices.shape[3] * RATE)
    middle = truth.reshape(*slices.shape, RATE)[..., RATE // 2 - 1 : RATE // 2 + 1].mean(-1)
    inner = (slice(None), slice(None), slice(None), slice(1, -1))
    assert float((middle - slices)[inner].square().mean()) < 0.2 * float(slices.var())
    assert float((fine - truth).square().mean()) < float(truth.var())


def test_a_subject_that_holds_no_stack_is_passed_over() -> None:
    network = SliceNetwork(channels=8, blocks=1)
    assert make_batch(subject((40, 48, 20)), network, SETTINGS, np.random.default_rng(0)) is None
    assert make_batch(subject(side=64), network, SETTINGS, np.random.default_rng(0)) is None


def test_training_changes_the_network_and_stores_it() -> None:
    seen: list[int] = []
    network = SliceNetwork(channels=8, blocks=1).eval()
    trained = train_volume(
        [subject()], network, settings=SETTINGS, save=lambda n, step: seen.append(step), start=VolumeNetwork(filters=SMALL),
        watched=[drawn()],
    )  # fmt: skip
    assert seen[-1] == 3
    assert float(trained.unet.output_block.conv.conv.weight.detach().abs().max()) > 0
