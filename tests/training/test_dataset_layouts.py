"""Data sets as people have them: layouts, labels and images that are read, and those that are refused with a remedy."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slice3d.errors import InputError
from slice3d.training.cases import load_case
from slice3d.training.dataset import read_dataset
from slice3d.training.losses import PartialDiceCE
from slice3d.training.plan import Plan
from slice3d.training.prepare import fingerprints, prepare, read_pair
from slice3d.training.run import RunOptions, plan_dataset, train_dataset
from slice3d.training.structures import IGNORE, PARTIAL
from slice3d.training.validate import dice_by_class

SHAPE = (17, 21, 11)
SPACING = (2.0, 2.3, 3.1)
LABELS = {"background": 0, "liver": 1, "spleen": 2}
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def write(
    folder: Path, *, cases: int = 2, suffix: str = "_0000", change: Change = lambda image, labels: (image, labels),
    **description: Any,
) -> Path:  # fmt: skip
    """An nnU-Net raw data set: a box of liver (120 HU) and one of spleen (−80 HU) in soft tissue, air around it."""
    import nibabel as nib

    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for n in range(cases):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:6, 3:9, 2 + n : 7], labels[7:11, 4:8, 3:9] = 1, 2
        image = np.array([0.0, 120.0, -80.0])[labels] + np.random.default_rng(n).normal(0, 10, SHAPE)
        image[0], image[-1] = -1000, -1000
        image, labels = change(np.rint(image).astype(np.int16), labels)
        for sub, array, ending in (("imagesTr", image, suffix), ("labelsTr", labels, "")):
            nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0])), folder / sub / f"case_{n}{ending}.nii.gz")
    told = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", **description}
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder


def plan(folder: Path) -> Plan:
    return plan_dataset(read_dataset(folder), RunOptions(features=8, budget_voxels=4000))


def with_ignored(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest planes along i are not annotated; what is there is as bright as nothing else."""
    image, labels = image.copy(), labels.copy()
    image[:4], labels[:4] = 2000, 3
    return image, labels


@pytest.fixture
def ignored(tmp_path: Path) -> Path:
    return write(tmp_path / "sparse", change=with_ignored, labels=LABELS | {"ignore": 3})


def test_ignored_voxels_are_unknown_to_training_and_neither_structure_nor_planned_for(
    ignored: Path, tmp_path: Path
) -> None:
    found = read_dataset(ignored)
    assert (found.labels, found.ignore) == ({1: "liver", 2: "spleen"}, 3)
    prints = fingerprints(found)
    assert [p.label_values for p in prints] == [(0, 1, 2)] * 2
    assert max(p.values.max() for p in prints) < 200
    planned = plan(ignored)
    assert planned.intensity.clip[1] < 200
    assert planned.arguments["out_channels"] == 3
    cache = prepare(found, planned, tmp_path / "cache")
    case = load_case(cache, "case_0")
    assert (case.labels[:4] == IGNORE).all()
    assert set(np.unique(case.labels[4:])) == {0, 1, 2}


def test_the_loss_and_the_validation_pass_over_ignored_voxels(ignored: Path) -> None:
    _, labels, _ = read_pair(read_dataset(ignored).pairs[0], ignore=3)
    target = torch.from_numpy(labels.astype(np.int64))[None]
    logits = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = PartialDiceCE(3, PARTIAL)(logits, target)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, :4].any()
    assert logits.grad[:, :, 4:].abs().min() > 0
    known = PartialDiceCE(3, PARTIAL)(logits[:, :, 4:].detach(), target[:, 4:])
    assert float(loss.detach()) == pytest.approx(float(known), rel=1e-5)
    wrong = np.where(labels == IGNORE, 1, labels)
    assert dice_by_class(wrong, labels, [1, 2]) == {1: 1.0, 2: 1.0}


