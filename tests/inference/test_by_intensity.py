"""Borders from the image's own grey values: analytic truth, invariances, the engine around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from slice3d.errors import ModelError
from slice3d.grid import Grid
from slice3d.inference import Engine, InferenceSettings, intensities
from slice3d.models import ModelPackage
from slice3d.volume import Volume
from tests.inference.builders import write_package

SETTINGS = InferenceSettings(precision="float32", postprocess=False, device="cpu", threads=1)
SHAPE = (44, 40, 36)
TISSUES = [
    {"name": "around", "labels": [0], "components": 2},
    {"name": "shell", "labels": [1]},
    {"name": "core", "labels": [2, 3]},
]


def truth() -> np.ndarray:
    """Two cores, left and right, in one shell."""
    i, j, k = np.meshgrid(*[np.arange(n, dtype=float) for n in SHAPE], indexing="ij")
    labels = np.zeros(SHAPE, np.uint8)
    labels[((i - 21) / 17) ** 2 + ((j - 20) / 14) ** 2 + ((k - 17) / 13) ** 2 < 1] = 1
    labels[((i - 14) / 6) ** 2 + ((j - 21) / 8) ** 2 + ((k - 16) / 7) ** 2 < 1] = 2
    labels[((i - 29) / 6) ** 2 + ((j - 18) / 8) ** 2 + ((k - 18) / 6) ** 2 < 1] = 3
    return labels


def painted(labels: np.ndarray, greys: tuple[float, ...], *, shading: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.array(greys)[labels] * (1 + 0.04 * rng.standard_normal(labels.shape))
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in labels.shape], indexing="ij")
    out: np.ndarray = image * np.exp(shading * (i + 0.5 * j * k - 0.4 * j**2))
    return out


def vague(labels: np.ndarray, width: float = 2.5) -> np.ndarray:
    """(4, …) probabilities of a network that is unsure of borders by a few voxels, and wrong by one."""
    each = np.stack([ndimage.gaussian_filter((labels == n).astype(float), width) for n in range(4)])
    each = np.roll(each, 1, axis=2) + 1e-6
    out: np.ndarray = each / each.sum(0)
    return out


class Vague(torch.nn.Module):
    """Sees where things are, not how bright they are: its scores are what it was told, cut to the patch."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.from_numpy(np.log(vague(truth())).astype(np.float32))[None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(image), -1, -1, -1, -1)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    monkeypatch.setattr("slice3d.models.loading.build_network", lambda *_: Vague())
    return write_package(tmp_path / "vague", Vague(), **described())


def described(**fields: Any) -> dict[str, Any]:
    return {
        "labels": {"1": "shell", "2": "core_left", "3": "core_right"}, "groups": {"core": [2, 3]}, "modality": ["MR"],
        "spacing_mm": [1.0, 1.0, 1.0], "patch_size": list(SHAPE), "intensity": {"scheme": "percentiles"},
        "sampling": {"overlap": 0.0}, "tissues": TISSUES, **fields,
    }  # fmt: skip


