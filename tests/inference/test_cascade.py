"""Structures drawn again by another model: what changes, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slice3d.errors import InputError
from slice3d.grid import Grid
from slice3d.inference.cascade import refined
from slice3d.models.own_steps import Refinement
from slice3d.volume import Segmentation, Volume

STEP = Refinement("core", "fine-model", "kernel", (4.0, 6.0, 8.0), ("dark", "bright"))
GREYS = {"dark": [[-1.0, 0.1]], "bright": [[-0.5, 0.1], [-0.3, 0.1]]}
SHAPE = (30, 26, 40)
# i runs to the left, j to superior, k to anterior; 1 × 2 × 0.5 mm
AFFINE = np.array([[-1.0, 0, 0, 9], [0, 0, 0.5, -4], [0, 2.0, 0, 7], [0, 0, 0, 1]])


def found() -> Segmentation:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:25, 5:21, 8:32] = 1
    labels[10:16, 9:14, 14:24] = 2
    return Segmentation(labels, Grid(SHAPE, AFFINE), {1: "around", 2: "core"}, groups={"all": (1, 2)})


def image() -> Volume:
    return Volume(np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE), Grid(SHAPE, AFFINE), modality="MR")


class Other:
    """Draws the core one voxel further along i, wherever the crop lies."""

    def __init__(self, shift: int = 1) -> None:
        self.shift, self.seen = shift, [Volume(np.zeros((1, 1, 1)), Grid((1, 1, 1), np.eye(4)))]

    def __call__(self, model: str, volume: Volume, structure: str) -> Segmentation:
        assert (model, structure) == ("fine-model", "kernel")
        self.seen.append(volume)
        whole = np.roll(found().labels == 2, self.shift, axis=0)
        start = np.rint(np.linalg.inv(AFFINE) @ volume.grid.affine[:, 3])[:3].astype(int)
        part = whole[tuple(slice(a, a + n) for a, n in zip(start, volume.grid.shape, strict=True))]
        return Segmentation(part.astype(np.uint8), volume.grid, {1: "kernel"})


def test_the_structure_is_as_the_other_model_draws_it_and_neighbours_close_up() -> None:
    before, other = found(), Other()
    after = refined(before, image(), [STEP], GREYS, other)
    expected = np.roll(before.labels == 2, 1, axis=0)
    assert np.array_equal(after.mask("core"), expected)
    assert np.array_equal(after.labels > 0, before.labels > 0)  # what the core left is its neighbour's, not nothing
    assert (after.labels[10, 9:14, 14:24] == 1).all()
    assert [f.code for f in after.findings] == ["drawn-by-another-model"]
    assert after.metadata["drawn_by"] == {"core": "fine-model"}
    crop = other.seen[-1]
    # 4 mm to the right and left, 8 up and down, 6 to the front and back, in voxels of 1, 2 and 0.5 mm
    assert np.array_equal(crop.data, image().data[6:20, 5:18, 2:36])
    assert before.findings == ()
    assert (before.labels == 2).sum() == 300


def refusing(*_: Any) -> Segmentation:
    raise InputError("the image is too strange")


@pytest.mark.parametrize(
    ("other", "greys", "why"),
    [
        (Other(5), GREYS, "agree by a Dice of 0.18"),
        (refusing, GREYS, "too strange"),
        (Other(), {"dark": [[-0.2, 0.1]], "bright": [[-0.5, 0.1]]}, "from dark to bright, dark, bright"),
        (Other(), {}, "contrast is not known"),
    ],
)
def test_otherwise_it_stays_and_the_reason_is_said(
    other: Callable[..., Segmentation], greys: dict[str, Any], why: str
) -> None:
    before = found()
    after = refined(before, image(), [STEP], greys, other)
    assert np.array_equal(after.labels, before.labels)
    (finding,) = after.findings
    assert (finding.code, finding.severity) == ("not-drawn-again", "info")
    assert why in finding.message
    assert "drawn_by" not in after.metadata


def test_what_was_not_found_or_not_asked_for_is_not_looked_at() -> None:
    empty = found()
    nothing = Segmentation(np.where(empty.labels == 2, 1, empty.labels), empty.grid, empty.names)
    assert refined(nothing, image(), [STEP], GREYS, refusing) is nothing
    other_names = Segmentation(empty.labels, empty.grid, {1: "around", 2: "something"})
    assert refined(other_names, image(), [STEP], GREYS, refusing) is other_names


@pytest.mark.parametrize("name", ["core", "all"])
def test_a_probability_that_was_asked_for_is_not_contradicted(name: str) -> None:
    before = found()
    field = before.mask(name).astype(np.float16)
    kept = Segmentation(before.labels, before.grid, before.names, groups=before.groups, probabilities={name: field})
    after = refined(kept, image(), [STEP], GREYS, Other())
    assert np.array_equal(after.labels, before.labels)
    assert "probability" in after.findings[0].message