def test_a_run_with_an_ignore_label_ends_in_a_package_without_it(ignored: Path, tmp_path: Path) -> None:
    from slice3d.inference import Engine, InferenceSettings
    from slice3d.io import load, load_segmentation
    from slice3d.models.package import read_package

    how = {"steps": 2, "batch_size": 1, "validate_every": 2, "save_every": 2, "threads": 1}
    options = RunOptions(name="sparse", features=4, budget_voxels=4000, held_out=("case_1",), train=how)
    package = train_dataset(ignored, tmp_path / "run", options)
    assert dict(read_package(package).labels) == {1: "liver", 2: "spleen"}
    scores = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert set(scores["case_1"]) == {"liver", "spleen"}
    # scores of the file pass over them, too: what the package draws there is neither right nor wrong
    engine = Engine(read_package(package), InferenceSettings(allow_unexpected_input=True))
    drawn = engine.predict(load(ignored / "imagesTr" / "case_1_0000.nii.gz"))
    truth = np.asarray(load_segmentation(ignored / "labelsTr" / "case_1.nii.gz", names={1: "a", 2: "b", 3: "c"}).labels)
    for value, name in ((1, "liver"), (2, "spleen")):
        a, b = drawn.mask(name) & (truth != 3), truth == value
        assert scores["case_1"][name]["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-4)
    assert "volume_ml" not in read_package(package).reliability


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"background": 0, "liver": 1, "ignore": 2, "spleen": 3}, "ignore label of odd is 2, the highest is 3; .*renumber"),
        ({"background": 0, "ignore": 1}, "names no structure; expected at least one beside background and ignore"),
        ({"background": 0, "liver": 1, "spleen": 4}, r"are \[1, 4\]; expected consecutive .*; renumber them in"),
        ({"background": 0, "liver": 1, "spleen": 1}, r"are \[1, 1\]; expected .* each once; renumber"),
        ({"background": 0, "liver": [1, 2], "tumor": [2]}, "holds regions .*; give each part a number of its own"),
        ({"background": 0} | {f"s{n}": n for n in range(1, 251)}, "250 structures; expected at most 249; merge"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_trained_are_refused_with_a_remedy(tmp_path: Path, labels: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_dataset(write(tmp_path / "odd", labels=labels))


def test_many_structures_may_stand_beside_an_ignore_label(tmp_path: Path) -> None:
    names = {f"s{n}": n for n in range(1, 118)}
    found = read_dataset(write(tmp_path / "many", labels={"background": 0, **names, "ignore": 118}))
    assert (len(found.labels), found.ignore) == (117, 118)
    target = torch.full((1, 4, 4, 4), IGNORE)
    logits = torch.randn(1, 118, 4, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    PartialDiceCE(118, PARTIAL)(logits, target).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7, "anything is as right as anything else"


def test_a_label_value_that_means_unknown_here_must_not_slip_in(tmp_path: Path) -> None:
    folder = write(tmp_path / "odd", change=lambda i, t: (i, np.where(t == 2, 255, t)), labels=LABELS | {"ignore": 3})
    with pytest.raises(InputError, match=r"case_0: the labels hold 255, .*; set them to 3 \(ignore\)"):
        plan(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i, t: ((i + 1000) / 1500, t), r"case_0: values from 0 to 0\.\d+ are no Hounsfield units .*; store HU, or"),
        (lambda i, t: (np.stack([i, i], -1), t), "case_0: the image file holds 2 volumes; expected one; keep the one"),
        (lambda i, t: (i, np.stack([t, t], -1)), "case_0: the labels file holds 2 volumes; expected one"),
        (lambda i, t: (i, 0.5 * t.astype(np.float32)), r"case_0: the labels hold 0\.5; expected whole numbers; .*store one"),
        (lambda i, t: (i, np.where(t == 1, np.nan, t).astype(np.float32)), "the labels hold NaN or infinity"),
        (lambda i, t: (i, 0 * t), "label files of all 2 cases are empty; expected voxels of liver, spleen; check labelsTr"),
        (lambda i, t: (i[:, :, 5:6], t[:, :, 5:6]), "case_0 has 17 × 21 × 1 voxels; expected at least 2 .*; put all slices"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_trained_on_are_refused_with_a_remedy(tmp_path: Path, change: Change, says: str) -> None:
    folder = write(tmp_path / "odd", change=change)
    with pytest.raises(InputError, match=says):
        prepare(read_dataset(folder), plan(folder), tmp_path / "cache")


def test_scaled_images_are_normalised_one_by_one_when_the_channel_is_not_called_ct(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", change=lambda i, t: ((i + 1000) / 1500, t), channel_names={"0": "scaled CT"})
    planned = plan(folder)
    assert planned.intensity.scheme == "zscore"
    case = load_case(prepare(read_dataset(folder), planned, tmp_path / "cache"), "case_0")
    assert float(case.image.std()) == pytest.approx(1, abs=1e-3)
    assert len(np.unique(case.image)) > 100


def test_wide_ranges_that_are_no_hounsfield_units_are_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan(write(tmp_path / "hu"))
    assert not caplog.records
    plan(write(tmp_path / "offset", change=lambda i, t: (i + 1024, t)))
    assert "2 CT image(s) may not be in Hounsfield units, e.g. case_0: " in caplog.text


def test_stored_floats_that_are_whole_numbers_are_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", change=lambda i, t: (i, t.astype(np.float32) + np.float32(1e-5)))
    _, labels, spacing = read_pair(read_dataset(folder).pairs[0])
    assert set(np.unique(labels)) == {0, 1, 2}
    assert spacing == pytest.approx(SPACING)


def test_nnunet_v1_lists_images_without_the_number_of_their_channel(tmp_path: Path) -> None:
    listed = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in range(2)]
    folder = write(tmp_path / "v1", training=listed, labels={"0": "background", "1": "Liver", "2": "spleen"})
    pairs = read_dataset(folder).pairs
    assert [(p.name, p.image.name, p.labels.name) for p in pairs] == [
        (f"case_{n}", f"case_{n}_0000.nii.gz", f"case_{n}.nii.gz") for n in range(2)
    ]
    for pair in pairs:
        image, labels, _ = read_pair(pair)
        assert image[labels == 1].mean() == pytest.approx(120, abs=5)


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    entry = {"image": "./imagesTr/case_0_0000.nii.gz", "label": "./labelsTr/case_0.nii.gz"}
    with pytest.raises(InputError, match="two cases case_0; expected a name for each; rename one"):
        read_dataset(write(tmp_path / "twice", training=[entry, entry]))


@pytest.mark.parametrize(
    ("channel", "modality"),
    [("T1w", "MR"), ("T2w", "MR"), ("T1", "MR"), ("T2", "MR"), ("FLAIR", "MR"), ("T2-FLAIR", "MR"), ("T1ce", "MR"),
     ("T1gd", "MR"), ("ADC", "MR"), ("DWI", "MR"), ("MRI", "MR"), ("ct", "CT"), ("PET", "PT"), ("noNorm", ""),
     ("scaled CT", "")],
)  # fmt: skip
def test_channel_names_of_nnunet_give_the_modality(tmp_path: Path, channel: str, modality: str) -> None:
    folder = write(tmp_path / "a", cases=1, channel_names={"0": channel})
    assert read_dataset(folder).modality == modality
    assert plan(folder).intensity.scheme == ("clip_zscore" if modality == "CT" else "zscore")


@pytest.mark.parametrize("channels", [{"0": "T1", "1": "T2"}, ["T1", "T2"]])
def test_several_channels_are_refused_with_a_remedy(tmp_path: Path, channels: Any) -> None:
    with pytest.raises(InputError, match=r"a has 2 image channels \(T1, T2\); expected one; keep one of them in"):
        read_dataset(write(tmp_path / "a", channel_names=channels))


@pytest.mark.parametrize("listed", [False, True])
def test_images_that_no_case_is_made_of_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, listed: bool
) -> None:
    entry = {"image": "./imagesTr/case_0_0000.nii.gz", "label": "./labelsTr/case_0.nii.gz"}
    folder = write(tmp_path / "a", cases=3, **({"training": [entry]} if listed else {}))
    if not listed:
        read_dataset(folder)
        assert not caplog.records
        for n in (1, 2):
            (folder / "labelsTr" / f"case_{n}.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        assert [pair.name for pair in read_dataset(folder).pairs] == ["case_0"]
    why = "listed in dataset.json" if listed else "labelled in labelsTr"
    assert f"2 image(s) in imagesTr of a are not {why}, e.g. case_1_0000.nii.gz; they are left out" in caplog.text


class TestCache:
    """Prepared cases are kept only while they are what preparing again would give."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write(tmp_path / "data")

    @pytest.fixture
    def cache(self, folder: Path, tmp_path: Path) -> Path:
        return prepare(read_dataset(folder), plan(folder), tmp_path / "cache")

    def test_what_did_not_change_is_kept(self, folder: Path, cache: Path) -> None:
        before = (cache / "case_0.image.npy").stat().st_mtime_ns
        prepare(read_dataset(folder), plan(folder), cache)
        assert (cache / "case_0.image.npy").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("file", "what"), [("imagesTr/case_1_0000.nii.gz", "image file"), ("labelsTr/case_1.nii.gz", "label file")]
    )
    def test_a_changed_file_is_refused(self, folder: Path, cache: Path, file: str, what: str) -> None:
        found, planned, path = read_dataset(folder), plan(folder), folder / file
        says = (
            rf"case case_1 in .*cache was prepared with {what} \d+ bytes of .*, now it is {{}}; remove that folder or"
        )
        size, when = path.stat().st_size, path.stat().st_mtime
        was = path.read_bytes()
        os.utime(path, (when + 5, when + 5))
        prepare(found, planned, cache)  # a copy of the same
        path.write_bytes(bytes([*was[:-1], was[-1] ^ 1]))
        with pytest.raises(InputError, match=says.format(f"{size} bytes of .*")):
            prepare(found, planned, cache)
        path.write_bytes(was + b"\0")
        os.utime(path, (when, when))
        with pytest.raises(InputError, match=says.format(f"{size + 1} bytes of .*")):
            prepare(found, planned, cache)
        path.unlink()
        with pytest.raises(InputError, match=says.format("missing")):
            prepare(found, planned, cache)

    def test_another_plan_is_refused(self, folder: Path, cache: Path) -> None:
        from dataclasses import replace

        found, planned = read_dataset(folder), plan(folder)
        with pytest.raises(
            InputError, match=r"spacing 2\.000 × 2\.300 × 3\.100 mm, now it is 2\.000 × 2\.300 × 4\.000 mm"
        ):
            prepare(found, replace(planned, spacing_mm=(2.0, 2.3, 4.0)), cache)
        with pytest.raises(InputError, match="intensity clip_zscore, now it is zscore; remove"):
            prepare(found, replace(planned, intensity=replace(planned.intensity, scheme="zscore")), cache)
        with pytest.raises(InputError, match="ignore label None, now it is 2; remove"):
            prepare(replace(found, ignore=2), planned, cache)

    def test_a_cache_from_before_sources_were_noted_is_used_but_at_its_spacing_alone(
        self, folder: Path, cache: Path
    ) -> None:
        from dataclasses import replace

        for path in cache.glob("*.source"):
            path.unlink()
        image = folder / "imagesTr" / "case_0_0000.nii.gz"
        os.utime(image, (1, 1))
        before = (cache / "case_0.image.npy").stat().st_mtime_ns
        planned = plan(folder)
        prepare(read_dataset(folder), planned, cache)
        assert (cache / "case_0.image.npy").stat().st_mtime_ns == before
        with pytest.raises(InputError, match=r"now it is 1\.000 × 1\.000 × 1\.000 mm"):
            prepare(read_dataset(folder), replace(planned, spacing_mm=(1.0, 1.0, 1.0)), cache)

    def test_cases_of_another_data_set_are_not_trained_on(self, folder: Path, cache: Path) -> None:
        for sub in ("imagesTr/case_0_0000", "labelsTr/case_0"):
            (folder / f"{sub}.nii.gz").unlink()
        with pytest.raises(InputError, match="cache holds case case_0, which data does not; remove that folder or"):
            prepare(read_dataset(folder), plan(folder), cache)

    def test_fractions_are_not_rounded_away_when_the_configuration_asks_for_hounsfield_units(
        self, tmp_path: Path
    ) -> None:
        from dataclasses import replace

        folder = write(tmp_path / "mr", change=lambda i, t: ((i + 1000) / 1500, t), channel_names={"0": "T1w"})
        planned = plan(folder)
        with pytest.raises(InputError, match=r"case_0: values from 0 to .*'clip_zscore'; store HU"):
            prepare(
                read_dataset(folder), replace(planned, intensity=replace(planned.intensity, scheme="clip_zscore")),
                tmp_path / "other",
            )  # fmt: skip
