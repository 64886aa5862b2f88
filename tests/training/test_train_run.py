"""The whole command on a tiny data set: it learns, it resumes exactly, two processes agree, the package runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slice3d.errors import InputError
from slice3d.training import cases
from slice3d.training.cases import Case
from slice3d.training.crops import CropDataset, Pool
from slice3d.training.dataset import read_dataset
from slice3d.training.loop import fit
from slice3d.training.prepare import prepare
from slice3d.training.run import RunOptions, plan_dataset, read_config, settings_for, split, train_dataset
from slice3d.training.settings import TrainSettings
from tests.training.builders import write_dataset

SMALL = {"steps": 50, "batch_size": 1, "lr": 3e-3, "warmup": 5, "validate_every": 50, "save_every": 8, "ema": 0.9,
         "threads": 1}  # fmt: skip


def options(**train: object) -> RunOptions:
    return RunOptions(name="blobs", features=8, budget_voxels=14_000, held_out=("case_1",), train={**SMALL, **train})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "Task99_Blobs")


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_dataset(dataset, out, options())
    return out


def test_training_reduces_the_loss_and_segments_a_held_out_phantom(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    scores = json.loads((finished / "validation.json").read_text())
    assert list(scores) == ["case_1"]
    assert scores["case_1"]["big_organ"]["dice"] > 0.85
    assert scores["case_1"]["small"]["dice"] > 0.75
    assert (finished / "learning-curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").glob("events.*"))


def test_exported_package_segments_a_file_of_the_data_set(finished: Path, dataset: Path) -> None:
    from slice3d.inference import predict
    from slice3d.io import load, load_segmentation
    from slice3d.models.package import read_package

    package = read_package(finished / "package")
    package.verify()
    assert dict(package.labels) == {1: "big_organ", 2: "small"}
    result = predict(load(dataset / "imagesTr" / "case_1.nii.gz"), package)
    truth = load_segmentation(dataset / "labelsTr" / "case_1.nii.gz", names={1: "big_organ", 2: "small"})
    for name, least in (("big_organ", 0.85), ("small", 0.7)):
        a, b = result.mask(name), truth.mask(name)
        assert 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)) > least


def test_held_out_cases_are_scored_from_their_files_on_their_own_grid(finished: Path, dataset: Path) -> None:
    from scipy import ndimage

    from slice3d.inference import predict
    from slice3d.io import load, load_segmentation
    from slice3d.models.package import read_package

    row = json.loads((finished / "validation.json").read_text())["case_1"]["big_organ"]
    package = read_package(finished / "package")
    assert package.description["scores"]["case_1"]["big_organ"] == row
    truth = load_segmentation(dataset / "labelsTr" / "case_1.nii.gz", names={1: "big_organ", 2: "small"})
    result = predict(load(dataset / "imagesTr" / "case_1.nii.gz"), package)
    a, b = result.mask("big_organ"), truth.mask("big_organ")
    assert row["dice"] == pytest.approx(2 * np.count_nonzero(a & b) / (a.sum() + b.sum()), abs=5e-3)
    assert row["reference_ml"] == pytest.approx(b.sum() * truth.grid.voxel_volume_mm3 / 1000, abs=0.01)
    inside = ndimage.distance_transform_edt(b, truth.grid.spacing_mm)
    outside = ndimage.distance_transform_edt(~b, truth.grid.spacing_mm)
    edge = a & ~ndimage.binary_erosion(a)
    assert row["hd95_mm"] == pytest.approx(np.percentile((inside + outside)[edge], 95), abs=3.2)
    card = (finished / "package" / "README.md").read_text()
    assert f"| case_1 | big_organ | {row['dice']:.3f} | {row['hd95_mm']:.1f} |" in card
    assert "no expected Dice: 3 or more held-out cases are needed" in card
    assert not package.reliability, "of one held-out case and six in all"
    assert "big_organ" not in result.metadata["expected_dice"]


def test_with_enough_cases_results_carry_expected_dice_and_are_measured_against_the_cases_volumes(
    tmp_path: Path,
) -> None:
    from slice3d.inference import predict
    from slice3d.io import load
    from slice3d.models.package import read_package

    many = write_dataset(tmp_path / "many", cases=12, shape=(40, 34, 24))
    held = ("case_1", "case_4", "case_7")
    package = read_package(train_dataset(many, tmp_path / "run", replace(options(steps=30), held_out=held)))
    scores = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert tuple(scores) == held
    assert package.reliability["default"]["cases"] == 6
    assert package.reliability["structures"] == {}, "too few for a line of each"
    result = predict(load(many / "imagesTr" / "case_4.nii.gz"), package)
    expected = result.metadata["expected_dice"]
    found = {name: row["dice"] for name, row in scores["case_4"].items()}
    assert expected["big_organ"] == pytest.approx(found["big_organ"], abs=0.15)
    low, high = package.reliability["volume_ml"]["big_organ"]
    for case in held:
        assert low < scores[case]["big_organ"]["reference_ml"] < high
    assert high < 4 * scores["case_1"]["big_organ"]["reference_ml"]
    # what the network was never tested on: it says so, whatever a line through good results would promise
    sure = load(many / "imagesTr" / "case_4.nii.gz")
    noise = np.random.default_rng(3).normal(0, 150, sure.grid.shape).astype(np.float32)
    lost = predict(replace(sure, data=noise), package)
    drawn = [name for name in ("big_organ", "small") if lost.mask(name).any()]
    assert drawn
    for name in drawn:
        said = [f for f in lost.findings if f.code == "model-unsure" and f.details["structure"] == name]
        assert said
        promised = name in lost.metadata["expected_dice"]
        assert ("calibrated on 6 outlines alone" if promised else "less sure") in said[0].message
    assert "small" not in lost.metadata["expected_dice"], "below what was seen of it"


def test_scores_are_those_of_the_voxels_however_the_files_store_their_axes(finished: Path, tmp_path: Path) -> None:
    import nibabel as nib

    from slice3d.models.package import read_package
    from slice3d.training.crossval import score_folds

    package = read_package(finished / "package")
    plain = write_dataset(tmp_path / "plain", cases=2)
    held = (("case_1",),)
    expected = score_folds(package, read_dataset(plain).pairs, held)
    for axes in ("RAS", "SAL", "PIR"):
        turned = tmp_path / axes
        shutil.copytree(plain, turned)
        path = turned / "labelsTr" / "case_1.nii.gz"
        image = nib.load(path)
        moves = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
        )
        nib.save(image.as_reoriented(moves), path)
        assert score_folds(package, read_dataset(turned).pairs, held) == expected


def test_a_held_out_case_that_cannot_be_scored_is_named_and_the_others_are(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slice3d.inference import Engine

    predict = Engine.predict

    def picky(self: Engine, volume: Any, **how: Any) -> Any:
        if volume.data.shape[2] == 12:
            raise InputError("the image is too odd")
        return predict(self, volume, **how)

    monkeypatch.setattr(Engine, "predict", picky)
    odd = tmp_path / "odd"
    write_dataset(odd, cases=4)
    write_dataset(tmp_path / "flat", cases=4, shape=(40, 34, 12))
    for sub in ("imagesTr", "labelsTr"):
        shutil.copy(tmp_path / "flat" / sub / "case_2.nii.gz", odd / sub / "case_2.nii.gz")
    said: list[str] = []
    brief = replace(options(steps=1, validate_every=1, save_every=1), held_out=("case_1", "case_2"))
    package = train_dataset(odd, tmp_path / "run", brief, report=said.append)
    assert "case_2 was not scored: the image is too odd" in said
    assert list(json.loads((tmp_path / "run" / "validation.json").read_text())) == ["case_1"]
    assert "case_2 was not scored: the image is too odd." in (package / "README.md").read_text()


def test_a_finished_run_that_is_asked_for_again_keeps_its_package_until_there_is_a_new_one(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slice3d.training import crossval

    brief = options(steps=1, validate_every=1, save_every=1)
    package = train_dataset(dataset, tmp_path, brief)
    before = {path.name: path.read_bytes() for path in package.iterdir()}

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crossval, "score_folds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_dataset(dataset, tmp_path, brief)
    assert {path.name: path.read_bytes() for path in package.iterdir()} == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("kidney", "tumor"), ("kidneys", "tumor")),
        (("left kidney", "Right Kidney"), ("kidney_left", "kidney_right")),
        (("T1-lesion", "größe/rand"), ("t1_lesion", "größe_rand")),
        (("Lung", "Heart"), ("lungs", "heart")),
    ],
)
def test_structures_are_called_what_people_ask_for(
    dataset: Path, tmp_path: Path, names: tuple[str, str], expected: tuple[str, str]
) -> None:
    from slice3d import anatomy
    from slice3d.models.package import read_package

    named = tmp_path / "named"
    shutil.copytree(dataset, named)
    raw = json.loads((named / "dataset.json").read_text())
    raw |= {"labels": {"0": "background", "1": names[0], "2": names[1]}, "name": "(CT) Größe, ganz"}
    (named / "dataset.json").write_text(json.dumps(raw))
    brief = replace(options(steps=1, validate_every=1, save_every=1), name="")
    package = read_package(train_dataset(named, tmp_path / "run", brief))
    assert package.name == "CT-Groe-ganz"
    assert package.structures == expected
    for asked, value in zip(names, (1, 2), strict=True):
        assert package.values(asked) == (value,)
    assert anatomy.resolve("kidney", ["kidney", "tumor"]) == ("kidney",), "as packages made before say"
    raw["labels"] = {"0": "background", "1": "Liver", "2": "hepar"}
    (named / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="names both 'Liver' and 'hepar', which are one structure here, liver; rename"):
        read_dataset(named)


def test_structures_that_no_held_out_case_holds_are_untested(dataset: Path, tmp_path: Path) -> None:
    import nibabel as nib

    from slice3d.models.package import read_package

    lacking = tmp_path / "lacking"
    shutil.copytree(dataset, lacking)
    path = lacking / "labelsTr" / "case_1.nii.gz"
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(labels == 2, 0, labels), image.affine), path)
    package = read_package(train_dataset(lacking, tmp_path / "run", options(steps=40)))
    assert dict(package.reliability["untested"]) == {"small": "held out no case with one"}
    row = json.loads((tmp_path / "run" / "validation.json").read_text())["case_1"].get("small", {})
    assert "dice" not in row


def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: Path, finished: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.training.test_train_run import options; "
        "from slice3d.training.run import train_dataset; "
        "train_dataset(Path(sys.argv[1]), Path(sys.argv[2]), options())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(dataset), str(tmp_path)])
    history = tmp_path / "history.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (history.exists() and len(history.read_text().splitlines()) >= 20):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = torch.load(tmp_path / "last.ckpt", weights_only=True)["step"]
    assert 0 < stopped < 50
    train_dataset(dataset, tmp_path, options())
    one, other = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (finished, tmp_path))
    assert one["step"] == other["step"] == 50
    for name, value in one["ema"].items():
        torch.testing.assert_close(other["ema"][name], value, rtol=0, atol=0, msg=name)
    steps = [json.loads(line)["step"] for line in history.read_text().splitlines() if "loss" in line]
    assert steps == list(range(1, 51))


def test_two_gloo_processes_share_one_model(dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        'features = 8\nbudget_voxels = 6000\nheld_out = ["case_1"]\n'
        "[train]\nsteps = 4\nbatch_size = 1\nvalidate_every = 4\nsave_every = 4\nthreads = 1\n"
    )
    out = tmp_path / "out"
    code = "from slice3d.cli.train import train; import typer; typer.run(train)"
    script = tmp_path / "train_script.py"
    script.write_text(code)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script),
         str(dataset), "--out", str(out), "--config", str(config)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("package in") == 1
    state = torch.load(out / "last.ckpt", weights_only=True)
    assert state["step"] == 4
    assert (out / "package" / "model.json").exists()


def test_a_run_whose_gradients_are_not_finite_stops_before_its_weights_are_spoilt(
    dataset: Path, tmp_path: Path
) -> None:
    class Broken(torch.utils.data.Dataset):
        def __init__(self, whole: CropDataset) -> None:
            self.whole = whole

        def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, labels = self.whole[number]
            return (image * torch.inf if number == 2 else image), labels

    brief = options(steps=4, save_every=1)
    found = read_dataset(dataset)
    plan = plan_dataset(found, brief)
    settings = settings_for(plan, found.labels, brief)
    crops = Broken(CropDataset(Pool({prepare(found, plan, tmp_path / "cache"): 1.0}), settings))
    with pytest.raises(InputError, match=r"broke down in step 3: gradients are not finite; .* lower learning rate"):
        fit(crops, settings, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["ema"].values())


def test_plan_takes_the_median_spacing_and_names_the_labels(dataset: Path) -> None:
    found = read_dataset(dataset)
    plan = plan_dataset(found, RunOptions(features=8, budget_voxels=24_000))
    assert plan.spacing_mm == pytest.approx((2.0, 2.2, 3.1), abs=1e-4)
    assert found.labels == {1: "big_organ", 2: "small"}
    assert plan.median_shape == (40, 34, 28)
    assert np.prod(plan.patch_size) < 2 * 24_000
    strides = np.prod(plan.arguments["strides"], axis=0)
    assert all(edge % stride == 0 for edge, stride in zip(plan.patch_size, strides, strict=True))


@pytest.mark.parametrize("shape", [(7, 7, 7), (9, 9, 9), (14, 20, 3)])
def test_cases_of_few_voxels_are_planned_for_and_trained_on(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    small = write_dataset(tmp_path / "small", cases=3, shape=shape)
    brief = replace(options(steps=1, validate_every=1, save_every=1), features=4, held_out=())
    plan = plan_dataset(read_dataset(small), brief)
    assert all(p >= n for p, n in zip(plan.patch_size, shape, strict=True))
    deepest = np.array(plan.patch_size) // np.prod(plan.arguments["strides"], axis=0)
    assert min(deepest) >= 4, "where nothing goes wrong in bfloat16"
    assert max(plan.patch_size) < 3 * max(shape)
    assert (train_dataset(small, tmp_path / "run", brief) / "model.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"0": "background", "2": "b"}}, "consecutive"),
        ({"labels": {}}, "labels"),
        ({"modality": {"0": "T1", "1": "T2"}}, "channels"),
        ({"training": [{"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/gone.nii.gz"}]}, "gone"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_refused(dataset: Path, tmp_path: Path, change: dict, message: str) -> None:
    raw = json.loads((dataset / "dataset.json").read_text()) | change
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path)


def test_missing_or_damaged_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset\.json"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_dataset(tmp_path)


def test_unknown_configuration_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nlearning_rte = 1\n")
    with pytest.raises(InputError, match="learning_rte"):
        read_config(path)
    path.write_text("= 1")
    with pytest.raises(InputError, match="not valid TOML"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[train]\nsteps = "abc"', r"c.toml \[train\] sets steps to 'abc'; expected a whole number"),
        ("[train]\nsteps = 0", "steps to 0; expected 1 or more"),
        ("[train]\npatch_size = [16, 16, 16]", r"sets 'patch_size'; expected some of"),
        ("train = 3", "sets train to 3; expected a table"),
        ("[plan]\nspacing_mm = '2'", "expected a list of 3, each a number"),
        ("[plan]\nspacing_mm = [2, 2]", "expected a list of 3, each a number"),
        ("[plan.intensity]\nschem = 'zscore'", r"\[plan.intensity\] sets 'schem'"),
        ("[plan.intensity]\nscheme = 'foo'", "scheme to 'foo'; expected 'clip_zscore'"),
        ("[plan.intensity]\nscheme = 'percentiles'", "scheme to 'percentiles'; expected 'clip_zscore'"),
        ("[plan]\npatch_size = [22, 22, 22]", "22 × 22 × 22 voxels doesn't fit the network; expected multiples of"),
        ("[plan]\npatch_size = [8, 16, 16]", "leaves 2 along the first axis at a level of the network"),
        ("seed = -1", "seed to -1; expected at least 0"),
        ("[plan]\nspacing_mm = [0, 1, 1]", "expected mm above 0"),
        ("[plan.arguments]\nstrides = 2", "network that can't be built"),
        ("[plan]\nnetwork = 'monai.networks.nets.Nope'", "network that can't be built"),
        ("[train]\nprecision = 'abc'", "precision to 'abc'; expected one of bf16-mixed"),
        ("[train]\nlr = -1", "lr to -1; expected 0 or more"),
        ("[train]\nema = 1.0", "ema to 1.0; expected a share below 1"),
        ("[train]\nclip_gradient = -1", "clip_gradient to -1; expected 0 or more"),
        (f'name = "{101 * "a"}"', "at most 100"),
        ("[augment]\nflip_axes = [7]", r"flip_axes to \[7\]; expected axes 0, 1 and 2"),
        ("features = -3", "features to -3; expected at least 1"),
        ('held_out = "case_0"', "held_out to 'case_0'; expected a list of each text in quotes"),
        ("validation = 1.0", "expected a share below 1"),
        ('name = "../x y"', "expected letters, digits"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_with_what_was_expected(
    dataset: Path, tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        train_dataset(dataset, tmp_path / "out", read_config(path))
    assert not (tmp_path / "out").exists(), "before anything is prepared"


def test_folders_that_are_none_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a TOML file"):
        read_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another --out"):
        train_dataset(dataset, tmp_path / "file" / "out", options())


def test_what_was_trained_on_is_never_held_out_later(dataset: Path, tmp_path: Path) -> None:
    brief = options(steps=2, validate_every=2, save_every=1)
    train_dataset(dataset, tmp_path, brief)
    first = (tmp_path / "package" / "model.json").read_bytes()
    with pytest.raises(InputError, match="begun with case_1 held out, now case_2 would be"):
        train_dataset(dataset, tmp_path, replace(brief, held_out=("case_2",)))
    # nor where a run is older than its list of cases
    listed = (tmp_path / "cases.json").read_text()
    (tmp_path / "cases.json").unlink()
    with pytest.raises(InputError, match="begun with case_1 held out, now case_2 would be"):
        train_dataset(dataset, tmp_path, replace(brief, held_out=("case_2",)))
    (tmp_path / "cases.json").write_text("")
    with pytest.raises(InputError, match=r"cases\.json is damaged"):
        train_dataset(dataset, tmp_path, brief)
    (tmp_path / "cases.json").write_text(listed)
    # a case that came later changes what is drawn from
    more = tmp_path / "more"
    shutil.copytree(dataset, more)
    raw = json.loads((more / "dataset.json").read_text())
    for kind, folder in (("image", "imagesTr"), ("label", "labelsTr")):
        source = more / folder / Path(raw["training"][0][kind]).name
        shutil.copy(source, source.with_name("case_9.nii.gz"))
    raw["training"].append({"image": "./imagesTr/case_9.nii.gz", "label": "./labelsTr/case_9.nii.gz"})
    (more / "dataset.json").write_text(json.dumps(raw))
    with pytest.raises(
        InputError, match=r"begun with 5 cases to train on, now there are 6 \(case_9 is in one of both\)"
    ):
        train_dataset(more, tmp_path, brief)
    assert (tmp_path / "package" / "model.json").read_bytes() == first


def test_a_run_that_was_killed_while_it_looked_at_its_last_weights_looks_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slice3d.training.validate import WholeVolumes

    brief = options(steps=4, validate_every=3, save_every=1)
    train_dataset(dataset, tmp_path / "whole", brief)
    looks = WholeVolumes.__call__
    seen: list[int] = []

    def killed(self: WholeVolumes, network: torch.nn.Module) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return looks(self, network)

    with monkeypatch.context() as patch:
        patch.setattr(WholeVolumes, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            train_dataset(dataset, tmp_path / "killed", brief)
    assert not (tmp_path / "killed" / "package").exists()
    train_dataset(dataset, tmp_path / "killed", brief)
    scores = [(tmp_path / run / "validation.json").read_text() for run in ("whole", "killed")]
    assert scores[0] == scores[1]
    assert "case_1" in scores[0]
    # and only once
    train_dataset(dataset, tmp_path / "killed", brief)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" not in row] == [3, 4]


def test_a_package_runs_from_its_folder(finished: Path) -> None:
    from slice3d.errors import ModelError
    from slice3d.models.registry import package

    assert package(str(finished / "package")).name == "blobs"
    with pytest.raises(ModelError, match="expected one of them, or the folder of a package"):
        package(str(finished))


def test_plan_only_says_all_and_checks_all(dataset: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from slice3d.cli.main import app

    config = tmp_path / "c.toml"
    config.write_text('held_out = ["case_1"]\nfeatures = 8\nbudget_voxels = 14000\n')
    told = CliRunner().invoke(app, ["train", str(dataset), "--config", str(config), "--plan-only"])
    assert told.exit_code == 0
    for words in ("big_organ, small", "held out: case_1", "learning rate from 0.001"):
        assert words in told.output
    config.write_text('held_out = ["case_77"]\n')
    refused = CliRunner().invoke(app, ["train", str(dataset), "--config", str(config), "--plan-only"])
    assert isinstance(refused.exception, InputError) or "case_77" in refused.output


@pytest.mark.parametrize(
    ("given", "says"),
    [(["--plan-only"], "--plan-only"), (["folder"], "a data set"), (["--config", "c.toml"], "--config")],
)
def test_a_recipe_with_options_that_it_ignores_is_refused(tmp_path: Path, given: list[str], says: str) -> None:
    from typer.testing import CliRunner

    from slice3d.cli.main import app

    refused = CliRunner().invoke(app, ["train", *given, "--recipe", "ct-torso", "--data", str(tmp_path)])
    assert refused.exit_code != 0
    assert f"--recipe ct-torso was given with {says}" in f"{refused.exception} {refused.output}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--recipe", "mr-brain"], "--start goes with ct-torso; recipe mr-brain begins from nothing"),
        (["folder"], "--start goes with --recipe ct-torso; data sets begin from nothing"),
    ],
)
def test_a_package_to_begin_with_is_refused_where_nothing_begins_with_it(
    tmp_path: Path, given: list[str], says: str
) -> None:
    from typer.testing import CliRunner

    from slice3d.cli.main import app

    refused = CliRunner().invoke(app, ["train", *given, "--start", str(tmp_path), "--data", str(tmp_path)])
    assert refused.exit_code != 0
    assert says in f"{refused.exception} {refused.output}"


def test_a_package_to_begin_with_reaches_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from slice3d.cli.main import app
    from slice3d.training import recipes

    asked: list[object] = []

    def run(data: Path, out: Path, **given: object) -> Path:
        asked.append(given.get("recipe"))
        return out / "package"

    monkeypatch.setitem(recipes.RECIPES, "ct-torso", run)
    for more in (["--start", "earlier"], []):
        done = CliRunner().invoke(app, ["train", "--recipe", "ct-torso", "--data", str(tmp_path), "--out", "x", *more])
        assert done.exit_code == 0, done.output
    assert asked == [recipes.Recipe(start=Path("earlier")), None]


def test_tables_of_a_configuration_reach_the_run(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "[train.class_weights]\n2 = 8\n[augment.lesions]\n1 = 2\n[augment.organs]\n1 = 0.1\n[augment.marrow]\n2 = 0.5\n"
    )
    configured = read_config(path)
    labels = read_dataset(dataset).labels
    plan = plan_dataset(read_dataset(dataset), options())
    found = settings_for(plan, labels, configured)
    assert found.class_weights == {2: 8.0}
    assert found.augment.lesions == {1: 2}
    assert found.augment.organs == {1: 0.1}
    assert found.augment.marrow == {2: 0.5}
    stored = json.loads(json.dumps(found.to_dict()))["augment"]
    assert stored["lesions"] == {"1": 2}
    assert stored["marrow"] == {"2": 0.5}
    for text, says in (
        ("[train.class_weights]\n9 = 8\n", "names label 9"),
        ("[train.class_weights]\n2 = 0\n", "above 0"),
        ("[augment.lesions]\n1 = 7\n", "names label 7"),
        ("[augment]\nlesions = 3\n", "expected a table"),
        ("[augment.marrow]\n7 = 0.5\n", "names label 7"),
        ("[augment.marrow]\n1 = -0.5\n", "above 0"),
        ("[augment.marrow]\n1 = nan\n", "above 0"),
        ("[augment.marrow]\n1 = 40\n", "marrow of label 1 is 40.0; expected a share up to 1"),
        ("[augment.marrow]\n1 = true\n", "expected a table"),
        ("[augment]\nturn_deg = -25\n", "turn_deg is -25; expected degrees from 0 to 180"),
        ("[augment]\nturn_deg = '25'\n", "turn_deg to '25'; expected a number"),
        ("[augment]\ndeform_mm = 80\n", "deform_mm is 80; expected millimetres from 0 to 50"),
        ("[augment]\ndeform_mm = nan\n", "deform_mm to nan; expected a number"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            settings_for(plan, labels, read_config(path))


def test_what_is_drawn_in_hounsfield_units_is_refused_on_mr_before_anything_is_prepared(
    dataset: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[augment.marrow]\n1 = 0.5\n")
    plan = plan_dataset(read_dataset(dataset), options())
    with pytest.raises(InputError, match=r"augment\.marrow is set and intensities are 'zscore'"):
        settings_for(
            replace(plan, intensity=replace(plan.intensity, scheme="zscore")),
            read_dataset(dataset).labels,
            read_config(path),
        )


def test_fields_of_view_can_be_cut_by_configuration(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[augment]\ncut_field_of_view = 0.1\nturn_deg = 25\ndeform_mm = 8\n")
    plan = plan_dataset(read_dataset(dataset), options())
    found = settings_for(plan, read_dataset(dataset).labels, read_config(path)).augment
    assert (found.cut_field_of_view, found.turn_deg, found.deform_mm) == (0.1, 25, 8)


def test_a_run_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:15, 5:15, 5:15] = 1
    cases.save(Case("one", np.where(labels == 1, 100, -100).astype(np.int16), labels, (3.0,) * 3), tmp_path / "pool")
    pool = Pool({tmp_path / "pool": 1.0})
    how = TrainSettings(
        "monai.networks.nets.UNet",
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
        {1: "thing"}, (8, 8, 8), (3.0, 3.0, 3.0), steps=2, threads=1, save_every=1,
    )  # fmt: skip
    fit(pool, how, tmp_path / "run", stop_after=1)
    first = (tmp_path / "run" / "history.jsonl").read_text()
    with pytest.raises(InputError, match=r"begun with class_weights = \{\}, now it is \{'1': 4.0\}"):
        fit(pool, replace(how, class_weights={1: 4.0}), tmp_path / "run")
    with pytest.raises(InputError, match="begun with steps = 2"):
        fit(pool, replace(how, steps=9), tmp_path / "run")
    # augmentation of before it meant all axes
    stored = tmp_path / "run" / "settings.json"
    now = json.loads(stored.read_text())
    stored.write_text(json.dumps({k: v for k, v in now.items() if k != "augmentation"}))
    with pytest.raises(InputError, match="begun with augmentation = 1, now it is 2"):
        fit(pool, how, tmp_path / "run")
    stored.write_text(json.dumps(now))
    # a run of before these settings existed
    stored = tmp_path / "run" / "settings.json"
    old = json.loads(stored.read_text())
    del (
        old["class_weights"],
        old["augment"]["lesions"],
        old["augment"]["lesion_share"],
        old["augment"]["marrow"],
        old["augment"]["turn_deg"],
    )
    stored.write_text(json.dumps(old))
    fit(pool, replace(how, save_every=5), tmp_path / "run")
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2
    # the weights count from the first step on
    fit(pool, replace(how, class_weights={1: 4.0}), tmp_path / "weighted", stop_after=1)
    other = (tmp_path / "weighted" / "history.jsonl").read_text()
    assert json.loads(other)["loss"] > 1.2 * json.loads(first)["loss"]


@pytest.mark.parametrize("kind", ["subpixel", "plain", "unknown"])
def test_class_weights_are_taken_off_the_exported_scores(tmp_path: Path, kind: str) -> None:
    from slice3d.models.loading import build_network, load_network
    from slice3d.models.package import read_package
    from slice3d.training.export import CardFacts, export

    plain = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "kernel_size": [3] * 3, "strides": [1, 2, 2],
             "upsample_kernel_size": [2, 2], "filters": [4, 8, 8], "norm_name": ["GROUP", {"num_groups": 1}]}  # fmt: skip
    network, arguments, context = {
        "plain": ("monai.networks.nets.DynUNet", plain, {}),
        "subpixel": ("slice3d.models.subpixel.SubpixelUNet",
                     {"in_channels": 1, "out_channels": 3, "filters": [4, 8, 8], "context": 2, "context_of": 1},
                     {3: "a", 4: "b"}),
        "unknown": ("monai.networks.nets.UNet",
                    {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}, {}),
    }[kind]  # fmt: skip
    how = TrainSettings(
        network, arguments, {1: "organ", 2: "lesion"}, (16, 16, 16), (3.0, 3.0, 3.0), steps=1, context=context,
        class_weights={2: 8.0},
    )  # fmt: skip
    torch.manual_seed(0)
    made = build_network(network, arguments).eval()
    torch.save({"ema": made.state_dict()}, tmp_path / "last.ckpt")
    facts = CardFacts("tiny", "1", "CC0-1.0", ("CT",))
    if kind == "unknown":
        with pytest.raises(InputError, match="no known last layer"):
            export(tmp_path / "last.ckpt", how, facts, tmp_path / "package")
        return
    package = read_package(export(tmp_path / "last.ckpt", how, facts, tmp_path / "package"))
    exported = load_network(package, 0).float().eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        moved = exported(image) - made(image)
    assert moved[:, 2].mean() == pytest.approx(-np.log(8), abs=0.02)
    assert moved[:, :2].abs().max() < 0.05


def test_nnunet_raw_layout_is_read(dataset: Path, tmp_path: Path) -> None:
    for sub in ("imagesTr", "labelsTr"):
        (tmp_path / sub).mkdir()
        for file in (dataset / sub).iterdir():
            stem = file.name.removesuffix(".nii.gz")
            (tmp_path / sub / (stem + ("_0000" if sub == "imagesTr" else "") + ".nii.gz")).write_bytes(
                file.read_bytes()
            )
    raw = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    found = read_dataset(tmp_path)
    assert [pair.name for pair in found.pairs] == [f"case_{n}" for n in range(6)]
    assert found.modality == "CT"


def test_held_out_cases_depend_on_the_seed_alone() -> None:
    names = [f"c{n}" for n in range(20)]
    training, held = split(names, RunOptions(seed=3))
    assert (training, held) == split(names, RunOptions(seed=3))
    assert len(held) == 4
    assert not set(training) & set(held)
    with pytest.raises(InputError, match="held-out"):
        split(names, RunOptions(held_out=("nobody",)))
