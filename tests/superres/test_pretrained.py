"""The shipped network: that it is what its card says, works at any factor and spacing, and beats interpolation on what it
was not trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from slice3d.errors import ModelError
from slice3d.superres import SliceProfile, UpsampleSettings, pretrained, upsample
from slice3d.superres.network import SliceNetwork
from slice3d.superres.pretraining import Images, PretrainSettings, pretrain
from tests.superres.phantoms import thick_volume, truth_and_slices


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a - b))))


# slice distance in fine steps, thickness, in-plane spacing
@pytest.mark.parametrize(
    ("factor", "thickness", "in_plane"), [(2, 2.5, (1.5, 1.5)), (4, 4.5, (1.2, 1.7)), (8, 10.0, (1.5, 1.5))]
)
def test_it_beats_the_spline_at_any_factor_and_agrees_with_the_slices(factor, thickness, in_plane):
    step = 1.5 * factor
    truth, slices, _ = truth_and_slices(
        (70, 62), in_plane_mm=in_plane, count=max(8, 56 // factor), slice_step_mm=step, thickness_mm=thickness
    )
    volume = thick_volume(slices, in_plane_mm=in_plane, slice_step_mm=step, thickness_mm=thickness)
    error = {}
    for method in ("bspline", "pretrained"):
        fine = upsample(volume, spacing_mm=1.5, method=method, settings=UpsampleSettings(self_check=False))
        error[method] = rmse(fine.data, truth)
        found = next(f for f in fine.findings if f.code == "superres")
        assert found.details["consistency_rms"] < 0.2
    assert error["pretrained"] < 0.95 * error["bspline"]
    assert found.details["weights_sha256"] == pretrained.weights().sha256
    assert fine.uncertainty is not None


def test_the_same_study_gives_the_same_bytes():
    _, slices, _ = truth_and_slices((40, 36))
    once, again = (
        upsample(thick_volume(slices), spacing_mm=1.5, method="pretrained", settings=UpsampleSettings(self_check=False))
        for _ in range(2)
    )
    np.testing.assert_array_equal(once.data, again.data)


def test_units_do_not_matter():
    _, slices, _ = truth_and_slices((40, 36))
    settings = UpsampleSettings(self_check=False)
    plain = upsample(thick_volume(slices), spacing_mm=1.5, method="pretrained", settings=settings)
    other = upsample(thick_volume(7 * slices + 400), spacing_mm=1.5, method="pretrained", settings=settings)
    # bfloat16 rounds differently
    np.testing.assert_allclose((other.data - 400) / 7, plain.data, atol=0.02 * float(plain.data.std()))


def test_damaged_or_missing_weights_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        pretrained.weights(tmp_path)
    copied = tmp_path / "weights"
    shutil.copytree(pretrained.FOLDER, copied)
    (copied / "weights.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ModelError, match=r"SHA-256 .* expected"):
        pretrained.network(pretrained.weights(copied))


def test_the_card_says_what_it_was_trained_on_and_what_it_scored() -> None:
    card = json.loads((pretrained.FOLDER / "model.json").read_text(encoding="utf-8"))
    trained = {source["name"] for source in card["trained_on"]}
    assert all(source["licence"] for source in card["trained_on"])
    scored = {row["case"] for row in card["scores"]}
    assert scored
    assert not scored & trained
    results = json.loads((Path(__file__).parents[2] / "benchmarks/results/superres.json").read_text())
    for row in card["scores"]:
        measured = results["cases"][row["case"]][row["protocol"]]["methods"]["pretrained"]
        assert row["gain_db"] == round(measured["gain_db"], 2)
        assert measured["weights_sha256"] == card["sha256"]


def test_pretraining_runs_by_the_clock_and_stores_what_it_made() -> None:
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(size=(3, 130, 130)), axis=2) / 8
    seen: list[int] = []

    def save(network: SliceNetwork, step: int) -> None:
        seen.append(step)

    settings = PretrainSettings(minutes=0.02, channels=8, blocks=1, tasks=2, subjects=1, patches=1, pixels=(3.0, 4.0))
    network = pretrain([Images("noise", steps.astype(np.float32))], settings=settings, save=save)
    assert seen
    fresh = SliceNetwork(channels=8, blocks=1)
    assert not all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))


def test_the_profile_kind_reaches_the_network() -> None:
    _, slices, _ = truth_and_slices((40, 36))
    settings = UpsampleSettings(self_check=False)
    made = [
        upsample(
            thick_volume(slices), spacing_mm=1.5, method="pretrained", slice_profile=profile, settings=settings
        ).data
        for profile in (SliceProfile("gaussian", 4.5), SliceProfile("rect", 4.5))
    ]
    assert not np.allclose(made[0], made[1], atol=1.0)
