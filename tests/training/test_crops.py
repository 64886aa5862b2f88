"""What the network gets to see: crops, and how they are turned, scaled, recoloured, given lesions and old bones."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.training import cases
from slice3d.training.cases import Case
from slice3d.training.crops import CropDataset, Pool, _angles, _with_margin
from slice3d.training.settings import AugmentSettings, IntensitySettings, TrainSettings
from slice3d.training.structures import LABELS, NO_ORGAN


@pytest.mark.parametrize("lesions", [{}, {3: 10}])
def test_crop_depends_on_its_number_alone(tmp_path: Path, lesions: dict[int, int]) -> None:
    rng = np.random.default_rng(5)
    labels = np.zeros((30, 26, 22), np.uint8)
    labels[8:20, 9:20, 5:15] = 3
    image = np.where(labels == 3, 100, -900).astype(np.int16)
    cases.save(Case("one", image, labels, (3.0, 3.0, 3.0)), tmp_path)
    augment = AugmentSettings(noise=0.0, lesions=lesions, lesion_share=1.0)
    settings = TrainSettings("", {}, LABELS, (16, 16, 8), (6.0, 6.0, 6.0), steps=5, augment=augment)
    dataset = CropDataset(Pool({tmp_path: 1.0}), settings)
    order = rng.permutation(12)
    drawn = set()
    first = {int(n): dataset[int(n)] for n in order}
    for n in range(12):
        image_again, labels_again = dataset[n]
        assert np.array_equal(image_again, first[n][0])
        assert np.array_equal(labels_again, first[n][1])
        assert image_again.shape == (1, 16, 16, 8)
        # image and labels move together: bright voxels are the labelled ones, but for interpolated borders
        bright = image_again[0].numpy() > 0
        if bright.sum() > 200:
            assert (bright == np.isin(labels_again.numpy(), (3, 10))).mean() > 0.8
        drawn |= set(labels_again.unique().tolist())
    assert (10 in drawn) == bool(lesions)
    if lesions:
        for drawn_in_hu in (augment, AugmentSettings(marrow={7: 0.5})):
            other = replace(settings, augment=drawn_in_hu, intensity=IntensitySettings(scheme="zscore"))
            with pytest.raises(InputError, match="expected Hounsfield units"):
                CropDataset(Pool({tmp_path: 1.0}), other)


def test_another_contrast_phase_shifts_each_structure_as_a_whole_and_nothing_else() -> None:
    from slice3d.training.crops import _recolour

    truth = np.zeros((24, 20, 16), np.uint8)
    truth[4:12, 5:15, 3:13] = 1
    truth[14:20, 5:15, 3:13] = 8
    truth[4:20, 16:19, 3:13] = NO_ORGAN
    hu = np.full(truth.shape, 40, np.float32)
    before = hu.copy()
    _recolour(hu, truth, {1: 0.1, 8: 0.3}, np.random.default_rng(3), scale=220.0)
    moved = hu - before
    lesion = np.where(np.indices(truth.shape)[0] < 8, np.where(truth == 1, 10, truth), truth)
    with_it = before.copy()
    _recolour(with_it, lesion, {1: 0.1, 8: 0.3}, np.random.default_rng(3), scale=220.0, lesions={1: 10})
    assert np.allclose(with_it - before, moved, atol=1e-3), "a lesion is shifted with its organ"
    for value in (1, 8):
        core = (truth == value) & (np.roll(truth, 1, 0) == value) & (np.roll(truth, -1, 0) == value)
        core &= (np.roll(truth, 1, 1) == value) & (np.roll(truth, -1, 1) == value)
        core &= (np.roll(truth, 1, 2) == value) & (np.roll(truth, -1, 2) == value)
        assert core.any()
        assert np.ptp(moved[core]) < 1e-3
        assert abs(moved[core].mean()) > 1
    assert moved[truth == 1].mean() != pytest.approx(moved[truth == 8].mean(), abs=1)
    assert np.allclose(moved[:2], 0)
    assert np.allclose(moved[6:18, 18], 0)


def test_lesions_are_put_into_an_organ_that_has_none_and_nowhere_else() -> None:
    from scipy import ndimage

    from slice3d.training.lesions import insert_lesions

    organ = np.zeros((40, 30, 24), np.uint8)
    organ[8:32, 6:24, 4:20] = 1
    organ[34:38, 6:24, 4:20] = 2
    noise = np.random.default_rng(0).normal(100, 10, organ.shape).astype(np.float32)
    spacing = (3.0, 2.5, 4.0)
    volumes = []
    for seed in range(8):
        hu, truth = noise.copy(), organ.copy()
        insert_lesions(hu, truth, 1, 10, spacing, np.random.default_rng(seed))
        lesion = truth == 10
        assert lesion.any()
        assert (organ[lesion] == 1).all()
        assert np.array_equal(truth[~lesion], organ[~lesion])
        assert np.array_equal(hu[organ != 1], noise[organ != 1])
        assert np.array_equal(hu != noise, (hu != noise) & ndimage.binary_dilation(lesion, iterations=3))
        _, parts = ndimage.label(lesion, np.ones((3, 3, 3)))
        assert 1 <= parts <= 3
        assert np.abs((hu - noise)[lesion]).mean() > 8
        volumes.append(lesion.sum() * np.prod(spacing) / 1000)
    assert min(volumes) < 10 < max(volumes), "small ones and large ones, in millilitres"

    hu, truth = noise.copy(), np.where(organ == 1, 10, organ)
    insert_lesions(hu, truth, 1, 10, spacing, np.random.default_rng(0))
    assert np.array_equal(hu, noise), "an organ with a lesion keeps it"
    hu, truth = noise.copy(), np.where(np.indices(organ.shape)[0] < 10, organ, 0).astype(np.uint8)
    insert_lesions(hu, truth, 1, 10, spacing, np.random.default_rng(0))
    assert np.array_equal(hu, noise), "a sliver of an organ stays as it is"


def test_marrow_turns_to_fat_inside_bones_and_nowhere_else() -> None:
    from scipy import ndimage

    from slice3d.training.marrow import fade_marrow

    bone, spacing = 7, (3.0, 2.5, 4.0)
    truth = np.zeros((40, 30, 24), np.uint8)
    truth[6:34, 6:24, 4:20] = bone
    inner = ndimage.binary_erosion(truth == bone, iterations=2)
    noise = np.random.default_rng(0).normal(0, 10, truth.shape)
    before = (np.where(inner, 180, np.where(truth == bone, 900, 40)) + noise).astype(np.float32)
    faded, shell = [], []
    for seed in range(12):
        hu = before.copy()
        fade_marrow(hu, truth, bone, spacing, np.random.default_rng(seed))
        assert np.array_equal(hu[truth != bone], before[truth != bone])
        assert (hu <= before + 1e-3).all(), "marrow fades, nothing becomes denser"
        assert hu.min() > -250
        faded.append(np.quantile((before - hu)[inner], 0.9))
        shell.append((before - hu)[(truth == bone) & ~ndimage.binary_erosion(truth == bone)].mean())
        changed = (before - hu)[inner] > 60
        if changed.any():
            # in patches: what fades has neighbours that do
            parts, count = ndimage.label((before - hu > 60) & inner)
            assert np.bincount(parts.ravel())[1:].max() > 0.3 * changed.sum() / max(1, count) ** 0.5
    assert max(faded) > 150, "some become as dark as fat"
    assert np.median(shell) < 0.4 * np.median(faded), "compact bone stays"
    assert any(f < 60 for f in faded), "some bones stay as they are"

    hu = before.copy()
    fade_marrow(hu, np.zeros_like(truth), bone, spacing, np.random.default_rng(0))
    assert np.array_equal(hu, before)


def test_marrow_fades_in_the_share_of_crops_that_was_asked_for(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:18, 2:18, 2:18] = 7
    cases.save(Case("one", np.where(labels == 7, 200, 0).astype(np.int16), labels, (3.0, 3.0, 3.0)), tmp_path)
    plain = AugmentSettings(
        rotate_deg=0, scale=0, noise=0, shift=0, gain=0, blur=0.2, gamma=0, low_resolution=0, cut_field_of_view=0
    )

    def dark(share: float) -> int:
        augment = replace(plain, marrow={7: share} if share else {})
        settings = TrainSettings("", {}, LABELS, (12, 12, 12), (3.0, 3.0, 3.0), steps=40, augment=augment)
        dataset = CropDataset(Pool({tmp_path: 1.0}), settings)
        crops = [dataset[n] for n in range(40)]
        return sum(bool((image[0][truth == 7] < 0.2).any()) for image, truth in crops)

    assert dark(0) == 0
    assert 0 < dark(0.2) < dark(1) <= 40
    assert dark(1) > 8


def test_patients_are_turned_about_their_long_axis_further_than_tilted(tmp_path: Path) -> None:
    labels = np.zeros((40, 40, 30), np.uint8)
    labels[8:32, 17:23, :] = 9  # a slab whose direction can be measured in every axial plane
    cases.save(Case("one", np.where(labels == 9, 100, -900).astype(np.int16), labels, (3.0, 3.0, 3.0)), tmp_path)
    plain = AugmentSettings(rotate_deg=2, scale=0, noise=0, low_resolution=0, cut_field_of_view=0)

    def directions(turn_deg: float) -> np.ndarray:
        augment = replace(plain, turn_deg=turn_deg)
        settings = TrainSettings("", {}, LABELS, (24, 24, 12), (3.0, 3.0, 3.0), steps=60, augment=augment)
        dataset = CropDataset(Pool({tmp_path: 1.0}), settings)
        found = []
        for n in range(60):
            slab = dataset[n][1].numpy()[..., 6] == 9
            if slab.sum() > 80:
                i, j = np.nonzero(slab)
                found.append(np.degrees(np.arctan2(*np.linalg.eigh(np.cov(i, j))[1][::-1, 1])))
        return np.abs((np.array(found) + 90) % 180 - 90)

    straight, askew = directions(0), directions(25)
    assert len(askew) > 15
    assert np.quantile(straight, 0.9) < 6
    assert np.quantile(askew, 0.9) > 12
    assert askew.max() < 32


def test_room_for_turning_is_cut_in_plane_and_only_then() -> None:
    still = AugmentSettings(scale=0.15)
    assert _with_margin((100, 60, 40), still) == (120, 72, 48)
    across, deep, high = _with_margin((100, 60, 40), replace(still, turn_deg=30))
    assert across == int(np.ceil(120 * np.cos(np.pi / 6) + 72 * np.sin(np.pi / 6)))
    assert deep == int(np.ceil(72 * np.cos(np.pi / 6) + 120 * np.sin(np.pi / 6)))
    assert high == 48
    every = [_with_margin((100, 60, 40), replace(still, turn_deg=deg)) for deg in (0, 20, 45, 90, 180)]
    assert all(a <= b for one, other in pairwise(every) for a, b in zip(one, other, strict=True))
    assert every[-1][0] >= np.hypot(120, 72), "a diagonal may come to lie along it on the way"


def test_crops_are_scaled_and_tilted_along_every_axis(tmp_path: Path) -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[12:28, 12:28, 12:28] = 9
    cases.save(Case("one", np.where(labels == 9, 100, -900).astype(np.int16), labels, (3.0, 3.0, 3.0)), tmp_path)
    plain = AugmentSettings(rotate_deg=0, scale=0, noise=0, low_resolution=0, cut_field_of_view=0)

    def moments(augment: AugmentSettings) -> tuple[np.ndarray, np.ndarray]:
        settings = TrainSettings("", {}, LABELS, (32, 32, 32), (3.0, 3.0, 3.0), steps=60, augment=augment)
        dataset = CropDataset(Pool({tmp_path: 1.0}), settings)
        spread = []
        for n in range(60):
            inside = dataset[n][1].numpy() == 9
            if not any(inside.take(edge, axis).any() for axis in range(3) for edge in (0, -1)):
                spread.append(np.cov(np.argwhere(inside).T))
        assert len(spread) > 12
        return np.std([np.sqrt(np.diag(c)) for c in spread], axis=0), np.array(spread)

    assert (moments(replace(plain, scale=0.25))[0] > 0.3).all(), "extents differ along each axis"
    # a cuboid that is tilted about an axis mixes the two others
    longer = np.zeros_like(labels)
    longer[8:32, 12:28, 16:24] = 9
    cases.save(Case("one", np.where(longer == 9, 100, -900).astype(np.int16), longer, (3.0, 3.0, 3.0)), tmp_path)
    _, mixed = moments(replace(plain, rotate_deg=20))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.std(mixed[:, a, b]) > 1, f"nothing is tilted in the plane of axes {a} and {b}"


def test_long_voxels_are_tilted_less_and_turned_as_far() -> None:
    cubes = _angles(AugmentSettings(rotate_deg=10, turn_deg=30), (2.0, 2.0, 2.0))
    assert np.degrees(cubes) == pytest.approx((10, 10, 30))
    assert np.degrees(_angles(AugmentSettings(rotate_deg=10, turn_deg=30), (1.0, 1.0, 5.0))) == pytest.approx(
        (2, 2, 30)
    )
    assert np.degrees(_angles(AugmentSettings(rotate_deg=10), (4.0, 1.0, 1.0))) == pytest.approx((10, 2.5, 2.5))


def test_shapes_are_deformed_smoothly_and_labels_with_the_image(tmp_path: Path) -> None:
    at = np.indices((72, 60, 48))
    stripes = ((at // 6).sum(0) % 2).astype(np.uint8)  # cubes of 18 mm
    cases.save(Case("one", np.where(stripes, 100, -100).astype(np.int16), 1 + stripes, (3.0, 3.0, 3.0)), tmp_path)
    still = AugmentSettings(
        rotate_deg=0, scale=0, noise=0, shift=0, gain=0, blur=0.2, gamma=0, low_resolution=0, cut_field_of_view=0
    )
    pool = Pool({tmp_path: 1.0})

    def crops(deform_mm: float) -> CropDataset:
        augment = replace(still, deform_mm=deform_mm)
        return CropDataset(
            pool, TrainSettings("", {}, LABELS, (72, 60, 48), (3.0, 3.0, 3.0), steps=40, augment=augment)
        )

    plain, moved = crops(0), crops(10)
    changed = 0
    for n in range(24):
        image, labels = moved[n]
        again = moved[n]
        assert np.array_equal(image, again[0])
        assert np.array_equal(labels, again[1])
        bright, dark = image[0][labels == 2], image[0][labels == 1]
        assert bright.mean() - dark.mean() > 0.5, "the image goes with its labels"
        before = plain[n][1].numpy()
        if (labels.numpy() != before).mean() > 0.02:
            changed += 1
            from scipy import ndimage

            # nothing is torn: there are about as many cubes as there were
            assert ndimage.label(labels.numpy() == 2)[1] < 1.3 * ndimage.label(before == 2)[1]
    assert 6 <= changed <= 18, "half of the crops"
