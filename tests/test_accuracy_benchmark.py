"""The parts of `benchmarks.accuracy` that could be wrong without anybody seeing it: studies made worse, pages filled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.degraded import noisy, thick, turned, variants
from slice3d.grid import Grid
from slice3d.resample import apply_moves, axis_moves, reorient
from slice3d.training.structures import IGNORE
from slice3d.volume import Segmentation, Volume

ROOT = Path(__file__).parents[1]


def study() -> tuple[Volume, np.ndarray]:
    """A RAS study with a box off its middle, on a slope along the long axis."""
    shape = (40, 36, 25)
    truth = np.zeros(shape, np.uint8)
    truth[6:18, 20:32, 4:15] = 3
    data = np.where(truth == 3, 200, 0) + 10 * np.arange(shape[2])
    return Volume(data.astype(np.int16), Grid(shape, np.diag([2.0, 2.0, 3.0, 1.0])), modality="CT"), truth


@pytest.mark.parametrize("factor", [2, 3])
def test_thick_slices_lie_where_they_were_and_truth_is_what_most_of_them_is(factor: int) -> None:
    volume, truth = study()
    worse, labels = thick(volume, truth, mm=3.0 * factor)
    assert worse.grid.spacing_mm == pytest.approx((2, 2, 3 * factor))
    # what rises by 10 HU a slice says where each voxel lies
    for k in range(worse.data.shape[2]):
        z = worse.grid.to_world(np.array([30.0, 2.0, k]))[2]
        assert abs(worse.data[30, 2, k] - 10 * z / 3) <= 0.5
    centres = [
        (g.grid.to_world(np.argwhere(t == 3).astype(float))).mean(axis=0) for g, t in ((volume, truth), (worse, labels))
    ]
    assert np.abs(centres[0] - centres[1])[:2].max() < 1e-9
    assert abs(centres[0][2] - centres[1][2]) <= 3 * factor / 2
    assert set(np.unique(labels)) <= {0, 3, IGNORE}
    assert (labels == IGNORE).any() == (factor == 2), "half in, half out: open"


def test_what_is_done_does_not_depend_on_how_the_study_is_stored() -> None:
    volume, truth = study()
    other = reorient(volume, "LAI")
    moves = axis_moves(volume.grid, "LAI")
    labels = np.ascontiguousarray(apply_moves(truth, *moves))
    for way in (lambda v, t: turned(v, t, deg=20.0), lambda v, t: thick(v, t, mm=9.0)):
        (a, s), (b, t) = way(volume, truth), way(other, labels)
        back = reorient(b, "RAS")
        # an odd slice is left over at one end or at the other
        if a.data.shape == truth.shape:
            assert np.array_equal(a.data, back.data)
            assert np.array_equal(s, np.asarray(apply_moves(t, *axis_moves(b.grid, "RAS"))))
        assert (s == 3).sum() == pytest.approx((t == 3).sum(), rel=0.15)


def test_front_turns_to_the_side_that_is_named() -> None:
    volume, truth = study()
    truth[:] = 0
    truth[18:22, 30:34, :] = 3  # in front of the middle; the first axis runs to the right
    right, left = (turned(volume, truth, deg=deg)[1] for deg in (-20.0, 20.0))
    assert np.argwhere(right == 3)[:, 0].mean() > 21 > 18 > np.argwhere(left == 3)[:, 0].mean()


def test_noise_is_as_strong_as_it_says() -> None:
    volume, truth = study()
    assert np.std(noisy(volume, truth, hu=25.0)[0].data - volume.data.astype(float)) == pytest.approx(25, rel=0.02)


def test_variants_say_what_was_done() -> None:
    names = [name for name, _, _ in variants(*study())]
    assert names == [
        "slices of 6 mm", "slices of 9 mm", "25 HU more noise", "60 HU more noise",
        "front turned 20° to the left", "front turned 20° to the right",
    ]  # fmt: skip


def test_every_table_has_its_place_in_the_page() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    text = accuracy.filled(page, dict.fromkeys(accuracy.TABLES, "| a table |"))
    assert text.count("| a table |") == len(accuracy.TABLES)
    with pytest.raises(ValueError, match="lacks <!-- scores:begin"):
        accuracy.filled(page.replace("<!-- scores:begin -->", ""), {"scores": ""})


def test_expected_dice_is_tried_on_studies_that_its_line_was_not_drawn_through() -> None:
    def rows(shift: float) -> dict[str, dict[str, dict[str, float]]]:
        own = {"as it is": (0.9, 0.8), "slices of 6 mm": (0.7, 0.6)}
        return {
            how: {
                "dice": {"liver": 1.2 * a - 0.2 + shift, "spleen": 1.2 * b - 0.2 + shift, "body": 0.1},
                "soft_dice": {"liver": a, "spleen": b, "body": 0.99},
                "border_spared": False,
            }
            for how, (a, b) in own.items()
        }

    spared = {"dice": {"liver": 0.99}, "soft_dice": {"liver": 0.1}, "border_spared": True}
    line, tried = accuracy.expected_dice({"one": rows(0.0), "two": {**rows(0.0), "slices of 9 mm": spared}})
    assert (line["slope"], line["intercept"]) == (pytest.approx(1.2), pytest.approx(-0.2))
    assert line["cases"] == 8
    assert {row["rms"] for row in tried.values()} == {0.0}
    # a study that is 0.08 worse than its soft Dice says
    line, tried = accuracy.expected_dice({"one": rows(0.0), "two": rows(-0.08)})
    assert tried["two"]["rms"] == tried["two"]["worst"] == pytest.approx(0.08)
    assert (tried["two"]["too_high_by_0.05"], tried["one"]["too_high_by_0.05"]) == (4, 0)
    assert line["residual"] == pytest.approx(0.04)
    assert accuracy.expected_dice({"one": rows(0.0)})[1] == {}


def test_a_reference_that_was_drawn_too_wide_is_told_from_a_result_that_is_too_small() -> None:
    volume, truth = study()
    organ = truth == 3
    volume = replace(volume, data=np.where(organ, 60, -100).astype(np.int16))
    result = Segmentation(np.where(organ, 3, 0).astype(np.uint8), volume.grid, {3: "kidney_left"})
    assert set(accuracy.past_the_edge(volume, result, truth)) == {"kidney_left"}
    assert accuracy.past_the_edge(volume, result, truth)["kidney_left"] == {
        "past_edge": 0.0, "best": 1.0, "dice": 1.0, "dice_within": 1.0,
    }  # fmt: skip
    wide = truth.copy()
    wide[5:19, 19:33, 3:16] = 3
    found = accuracy.past_the_edge(volume, result, wide)["kidney_left"]
    size, wider = organ.sum(), (wide == 3).sum()
    assert found["past_edge"] == pytest.approx(1 - size / wider, abs=1e-4)
    assert found["best"] == found["dice"] == pytest.approx(2 * size / (size + wider), abs=1e-4)
    assert found["dice_within"] == 1.0
    # a result that is too small is so against both
    small = replace(result, labels=np.where(organ & (np.indices(truth.shape)[0] < 15), 3, 0).astype(np.uint8))
    found = accuracy.past_the_edge(volume, small, truth)["kidney_left"]
    assert found["dice"] == found["dice_within"] == pytest.approx(2 * 9 / (9 + 12), abs=1e-4)
