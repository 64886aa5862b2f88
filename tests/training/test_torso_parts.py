"""The pieces of the torso recipe on analytic shapes: rules on HU, synthesis, annotation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.training import annotate, cases, rules
from slice3d.training.annotate import Checked
from slice3d.training.cases import Case
from slice3d.training.structures import CONTEXT, LABELS, NO_ORGAN, PARTIAL, VALUES

SPACING = (3.0, 3.5, 4.0)


def chest() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An elliptic trunk with two lungs, a spine, a contrast-filled heart and a couch; axes grow to R, A, S."""
    shape = (110, 80, 50)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * SPACING
    x, y = at[..., 0] - 165, at[..., 1] - 150
    parts = {
        "body": (x / 140) ** 2 + (y / 95) ** 2 < 1,
        "lung_left": ((x + 70) / 45) ** 2 + (y / 60) ** 2 < 1,
        "lung_right": ((x - 70) / 45) ** 2 + (y / 60) ** 2 < 1,
        "bone": (np.hypot(x, y + 60) < 18) & (np.hypot(x, y + 60) > 9),
        "heart": np.hypot(x, y - 20) < 22,
    }
    hu = np.full(shape, -1000.0)
    hu[parts["body"]] = 40
    hu[parts["lung_left"] | parts["lung_right"]] = -830
    hu[parts["bone"]] = 800
    hu[parts["heart"]] = 500
    hu[:, 8:10, :] = 100  # the couch
    return (hu + np.random.default_rng(0).normal(0, 8, shape)).astype(np.int16), parts


def test_rules_find_body_lungs_and_bone_and_leave_contrast_open() -> None:
    hu, parts = chest()
    labels = rules.label(hu, SPACING)
    body = rules.body_mask(hu, SPACING)
    assert np.count_nonzero(body ^ parts["body"]) < 0.02 * np.count_nonzero(parts["body"])
    for name in ("lung_left", "lung_right"):
        mask = labels == VALUES[name]
        assert 2 * np.count_nonzero(mask & parts[name]) / (mask.sum() + parts[name].sum()) > 0.95
        for end in (0, -1):
            cut = np.count_nonzero(mask[..., end] & parts[name][..., end])
            assert cut > 0.9 * np.count_nonzero(parts[name][..., end]), "a lung goes on beyond the image"
    bone = labels == VALUES["bone"]
    assert np.count_nonzero(bone & parts["bone"]) > 0.8 * np.count_nonzero(parts["bone"])
    assert not (bone & parts["heart"]).any()
    assert not (labels[:, 8:10, :] != 0).any(), "the couch is no part of the patient"


def test_partial_labels_never_exclude_the_truth() -> None:
    hu, parts = chest()
    labels = rules.label(hu, SPACING)
    truth = np.zeros(hu.shape, int)
    for name in ("body", "lung_left", "lung_right", "bone"):
        truth[parts[name]] = VALUES[name]
    truth[parts["heart"]] = VALUES["body"]
    for value, allowed in PARTIAL.items():
        where = labels == value
        if where.any():
            assert np.isin(truth[where], allowed).mean() > 0.99, value


def test_marrow_inside_compact_bone_is_bone_but_canal_brain_and_pelvis_are_not() -> None:
    shape = (90, 80, 20)
    i, j = np.indices(shape[:2])
    hu = np.full(shape, 40, np.int16)
    rings = {
        "vertebra": ((25, 25), 7, 100),  # marrow of an old patient, inside a shell
        "canal": ((25, 50), 4, 30),
        "skull": ((60, 40), 18, 90),  # a hundred square centimetres: a brain with contrast, say
    }
    for centre, radius, inside in rings.values():
        away = np.hypot(i - centre[0], j - centre[1])
        hu[(away < radius + 2) & (away >= radius)] = 700
        hu[away < radius] = inside
    found = rules.marrow(hu, hu > 450, SPACING)
    for name, (centre, radius, _) in rings.items():
        core = np.hypot(i - centre[0], j - centre[1]) < radius - 2
        assert found[core].mean() == (1 if name == "vertebra" else 0), name
    assert not found[:5].any()


@pytest.fixture(scope="module")
def atlas() -> object:
    from slice3d.training.synthesis import make_atlas

    shape = (90, 70, 60)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    labels = np.zeros(shape, np.uint8)
    for value, centre, radius in (
        (5, (60, 35, 35), 18),
        (1, (22, 30, 35), 9),
        (28, (45, 15, 30), 8),
        (20, (40, 50, 20), 9),
    ):
        labels[np.linalg.norm(at - np.array(centre), axis=-1) < radius] = value
    return make_atlas("toy", labels, pad_mm=15)


