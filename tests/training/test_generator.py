"""Images painted from label maps: what must hold for every sample, whatever its contrast."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.inference.prepare import make_frame, network_image
from slice3d.models.package import Intensity
from slice3d.training.generator import (
    GeneratorSettings,
    LabelMap,
    acquire,
    draw_contrast,
    draw_voxels,
    generate,
    normalised_by_percentiles,
)
from slice3d.training.labelmaps import label_map
from slice3d.volume import Volume
from tests.inference.builders import random_network, write_package
from tests.training.builders import HEAD, head_map

NAMES = {n + 1: name for n, name in enumerate(HEAD)}
CLASSES = {HEAD[name]: value for value, name in NAMES.items()}
STILL = GeneratorSettings(
    scale=0, rotation_deg=0, shear=0, elastic_mm=(0.0, 0.0), cut=0, strip=0, flip=False, lesion=0
)  # fmt: skip
SHAPE = (46, 54, 42)
SPACING = (3.0, 3.0, 3.0)
MIDDLE = (22.5, 26.5, 20.5)


def head(seed: int = 0) -> LabelMap:
    return label_map(
        "head", head_map(seed), SPACING, CLASSES, NAMES,
        same=lambda v: {41: 2, 42: 3, 49: 10}.get(v, v),
        families=lambda tissues: {tissues[2]: (1, 1, 0.0), tissues[3]: (2, 2, 0.0), tissues[10]: (2, 1, 0.5)},
    )  # fmt: skip


HEADS = head()


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(seed: int) -> None:
    torch.manual_seed(1)
    image, classes = generate(HEADS, seed=seed, shape=(24, 28, 20), spacing_mm=SPACING)
    torch.manual_seed(2)  # the global generators play no part
    again, classes_again = generate(HEADS, seed=seed, shape=(24, 28, 20), spacing_mm=SPACING)
    assert image.tobytes() == again.tobytes()
    assert classes.tobytes() == classes_again.tobytes()
    assert not np.array_equal(image, generate(HEADS, seed=seed + 1, shape=(24, 28, 20), spacing_mm=SPACING)[0])
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_what_the_image_looks_like_does_not_touch_the_classes(seed: int) -> None:
    calm = GeneratorSettings(noise=0, texture=0, bias=0, gamma=0, lesion=0, tied=1, thick=0, coarse=0, strip=0, cut=0)
    wild = replace(calm, noise=0.5, texture=0.5, bias=1, gamma=1, lesion=1, tied=0, thick=1, strip=0.5)
    one, two = (generate(HEADS, seed=seed, shape=(24, 28, 20), spacing_mm=SPACING, settings=s) for s in (calm, wild))
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], two[0])


def test_without_motion_the_classes_are_those_of_the_map() -> None:
    _, classes = generate(HEADS, seed=3, shape=SHAPE, spacing_mm=SPACING, settings=STILL, around=MIDDLE)
    assert np.array_equal(classes, HEADS.truth[HEADS.index])


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (2.0, 3.0, 6.0), (4.5, 1.5, 3.0)])
def test_volumes_in_mm_do_not_depend_on_the_spacing(spacing: tuple[float, float, float]) -> None:
    a, b, c = (round(n * 3.0 / s) for n, s in zip(SHAPE, spacing, strict=True))
    _, classes = generate(HEADS, seed=4, shape=(a, b, c), spacing_mm=spacing, settings=STILL, around=MIDDLE)
    expected = HEADS.truth[HEADS.index]
    for part in ("white", "cortex", "core"):  # both sides: the plane between them may fall on voxels
        values = [v for v, name in NAMES.items() if name.startswith(part)]
        found = np.count_nonzero(np.isin(classes, values)) * np.prod(spacing)
        assert found == pytest.approx(np.count_nonzero(np.isin(expected, values)) * 27.0, rel=0.08), part


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_left_stays_left_in_mirror_images(seed: int) -> None:
    how = replace(STILL, flip=True, rotation_deg=15, elastic_mm=(3.0, 1.0))
    _, classes = generate(HEADS, seed=seed, shape=SHAPE, spacing_mm=SPACING, settings=how, around=MIDDLE)
    for value, name in NAMES.items():
        if name.endswith("_left"):
            other = next(v for v, n in NAMES.items() if n == name.replace("_left", "_right"))
            assert np.nonzero(classes == value)[0].mean() < np.nonzero(classes == other)[0].mean(), name


def test_both_mirror_images_occur() -> None:
    lopsided = head_map()
    lopsided[lopsided == 49] = 41  # a core on the left side only
    source = label_map("lopsided", lopsided, SPACING, CLASSES, NAMES)
    sides = set()
    for seed in range(12):
        how = replace(STILL, flip=True)
        _, classes = generate(source, seed=seed, shape=SHAPE, spacing_mm=SPACING, settings=how, around=MIDDLE)
        left, right = (np.count_nonzero(classes == v) for v, n in NAMES.items() if n.startswith("core"))
        assert (left > 0) != (right > 0)
        sides.add(left > 0)
    assert sides == {True, False}


def test_slices_are_as_thick_as_they_say() -> None:
    """A bright plane is smeared over the slice thickness along the coarse axis and not at all across it."""
    image = np.zeros((20, 22, 96), np.float32)
    image[:, :, 48] = 1
    rng = np.random.default_rng(0)
    for thickness in (3.0, 5.0, 8.0):
        seen = acquire(image, (1.0, 1.0, thickness), (1.0, 1.0, thickness), (1.0, 1.0, 1.0), noise=0.0, rng=rng)
        profile = seen[10, 11]
        wide = np.sqrt(np.average((np.arange(96) - np.average(np.arange(96), weights=profile)) ** 2, weights=profile))
        # the profile's own width, and that of linear interpolation between slices
        expected = np.sqrt((thickness / 2.355) ** 2 + thickness**2 / 6)
        assert wide == pytest.approx(expected, rel=0.25), thickness
        across = acquire(image.transpose(2, 0, 1), (1.0, 1.0, thickness), (1.0, 1.0, thickness), (1, 1, 1), noise=0.0,
                         rng=rng)[:, 10, 11]  # fmt: skip
        assert np.count_nonzero(across > 0.05) <= 3


def test_a_flat_image_stays_flat_and_noise_is_added_before_interpolation() -> None:
    flat = np.full((30, 26, 40), 0.5, np.float32)
    rng = np.random.default_rng(1)
    seen = acquire(flat, (1.0, 1.0, 8.0), (1.0, 1.0, 8.0), (1.0, 1.0, 1.0), noise=0.0, rng=rng)
    assert np.allclose(seen, 0.5, atol=1e-5)
    noisy = acquire(flat, (1.0, 1.0, 8.0), (1.0, 1.0, 8.0), (1.0, 1.0, 1.0), noise=0.05, rng=rng)
    along, across = np.diff(noisy, axis=2).std(), np.diff(noisy, axis=0).std()
    assert along < 0.4 * across  # neighbours between two slices share their noise


def test_thick_slices_up_to_the_limit_occur_along_every_axis() -> None:
    how = GeneratorSettings()
    rng = np.random.default_rng(2)
    drawn = np.array([draw_voxels((1.5, 1.5, 1.5), rng, how)[0] for _ in range(400)])
    one = (drawn > 2).sum(axis=1) == 1
    assert 0.3 < one.mean() < 0.7
    assert drawn.max() <= how.slice_mm[1]
    assert (drawn.max(axis=0) > 7).all()


def test_heads_with_and_without_skull_occur() -> None:
    how = GeneratorSettings(strip=0.25)
    skin = int(np.flatnonzero(np.unique(head_map()) == 500)[0])
    rng = np.random.default_rng(3)
    drawn = [draw_contrast(HEADS, rng, how) for _ in range(300)]
    stripped = np.array([bool(c.gone[skin]) for c in drawn])
    assert 0.15 < stripped.mean() < 0.35
    assert all(c.mean[skin] == 0 for c in drawn if c.gone[skin])
    assert np.mean([c.mean[skin] > 0.05 for c, s in zip(drawn, stripped, strict=True) if not s]) > 0.5
    found = HEADS.truth > 0
    assert not any(c.gone[found].any() for c in drawn)


def test_contrasts_go_both_ways_and_sides_look_alike() -> None:
    rng = np.random.default_rng(4)
    drawn = np.array([draw_contrast(HEADS, rng, GeneratorSettings()).mean for _ in range(200)])
    number = {int(v): n for n, v in enumerate(np.unique(head_map()))}
    brighter = np.mean(drawn[:, number[2]] > drawn[:, number[3]])
    assert 0.35 < brighter < 0.65
    assert np.array_equal(drawn[:, number[2]], drawn[:, number[41]])
    assert (drawn[:, 0] <= 0.11).all()


def test_contrasts_may_follow_the_order_of_real_sequences() -> None:
    number = {int(v): n for n, v in enumerate(np.unique(head_map()))}
    ordered = replace(HEADS, orders=((2, 1), (2, 1), (1, 2)))
    how = GeneratorSettings(tied=1.0, ordered=1.0)
    rng = np.random.default_rng(6)
    drawn = np.array([draw_contrast(ordered, rng, how).mean for _ in range(300)])
    brighter = np.mean(drawn[:, number[2]] > drawn[:, number[3]])  # family 1 above family 2, two of three times
    assert 0.55 < brighter < 0.78
    alone = replace(HEADS, orders=((2, 1),))
    drawn = np.array([draw_contrast(alone, rng, how).mean for _ in range(300)])
    assert np.mean(drawn[:, number[2]] > drawn[:, number[3]]) > 0.9


def test_training_and_the_runner_normalise_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(5)
    data = rng.gamma(2.0, 200.0, (20, 24, 22)).astype(np.float32)
    package = write_package(
        tmp_path_factory.mktemp("model") / "mr", random_network(), modality=["MR"], intensity={"scheme": "percentiles"},
        spacing_mm=[1.0, 1.0, 1.0],
    )  # fmt: skip
    assert package.intensity[0] == Intensity("percentiles")
    volume = Volume(data, Grid(data.shape, np.eye(4)), modality="MR")
    seen = network_image([volume], package, make_frame([volume], package))[0]
    assert np.allclose(seen, normalised_by_percentiles(data), atol=1e-5)
    assert seen.min() == 0
    assert seen.max() <= 1.5


def test_a_map_with_too_many_values_is_an_image() -> None:
    with pytest.raises(InputError, match="300 values; expected at most 255"):
        label_map("x", np.arange(300).reshape(10, 6, 5), SPACING, {}, {})
