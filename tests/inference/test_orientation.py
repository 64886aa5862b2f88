"""Which way round an image is, told from what does not depend on the names that a network gives by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slice3d.grid import Grid
from slice3d.inference.orientation import check_places, check_sides
from slice3d.inference.reliability import check_result
from slice3d.volume import Segmentation

NAMES = {1: "liver", 2: "spleen", 3: "kidney_left", 4: "kidney_right", 9: "body"}
USUAL = {
    1: (slice(38, 56), slice(20, 44), slice(24, 40)), 2: (slice(8, 16), slice(10, 20), slice(26, 36)),
    3: (slice(16, 23), slice(10, 18), slice(8, 20)), 4: (slice(41, 48), slice(10, 18), slice(6, 18)),
}  # fmt: skip
GRID = Grid((64, 52, 44), np.array([[5.0, 0, 0, -160], [0, 4.0, 0, -100], [0, 0, 6.0, 30], [0, 0, 0, 1]]))


def trunk(flip: int | None = None, names: dict[int, int] | None = None) -> Segmentation:
    """A body with four organs; flipped along an axis; names: label value → the value that it is given instead."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:60, 4:48] = 9
    for value, box in USUAL.items():
        labels[box] = value
    if flip is not None:
        labels = np.flip(labels, flip)
    swapped = np.arange(10, dtype=np.uint8)
    for old, new in (names or {}).items():
        swapped[old] = new
    return Segmentation(np.ascontiguousarray(swapped[labels]), GRID, NAMES)


def centres(found: Segmentation) -> dict[str, tuple[float, float, float]]:
    out = {}
    for value, name in NAMES.items():
        index = np.argwhere(found.labels == value)
        if len(index):
            x, y, z = found.grid.to_world(index.mean(0))
            out[name] = (float(x), float(y), float(z))
    return out


def said(found: Segmentation, wanted: tuple[str, ...] = ("liver", "spleen")) -> list[str]:
    ml = {n: float(found.mask(n).sum()) * found.grid.voxel_volume_mm3 / 1000 for n in ("liver", "spleen")}
    result = check_result(found, wanted, {}, centres(found), volumes_ml=ml)
    findings = [f for f in result if f.code == "orientation-implausible"]
    assert all("\n" not in f.message for f in findings)
    return [f"{f.severity}: {f.message}" for f in findings]


BY_SIDE = {1: 2, 2: 1, 3: 4, 4: 3}


def test_the_usual_trunk_is_silent() -> None:
    assert said(trunk()) == []


def test_a_mirrored_trunk_named_by_side_is_noticed() -> None:
    """What `check_sides` cannot see: every name is on its usual side."""
    mirrored = trunk(0, BY_SIDE)
    assert check_sides(centres(mirrored)) == []
    (message,) = said(mirrored)
    assert message.startswith("warning: most of what was named liver and spleen lies left, ")
    assert "may be mirrored," in message
    assert "situs inversus" in message


def test_without_volumes_the_spleen_in_front_of_the_liver_shows_a_mirrored_trunk() -> None:
    (finding,) = check_places(centres(trunk(0, BY_SIDE)))
    assert finding.message.startswith("what was named liver lies ")
    assert "mirrored or back to front" in finding.message
    assert finding.details == {"first": "liver", "second": "spleen", "distance_mm": 68.0}


@pytest.mark.parametrize(("axis", "words"), [(1, "mirrored or back to front"), (2, "upside down")])
def test_a_trunk_back_to_front_or_upside_down_is_noticed(axis: int, words: str) -> None:
    (message,) = said(trunk(axis))
    assert message.startswith("warning: ")
    assert f"may be {words}," in message


@pytest.mark.parametrize("flip", [None, 0, 1, 2])
def test_one_organ_alone_says_nothing(flip: int | None) -> None:
    """Neither do a spleen and a body without a liver, whichever way round."""
    for kept in (1, 2, 3):
        found = trunk(flip, {value: 9 for value in USUAL if value != kept})
        assert check_places(centres(found), {NAMES[kept]: 500.0}) == []


def test_lungs_below_the_liver_are_upside_down() -> None:
    (finding,) = check_places({"lung_left": (-70.0, 0.0, 10.0), "liver": (60.0, 10.0, 90.0)})
    assert (finding.code, finding.severity) == ("orientation-implausible", "warning")
    assert finding.message.startswith("what was named lung_left lies 80 mm below what was named liver, ")
    assert check_places({"lung_left": (-70.0, 0.0, 100.0), "liver": (60.0, 10.0, 90.0)}) == []


def test_a_large_spleen_alone_is_no_mirrored_image() -> None:
    at = {"liver": (60.0, 20.0, 100.0), "spleen": (-90.0, -20.0, 100.0), "body": (0.0, 0.0, 90.0)}
    assert check_places(at, {"liver": 1500.0, "spleen": 900.0}) == []
    assert len(check_places(at, {"liver": 700.0, "spleen": 900.0})) == 1


@pytest.mark.real
def test_every_flip_of_a_real_ct_is_noticed(data: Path) -> None:
    from slice3d.inference import Engine, InferenceSettings
    from slice3d.io import load
    from slice3d.models import registry

    engine = Engine(registry.package("ct-torso"), InferenceSettings(device="cpu"))
    volume = load(data / "ct-torso/labelled/s0009/ct.nii.gz")
    for axis, words in ((None, ""), (0, "mirrored"), (1, "back to front"), (2, "upside down")):
        image = volume.data if axis is None else np.ascontiguousarray(np.flip(volume.data, axis))
        result = engine.predict(replace(volume, data=image, source=None))
        found = [f.message for f in result.findings if f.code == "orientation-implausible"]
        assert len(found) == (axis is not None), found
        assert all(words in message for message in found), (axis, found)
    # whatever was asked for: what else was found counts
    mirrored = replace(volume, data=np.ascontiguousarray(np.flip(volume.data, 0)), source=None)
    for image, codes in ((volume, set()), (mirrored, {"orientation-implausible"})):
        found = engine.predict(image, structures=["kidneys"]).findings
        assert {f.code for f in found} & {"orientation-implausible"} == codes