def mr(image: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    grid = Grid(image.shape, np.eye(4) if affine is None else affine)
    return Volume(np.rint(image).astype(np.int16), grid, modality="MR")


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_grey_values_and_shading_are_recovered() -> None:
    labels = truth()
    image = painted(labels, (40, 400, 900, 900), shading=0.3)
    values = np.log(image).reshape(-1)
    prior = vague(labels)
    by_tissue = np.stack([prior[0], prior[1], prior[2] + prior[3]], axis=-1).reshape(-1, 3)
    places = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    terms = intensities.shading_terms(*(p.reshape(-1) for p in places))
    found = intensities.fit(values, by_tissue, [2, 1, 1], terms)
    dark = np.log([400, 900])
    assert found.mean[2:] - found.mean[2] == pytest.approx(dark - dark[0], abs=0.02)  # the level is shared with shading
    assert found.spread[2:] == pytest.approx([0.04, 0.04], abs=0.01)
    shading = terms @ found.shading
    expected = 0.3 * (places[0] + 0.5 * places[1] * places[2] - 0.4 * places[1] ** 2).reshape(-1)
    inside = labels.reshape(-1) > 0
    away = (shading - expected)[inside]
    assert np.std(away) < 0.02 < np.std(expected[inside])


@pytest.mark.parametrize("greys", [(40, 400, 900, 900), (40, 900, 400, 400), (500, 100, 250, 250)])
def test_borders_follow_the_image_whatever_the_contrast(package: ModelPackage, greys: tuple[float, ...]) -> None:
    labels = truth()
    result = Engine(package, SETTINGS).predict(mr(painted(labels, greys, shading=0.2)))
    before = vague(labels).argmax(0)
    for value in (1, 2, 3):
        assert overlap(before == value, labels == value) < 0.93
        assert overlap(result.labels == value, labels == value) > 0.97
    assert set(result.metadata["grey_values"]) == {"around", "shell", "core"}


def test_units_and_axes_do_not_matter(package: ModelPackage) -> None:
    image = np.rint(painted(truth(), (40, 400, 900, 900), shading=0.2))
    engine = Engine(package, SETTINGS)
    plain = engine.predict(mr(image)).labels
    scaled = engine.predict(mr(3 * image + 500)).labels
    assert np.mean(scaled != plain) < 1e-3  # rounding of integers aside
    turned = np.flip(image, (0, 2)).transpose(2, 0, 1)
    affine = np.array([[0, -1, 0, 43], [0, 0, 1, 0], [-1, 0, 0, 35], [0, 0, 0, 1.0]])
    found = engine.predict(mr(turned, affine)).labels
    assert np.mean(np.flip(found.transpose(1, 2, 0), (0, 2)) != plain) < 1e-3


def hounsfield(tmp_path: Path, **fields: Any) -> ModelPackage:
    window = {"scheme": "clip_zscore", "clip": [-900.0, 600.0], "mean": -50.0, "std": 220.0}
    return write_package(tmp_path / "ct", Vague(), **described(modality=["CT"], intensity=window, **fields))


@pytest.mark.parametrize("hu", [(-100, 60, 130, 130), (40, -60, 140, 140), (-1000, 300, 30, 30)])
def test_borders_follow_hounsfield_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hu: tuple[float, ...]
) -> None:
    monkeypatch.setattr("slice3d.models.loading.build_network", lambda *_: Vague())
    labels = truth()
    image = np.array(hu)[labels] + 20 * np.random.default_rng(1).standard_normal(SHAPE)
    settings = InferenceSettings(
        precision="float32", postprocess=False, device="cpu", threads=1, allow_unexpected_input=True
    )
    volume = Volume(np.rint(image).astype(np.int16), Grid(SHAPE, np.eye(4)), modality="CT")
    result = Engine(hounsfield(tmp_path), settings).predict(volume)
    before = vague(labels).argmax(0)
    for value in (1, 2, 3):
        assert overlap(result.labels == value, labels == value) > overlap(before == value, labels == value) + 0.03
        assert overlap(result.labels == value, labels == value) > 0.95
    (core,) = result.metadata["grey_values"]["core"]
    assert core == pytest.approx([hu[2] / 250, 20 / 250], abs=0.02)  # in units of 250 HU