def test_synthesis_keeps_sides_and_tissue_order_and_is_reproducible(atlas: object) -> None:
    from slice3d.training.synthesis import Deformation, synthesise

    shape = (56, 44, 30)
    one, two = (synthesise(atlas, seed=4, shape=shape) for _ in range(2))  # type: ignore[arg-type]
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.labels, two.labels)
    assert one.spacing_mm == (3.0, 3.0, 3.0)
    for seed in range(3):
        case = synthesise(atlas, seed=seed, shape=shape, deformation=Deformation(elastic_mm=3.0))  # type: ignore[arg-type]
        liver, spleen, bone = (case.labels == VALUES[n] for n in ("liver", "spleen", "bone"))
        assert np.argwhere(liver)[:, 0].mean() > np.argwhere(spleen)[:, 0].mean(), "liver lies right of the spleen"
        # marrow may be fat: the compact shell is what is always denser
        assert np.percentile(case.image[bone], 85) > np.median(case.image[liver])
        assert np.median(case.image[liver]) > np.median(case.image[case.labels == 0])
        assert set(np.unique(case.labels)) <= {0, *LABELS, *CONTEXT}


@pytest.mark.parametrize("seed", [1, 3])
def test_organs_lie_in_the_same_place_on_smaller_voxels(atlas: object, seed: int) -> None:
    from slice3d.training.synthesis import synthesise

    large = synthesise(atlas, seed=seed, shape=(56, 44, 30), spacing_mm=3.0)  # type: ignore[arg-type]
    small = synthesise(atlas, seed=seed, shape=(84, 66, 45), spacing_mm=2.0)  # type: ignore[arg-type]
    assert small.image.shape == (84, 66, 45)
    assert small.spacing_mm == (2.0, 2.0, 2.0)
    # lesions are put in anew
    for values in ((VALUES["liver"], VALUES["liver_tumor"]), (VALUES["spleen"],)):
        there = [np.isin(c.labels, values) for c in (large, small)]
        ml = [mask.sum() * np.prod(c.spacing_mm) / 1000 for mask, c in zip(there, (large, small), strict=True)]
        assert ml[1] == pytest.approx(ml[0], rel=0.04)
        middles = [(np.argwhere(m).mean(0) + 0.5) * c.spacing_mm for m, c in zip(there, (large, small), strict=True)]
        assert middles[1] == pytest.approx(middles[0], abs=0.5)


def test_sinus_of_a_kidney_holds_more_than_fat_and_lime_lies_in_the_wall_of_an_aorta() -> None:
    from scipy import ndimage

    from slice3d.training.synthesis import _paint_aorta, _paint_kidneys

    at = np.stack(np.meshgrid(*[np.arange(60)] * 3, indexing="ij"), -1)
    labels = np.zeros((60, 60, 60), np.int64)
    gap = (np.abs(at[..., 0] - 38) < 4) & (at[..., 1] > 28)  # 12 mm wide, open to the front
    labels[(np.linalg.norm(at - np.array((38, 30, 30)), axis=-1) < 14) & ~gap] = 2
    tube = np.hypot(at[..., 0] - 12, at[..., 1] - 30) < 7
    labels[tube] = 52
    depth = (1.5 * ndimage.distance_transform_edt(labels > 0)).astype(np.float32)
    means = {"cortex": 170.0, "medulla": 75.0, "liver": 100.0, "cyst": 5.0, "vein": 90.0, "fat": -100.0}
    sinus = gap & (np.linalg.norm(at - np.array((38, 30, 30)), axis=-1) < 9)
    away = (labels == 0) & (np.linalg.norm(at - np.array((38, 30, 30)), axis=-1) > 20)
    soft, limy = 0.0, 0
    for seed in range(12):
        hu = np.where(labels == 0, -100.0, 60.0).astype(np.float32)
        _paint_kidneys(hu, labels, depth, 1.5, means, np.random.default_rng(seed))
        _paint_aorta(hu, labels, depth, 1.5, np.random.default_rng(seed))
        assert (hu[away] == -100).all()
        assert (hu[labels == 2] > 20).all()
        soft += (hu[sinus] > -40).mean()
        lime = hu[tube] > 200
        limy += bool(lime.any())
        assert not lime[depth[tube] > 4].any()
    assert 0.1 < soft / 12 < 0.9
    assert 1 <= limy <= 9


