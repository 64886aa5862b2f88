"""The shipped MR packages: what they say about themselves, and what they do on real images they never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slice3d import models
from slice3d.inference import Engine, InferenceSettings
from slice3d.io import load, load_segmentation
from slice3d.metrics import dice
from slice3d.models.registry import BUILTIN

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