def test_a_sure_network_is_taken_at_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the image shows: an artefact in the middle of an organ makes no hole."""
    labels = truth()
    sure = np.where(vague(labels, 1.0) == vague(labels, 1.0).max(0), 30.0, 0.0).astype(np.float32)
    monkeypatch.setattr(
        Vague, "forward", lambda self, image: torch.from_numpy(sure)[None].expand(len(image), -1, -1, -1, -1)
    )
    monkeypatch.setattr("slice3d.models.loading.build_network", lambda *_: Vague())
    image = np.random.default_rng(2).permutation(100.0 * labels.reshape(-1)).reshape(SHAPE).astype(np.int16)
    settings = InferenceSettings(postprocess=False, device="cpu", threads=1, allow_unexpected_input=True)
    result = Engine(hounsfield(tmp_path), settings).predict(Volume(image, Grid(SHAPE, np.eye(4)), modality="CT"))
    inside = np.all(
        [ndimage.minimum_filter(sure[n], 3) == ndimage.maximum_filter(sure[n], 3) for n in range(4)], axis=0
    )
    assert 0.5 < inside.mean() < 1
    assert np.array_equal(result.labels[inside], sure.argmax(0)[inside])


def test_only_what_was_asked_for_comes_back(package: ModelPackage) -> None:
    image = painted(truth(), (40, 400, 900, 900))
    engine = Engine(package, SETTINGS)
    everything = engine.predict(mr(image))
    core = engine.predict(
        mr(image), structures=["core"], settings=InferenceSettings(probabilities=("core",), threads=1)
    )
    assert np.array_equal(core.mask("core"), everything.mask("core"))
    assert set(core.names.values()) <= {"core_left", "core_right", "core"}
    probability = core.probabilities["core"].astype(float)
    assert np.mean((probability > 0.5) == core.mask("core")) > 0.999


def test_self_agreement_is_that_of_the_probabilities_that_decided(package: ModelPackage) -> None:
    """The sums behind the expected Dice, against the probability volume at the study's resolution."""
    settings = InferenceSettings(probabilities=("core",), threads=1)
    result = Engine(package, SETTINGS).predict(mr(painted(truth(), (40, 400, 900, 900))), settings=settings)
    p, m = result.probabilities["core"].astype(float), result.mask("core")
    measured = result.metadata["reliability"]["core"]["soft_dice"]
    assert measured == pytest.approx(2 * p[m].sum() / (m.sum() + p.sum()), abs=0.01)
    assert measured > 0.95


def test_a_network_that_sees_nothing_is_taken_at_its_word(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Vague, image: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(image), 4, *image.shape[2:])
        scores[:, 0] = 20
        return scores

    monkeypatch.setattr(Vague, "forward", nothing)
    result = Engine(package, SETTINGS).predict(mr(painted(truth(), (40, 400, 900, 900))))
    assert not result.labels.any()
    assert "grey_values" not in result.metadata


@pytest.mark.parametrize(
    "tissues",
    [
        [{"name": "a", "labels": [0]}],
        [{"name": "a", "labels": [1, 2, 3]}, {"name": "b", "labels": [0]}],
        [{"name": "a", "labels": [0], "components": 0}, {"name": "b", "labels": [1, 2, 3]}],
        [{"labels": [0, 1, 2, 3]}],
        "all",
        [{"name": "a", "labels": [0, 1]}, {"name": "b", "labels": [1, 2, 3]}],
    ],
)
def test_tissues_that_make_no_sense_are_refused(tmp_path: Path, tissues: Any) -> None:
    with pytest.raises(ModelError, match="tissues"):
        write_package(tmp_path / "bad", Vague(), **described(tissues=tissues))


def test_what_is_as_bright_as_compact_bone_may_be_bone_but_no_heart_becomes_an_aorta() -> None:
    from slice3d.inference.by_intensity import Scale

    hounsfield = Scale(True, -900.0, 600.0, outweigh=8.0)
    body, aorta, bone, _ = range(4)
    # what was never seen in this image may look likelier than anything
    fits = np.log(np.array([[1e-9, 1e-4, 0.1, 1.0], [1e-4, 1.0, 1e-9, 1e-9], [1e-9, 1e-9, 1.0, 1e-9]])).astype(
        np.float32
    )
    image, rival = np.array([300, 300, 100], np.int16), np.array([body, body, body])
    near = np.exp(hounsfield.limited(fits, image, bone, rival))
    assert near[:, body] == pytest.approx(1), "over the rival"
    assert near[:, bone] == pytest.approx([96, 1 / 8, 8], rel=1e-3), (
        "as bright as compact bone, no bone, as dark as marrow"
    )
    assert near[1, aorta] == pytest.approx(8, rel=1e-3), "contrast medium in both: as the network says"
    without = np.exp(hounsfield.limited(fits, image, None, rival))
    assert without.max() == pytest.approx(8, rel=1e-3)
    assert without.min() == pytest.approx(1 / 8, rel=1e-3)
    free = Scale(False, 0.0, 500.0)
    assert np.array_equal(free.limited(fits, image, bone, rival), fits)
