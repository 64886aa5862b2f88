"""The shipped MR packages: what they say about themselves, and what they do on real images they never saw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slice3d import models
from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.inference import Engine, InferenceSettings
from slice3d.io import load, load_segmentation
from slice3d.metrics import dice
from slice3d.models.registry import BUILTIN
from slice3d.volume import Volume

FOLDED = sorted(path.parent.name for path in BUILTIN.glob("mr-*/weights-0.safetensors"))
ENDINGS = {"mr-hippocampus": ("hippocampus/imagesTr/{}.nii.gz", "hippocampus/labelsTr/{}.nii.gz"),
           "mr-sarcoma": ("sarcoma-mr/{}_image.nii.gz", "sarcoma-mr/{}_mask.nii.gz")}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_card_names_licence_and_every_case_with_its_score(name: str) -> None:
    package = models.package(name)
    package.verify()
    assert sum(path.stat().st_size for path in package.folder.iterdir()) < 30e6
    facts = package.description["training"]
    assert facts["licence"] in (package.folder / "README.md").read_text()
    held = [case for fold in facts["held_out_by_fold"] for case in fold]
    assert sorted(held) == sorted(set(held)) == facts["cases"]
    scored = set(package.description["scores"])
    assert scored <= set(held)
    assert all(scored & set(fold) for fold in facts["held_out_by_fold"])
    assert len(facts["held_out_by_fold"]) == len(package.weights)
    card = (package.folder / "README.md").read_text()
    assert all(case in card for case in scored)


@pytest.mark.real
@pytest.mark.parametrize("name", FOLDED)
def test_scores_in_the_card_come_from_the_shipped_weights(name: str, data: Path) -> None:
    """One held-out case of two folds each: the fold that never saw it gives the Dice that the card states."""
    package = models.package(name)
    image, mask = ENDINGS[name]
    for fold in (0, len(package.weights) - 1):
        case = package.description["training"]["held_out_by_fold"][fold][0]
        volume = load(data / image.format(case))
        result = Engine(package, InferenceSettings(folds=(fold,))).predict(volume)
        truth = load_segmentation(data / mask.format(case), names=dict(package.labels), reference=volume)
        for structure, row in package.description["scores"][case].items():
            # scored while training, in other tiles and without mirror images, where there is no soft Dice
            near = 0.01 if "soft_dice" in row else 0.03
            found = dice(result.mask(structure), np.isin(truth.labels, package.values(structure)))
            assert found == pytest.approx(row["dice"], abs=near), (case, structure)


def hippocampus_crop(data: Path) -> tuple[str, Path]:
    case = models.package("mr-hippocampus").description["training"]["held_out_by_fold"][0][1]
    return case, data / "hippocampus" / "imagesTr" / f"{case}.nii.gz"


@pytest.mark.real
@pytest.mark.skipif("mr-hippocampus" not in FOLDED, reason="mr-hippocampus is not shipped")
def test_segment_organ_hippocampus_from_the_command_line(data: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from slice3d.cli.main import app

    _, path = hippocampus_crop(data)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["segment", str(path), "--organ", "hippocampus", "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"]["model"] == "mr-hippocampus"
    measured = json.loads((out / "metrics.json").read_text())["structures"]["hippocampus"]
    assert 1.5 < measured["volume_ml"] < 5.5
    assert (out / "hippocampus.stl").is_file()


@pytest.mark.real
def test_the_front_of_the_hippocampus_in_a_whole_head(data: Path) -> None:
    """`mr-brain` finds the crops in a real T1 head, `mr-hippocampus` draws in them; both sides, front before back."""
    volume = load(data / "superres" / "mr-t1-cptac-gbm.nii.gz")
    result = Engine(models.package("mr-hippocampus")).predict(volume)
    assert result.metadata["found_by"] == "mr-brain"
    assert 3 < result.volume_ml("hippocampus") < 11
    front, back = (
        result.grid.to_world(np.argwhere(result.mask(f"hippocampus_{part}"))) for part in ("anterior", "posterior")
    )
    assert front[:, 1].mean() > back[:, 1].mean() + 8
    middle = (front[:, 0].min() + front[:, 0].max()) / 2
    sides = [np.count_nonzero(front[:, 0] < middle - 10), np.count_nonzero(front[:, 0] > middle + 10)]
    assert min(sides) > 0.4 * len(front)


@pytest.mark.real
@pytest.mark.skipif("mr-hippocampus" not in FOLDED, reason="mr-hippocampus is not shipped")
def test_findings_on_real_crops(data: Path) -> None:
    """Whole: none of the warnings. Cut in the middle: cut. A whole-head field of view: refused in one line."""
    case, path = hippocampus_crop(data)
    package = models.package("mr-hippocampus")
    engine = Engine(package, InferenceSettings(folds=(0,)))
    volume = load(path)
    whole = engine.predict(volume)
    assert not {f.code for f in whole.findings} & {"organ-cut-by-field-of-view", "orientation-implausible"}
    expected = whole.metadata["expected_dice"]
    for structure, value in expected.items():
        assert abs(value - package.description["scores"][case][structure]["dice"]) < 0.1
    half = Volume(
        volume.data[:, : volume.grid.shape[1] // 2], Grid((volume.grid.shape[0], volume.grid.shape[1] // 2,
        volume.grid.shape[2]), volume.grid.affine), modality="MR",
    )  # fmt: skip
    cut = engine.predict(half, structures=["hippocampus"])
    (finding,) = [f for f in cut.findings if f.code == "organ-cut-by-field-of-view"]
    assert set(finding.details["contact_cm2"]) == {"front"}
    head = Volume(np.zeros((160, 200, 160), np.float32), Grid((160, 200, 160), np.eye(4)), modality="MR")
    with pytest.raises(InputError, match="crop the image around the structure"):
        engine.predict(head)
    with pytest.raises(InputError, match="image is CT"):
        engine.predict(replace(volume, modality="CT"))