def test_only_confirmed_structures_are_kept() -> None:
    shape = (40, 30, 30)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    liver = np.linalg.norm(at - np.array((28, 15, 15)), axis=-1) < 8
    spleen = np.linalg.norm(at - np.array((8, 15, 15)), axis=-1) < 5
    image = np.where(liver, 110, np.where(spleen, 120, 40)).astype(np.int16)
    shares = np.zeros((11, *shape), np.float32)
    shares[VALUES["body"]] = 1
    # the network is sure of a box around the liver: HU cut it down to the organ
    box = np.zeros(shape, bool)
    box[18:38, 5:26, 5:26] = True
    for mask, name in ((box, "liver"), (spleen, "spleen")):
        shares[:, mask] = 0
        shares[VALUES[name], mask] = np.where(liver | spleen, 0.9, 0.6)[mask]
    case = Case("c", image, np.full(shape, 254, np.uint8), (3.0, 3.0, 3.0))
    out = annotate.refine(case, shares, Checked(keep=("liver",)))
    found = out.labels == VALUES["liver"]
    assert 2 * np.count_nonzero(found & liver) / (found.sum() + liver.sum()) > 0.93
    assert not (out.labels == VALUES["spleen"]).any()
    assert (out.labels[spleen] == 254).all(), "what nobody confirmed stays open"


def test_what_the_eye_marked_is_added_and_what_it_doubted_stays_open() -> None:
    from slice3d.training.annotate import Grown
    from slice3d.training.structures import LABELS, SOFT_TISSUE

    image = np.full((40, 30, 20), -100, np.int16)
    image[4:12, 5:15, 4:16] = 30  # a kidney that the network missed
    image[4:12, 20:28, 4:16] = 30  # the same HU outside the box
    image[22:38, 8:20, 4:16] = 60
    labels = np.full(image.shape, SOFT_TISSUE, np.uint8)
    shares = np.zeros((len(LABELS) + 1, *image.shape), np.float32)
    shares[VALUES["liver"]] = image == 60
    shares[VALUES["body"]] = image != 60
    checked = Checked(
        ("liver",), grown=(Grown("kidney_left", ((2, 20), (2, 18), (0, 20)), (0, 50)),),
        leaks=(("liver", ((30, 99), (0, 99), (0, 99))),),
    )  # fmt: skip
    out = annotate.refine(cases.Case("x", image, labels, (3.0, 3.0, 3.0)), shares, checked).labels
    kidney, liver = out == VALUES["kidney_left"], out == VALUES["liver"]
    assert kidney[5:11, 6:14, 5:15].all()
    assert not kidney[:, 18:].any()
    assert liver[24:29, 10:18, 6:14].all()
    assert not liver[30:].any()
    assert (out[31:37, 9:19, 5:15] == SOFT_TISSUE).all()
    assert checked.structures == ("liver", "kidney_left")


def test_vessel_is_followed_until_it_ends() -> None:
    shape = (40, 40, 30)
    i, j = np.indices(shape[:2])
    image = np.full(shape, 40, np.float32)
    for k in range(5, 25):
        image[np.hypot(i - (15 + 0.3 * k), j - 20) < 4, k] = 200
    mask = annotate.track_vessel(image, (19, 20, 14), (150, 250), spacing_mm=(3.0, 3.0, 3.0))
    assert np.array_equal(mask, image == 200)


def test_vessel_marked_by_discs_leaves_out_bone_and_fat() -> None:
    from slice3d.training.annotate import Tube, marked_vessel

    smooth = np.full((30, 30, 20), 45.0, np.float32)
    smooth[18:] = -90.0
    bone = np.zeros(smooth.shape, bool)
    bone[:, :10] = True
    mask = marked_vessel(smooth, bone, Tube("aorta", ((4, 15, 12, 4.0), (14, 15, 16, 4.0)), (5, 95)))
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) == set(range(4, 15))
    assert np.argwhere(mask[:, :, 4])[:, 1].min() == 10
    assert not mask[18:].any()
    at = np.argwhere(mask[:, :, 9])
    assert abs(at[:, 1].mean() - 14) < 0.2, "halfway between the discs"


