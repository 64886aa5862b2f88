"""`slice3d train LABELS --synthesise`: from label maps alone to a package that finds structures in any contrast."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slice3d.cli.main import main
from slice3d.errors import InputError
from slice3d.training.labelmaps import mirror_table, read_label_folder, read_maps
from slice3d.training.loop import fit
from slice3d.training.run import RunOptions, read_config
from slice3d.training.synthetic_run import GeneratedCrops, generator_settings, plan_maps, train_label_maps
from tests.training.builders import HEAD, head_map, write_label_maps

TRAIN = {"steps": 90, "batch_size": 1, "lr": 3e-3, "warmup": 5, "validate_every": 90, "save_every": 30, "ema": 0.9,
         "threads": 1}  # fmt: skip
EASY = {"rotation_deg": 5.0, "elastic_mm": [1.0, 0.5], "thick": 0.2, "coarse": 0.0, "cut": 0.0, "lesion": 0.0,
        "centred": 1.0, "strip": 0.0, "tied": 0.0, "bias": 0.1, "noise": 0.02, "texture": 0.02}  # fmt: skip


def options(**changes: object) -> RunOptions:
    values: dict[str, object] = {
        "name": "heads", "features": 8, "budget_voxels": 14_000, "held_out": ("head_1",), "train": TRAIN,
        "synthesis": EASY, "plan": {"spacing_mm": (6.0, 6.0, 6.0), "patch_size": (24, 28, 20)}, **changes,
    }  # fmt: skip
    return RunOptions(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_label_maps(tmp_path_factory.mktemp("maps") / "heads")


def test_names_numbers_and_pairs_are_read(maps: Path) -> None:
    folder = read_label_folder(maps)
    assert set(folder.labels.values()) == set(HEAD)
    assert folder.licence == "CC0-1.0"
    first = read_maps(folder)[0]
    values = np.unique(head_map(0))
    expected = {v: n for n, v in enumerate(values)}
    by_value = {int(v): folder.labels.get(int(first.truth[n]), "") for n, v in enumerate(values)}
    assert {v: name for v, name in by_value.items() if name} == {number: name for name, number in HEAD.items()}
    assert first.tissue[expected[2]] == first.tissue[expected[41]] != first.tissue[expected[3]]
    assert first.spacing_mm == (3.0, 3.0, 3.0)
    # the files are LPS: what is left must lie at low i again
    left = np.nonzero(first.index == expected[10])[0].mean()
    assert left < np.nonzero(first.index == expected[49])[0].mean()


def test_mirror_table_swaps_sides_and_nothing_else() -> None:
    assert mirror_table({1: "a_left", 2: "a_right", 3: "b", 4: "c_left"}).tolist() == [0, 2, 1, 3, 4]


def test_without_names_every_value_is_a_structure(maps: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "one.nii.gz").write_bytes((maps / "head_0.nii.gz").read_bytes())
    assert list(read_label_folder(tmp_path / "plain").labels.values())[:2] == ["label_2", "label_3"]


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be used"), ('{"labels": {"background": 0}}', "no label")])
def test_unusable_names_are_one_line(maps: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "one.nii.gz").write_bytes((maps / "head_0.nii.gz").read_bytes())
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_label_folder(tmp_path)


def test_empty_folder_and_unknown_setting_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no label maps"):
        read_label_folder(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("[synthesis]\nwobble = 3\n")
    with pytest.raises(InputError, match="wobble"):
        generator_settings(read_config(config))


def test_command_prints_its_plan(
    maps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["slice3d", "train", str(maps), "--synthesise", "--plan-only"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "3 × 3 × 3 mm" in capsys.readouterr().out


def test_training_on_painted_images_finds_structures_in_a_contrast_of_its_own(maps: Path, tmp_path: Path) -> None:
    from slice3d.inference import predict
    from slice3d.io import load
    from slice3d.models.package import read_package

    for file in maps.glob("*.nii.gz"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    names = {"2": "white", "41": "white", "10": "white", "49": "white", "3": "Outer shell", "42": "Outer shell"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names}))
    package = read_package(train_label_maps(tmp_path, tmp_path / "run", options()))
    assert dict(package.labels) == {1: "white", 2: "outer_shell"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-15:]) < 0.75 * np.mean(losses[:5])
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert list(json.loads((tmp_path / "run" / "validation.json").read_text())) == ["head_1"]
    assert package.intensity[0].scheme == "percentiles"
    labels = load(maps / "head_1.nii.gz")
    grey = {0: 0, 500: 900, 24: 100, 3: 400, 42: 400, 2: 800, 41: 800, 10: 700, 49: 700}
    numbers = np.asarray(labels.data).astype(int)
    image = np.vectorize(grey.get)(numbers).astype(np.float32)
    result = predict(replace(labels, data=image, modality="MR"), package)
    for name, values in (("white", (2, 41, 10, 49)), ("outer_shell", (3, 42))):
        truth, found = np.isin(numbers, values), result.mask(name)
        dice = 2 * np.count_nonzero(truth & found) / (np.count_nonzero(truth) + np.count_nonzero(found))
        assert dice > 0.6, name


def test_an_interrupted_run_ends_with_the_same_weights(maps: Path, tmp_path: Path) -> None:
    from slice3d.training.run import settings_for

    folder = read_label_folder(maps)
    sources = read_maps(folder)[:2]
    short = options(train={**TRAIN, "steps": 6, "save_every": 3})
    settings = settings_for(plan_maps(folder, sources, short), folder.labels, short)
    how = generator_settings(short)
    whole = fit(GeneratedCrops(sources, settings, how), settings, tmp_path / "whole")
    fit(GeneratedCrops(sources, settings, how), settings, tmp_path / "parts", stop_after=3)
    parts = fit(GeneratedCrops(sources, settings, how), settings, tmp_path / "parts")
    one, two = (torch.load(p, weights_only=True)["ema"] for p in (whole, parts))
    assert all(torch.equal(one[k], two[k]) for k in one)
