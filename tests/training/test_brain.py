"""The classes of `mr-brain`, and its recipe in miniature."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slice3d import anatomy
from slice3d.training.brain import STAGES, BrainRecipe, card_text, read_brain_maps, train_brain
from slice3d.training.brain_labels import GROUPS, LABELS, PAIRED, SINGLE, class_table, left_of
from slice3d.training.labelmaps import mirror_table


def test_every_structure_is_known_with_a_plausible_volume() -> None:
    for name in [*LABELS.values(), "brain"]:
        assert anatomy.STRUCTURES[name].volume_ml is not None, name
    for group in GROUPS:
        assert group == "brain" or group in anatomy.GROUPS


def test_sides_of_the_table_are_each_others_mirror() -> None:
    table, swap = class_table(), mirror_table(LABELS)
    assert sorted(set(table.tolist())) == [0, *LABELS]
    for name, (left, right) in PAIRED.items():
        assert {LABELS[int(table[n])] for n in left} == {f"{name}_left"}
        for a, b in zip(left, right, strict=True):
            assert table[b] == swap[table[a]]
            assert left_of(b) == a
    for name, numbers in SINGLE.items():
        assert all(swap[table[n]] == table[n] and LABELS[int(table[n])] == name for n in numbers)


def test_card_names_what_was_held_out() -> None:
    text = card_text(["01"], ["04"], {"04 T1": {"thalamus_left": {"dice": 0.8}, "caudate_left": {"dice": 0.6}}})
    assert "| 04 T1 | 0.700 | caudate_left 0.600 |" in text
    assert "Held out: 04" in text


def test_maps_are_read_with_left_on_the_left(data: Path) -> None:
    source = read_brain_maps(data, ["13"])[0]
    classes = source.truth[source.index]
    for name in PAIRED:
        left, right = (next(v for v, n in LABELS.items() if n == f"{name}_{side}") for side in ("left", "right"))
        assert np.nonzero(classes == left)[0].mean() < np.nonzero(classes == right)[0].mean(), name
    low, high = anatomy.STRUCTURES["hippocampus_left"].volume_ml or (0, 0)
    assert low < np.count_nonzero(classes == 17) / 1000 < high


@pytest.mark.timeout(600)
def test_recipe_runs_from_label_maps_to_package(data: Path, tmp_path: Path) -> None:
    from slice3d.models.package import read_package

    stages = tuple(replace(stage, steps=2, patch=(16, 16, 16)) for stage in STAGES)
    small = BrainRecipe(stages=stages, channels=(8, 8, 8), names=("09", "13"), held_out=("09",), workers=0)
    lines: list[str] = []
    package = read_package(train_brain(data, tmp_path, recipe=small, report=lines.append))
    assert package.modality == ("MR",)
    assert "1 label maps to paint from, 1 held out" in lines[0]
    assert "training_seg_13" in package.description["training"]["label_maps_for_synthesis"]
    assert set(package.description["training"]["held_out"]) == {"training_seg_09"}
    assert (tmp_path / "learning-curves.png").is_file()
    assert all((tmp_path / stage.name / "last.ckpt").is_file() for stage in STAGES)
    assert [tissue.name for tissue in package.tissues][:2] == ["background", "white matter"]