def test_drawn_organ_lies_between_its_polygons() -> None:
    from slice3d.training.annotate import Drawn, drawn_organ

    smooth = np.full((30, 30, 12), 50.0, np.float32)
    smooth[:, 20:] = 0.0
    bone = np.zeros(smooth.shape, bool)
    bone[:4] = True
    square = ((2, 5), (2, 25), (10, 25), (10, 5))
    wide = ((2, 5), (2, 25), (18, 25), (18, 5))
    out = drawn_organ(smooth, bone, Drawn("spleen", ((2, square), (8, wide)), (20, 95)))
    assert set(np.flatnonzero(out.any(axis=(0, 1)))) == set(range(2, 9))
    assert not out[:4].any()
    assert not out[:, 20:].any()
    ends = [int(np.argwhere(out[:, :, k])[:, 0].max()) for k in (2, 5, 8)]
    assert ends[0] < ends[1] < ends[2]
    assert abs(ends[1] - (ends[0] + ends[2]) / 2) <= 1
    with pytest.raises(InputError, match="expected two or more, ascending"):
        Drawn("spleen", ((8, wide), (2, square)), (20, 95))


def test_outlines_survive_being_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ruled = Case("x", np.zeros((4, 4, 4), np.int16), np.full((4, 4, 4), 254, np.uint8), (3.0, 3.0, 3.0))
    labels = ruled.labels.copy()
    labels[0], labels[1], labels[2, 0], labels[2, 1] = NO_ORGAN, VALUES["liver"], 253, VALUES["bone"]
    annotate.write_outlines([ruled], [replace(ruled, labels=labels)], tmp_path / "outlines.npz")
    monkeypatch.setattr("slice3d.training.annotate.resources.files", lambda _: tmp_path)
    assert np.array_equal(annotate.confirmed_case(ruled).labels, labels)


def test_kidney_is_no_sinus_but_keeps_its_cyst() -> None:
    from slice3d.training.annotate import without_sinus
    from slice3d.training.structures import SOFT_TISSUE

    labels = np.full((20, 20, 6), VALUES["kidney_left"], np.uint8)
    labels[:2] = VALUES["liver"]
    smooth = np.full(labels.shape, 120.0, np.float32)
    smooth[:2, 5:8], smooth[6:9, 5:8], smooth[10:12, 5:8], smooth[15:18, 5:8] = -60, -60, 15, 5
    out = without_sinus(labels, smooth, Checked(sinus_hu=30, cyst=((14, 19), (0, 20), (0, 6))))
    assert (out[6:9, 5:8] == NO_ORGAN).all()
    assert (out[10:12, 5:8] == SOFT_TISSUE).all()
    assert (out[15:18, 5:8] == VALUES["kidney_left"]).all()
    assert (out[:2] == VALUES["liver"]).all()
    assert np.array_equal(without_sinus(labels, smooth, Checked()), labels)


def test_bones_are_painted_from_young_to_brittle() -> None:
    from slice3d.training.synthesis import _paint_bones

    at = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    labels = np.where(at < 16, 28, 0)
    depth = np.clip(16 - at, 0, None) * 1.5
    young, brittle = ([], [])  # type: ignore[var-annotated]
    for seed in range(12):
        for means, kept in (
            ({"compact": 1100.0, "marrow": 250.0}, young),
            ({"compact": 300.0, "marrow": -40.0}, brittle),
        ):
            hu = np.zeros(labels.shape, np.float32)
            _paint_bones(hu, labels, depth, 1.5, means, np.random.default_rng(seed))
            assert not hu[labels == 0].any()
            kept.append((np.median(hu[(at < 16) & (at > 15)]), np.median(hu[at < 8]), hu[at < 8].std()))
    assert np.mean(young, axis=0)[0] > 600 > 350 > np.mean(brittle, axis=0)[0]
    assert np.mean(young, axis=0)[1] > 150 > 30 > np.mean(brittle, axis=0)[1]
    assert min(row[2] for row in young + brittle) > 3, "marrow is not of one grey value"


def test_respaced_volume_keeps_amount_and_place() -> None:
    shape, old, new = (40, 36, 30), (1.5, 1.5, 2.0), (3.0, 3.0, 3.0)
    at = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(shape, old, strict=True)], indexing="ij"), -1)
    ball = np.linalg.norm(at - np.array((33.0, 25.0, 28.0)), axis=-1) < 14
    labels = cases.respaced_labels(ball.astype(np.uint8), old, new)
    assert labels.shape == (20, 18, 20)
    assert labels.sum() * 27 == pytest.approx(ball.sum() * 4.5, rel=0.04)
    middle = (np.argwhere(labels).mean(axis=0) + 0.5) * 3
    assert middle == pytest.approx((33.0, 25.0, 28.0), abs=0.5)
