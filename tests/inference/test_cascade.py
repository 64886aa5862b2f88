"""A package for crops on a larger image: where it looks, what comes back, when it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slice3d.errors import InputError, ModelError
from slice3d.findings import Finding
from slice3d.grid import Grid
from slice3d.inference import Engine, InferenceSettings
from slice3d.inference.cascade import in_region, region_for
from slice3d.models import ModelPackage, registry
from slice3d.models.own_steps import Region
from slice3d.volume import Segmentation, Volume
from tests.inference.builders import Pointwise, write_package

GREYS = {"dark": [[-1.0, 0.1]], "bright": [[-0.5, 0.1], [-0.3, 0.1]]}
SHAPE = (40, 26, 60)
# i runs to the left in 1 mm, j to superior in 2 mm, k to anterior in 0.5 mm
AFFINE = np.array([[-1.0, 0, 0, 9], [0, 0, 0.5, -4], [0, 2.0, 0, 7], [0, 0, 0, 1]])
REGION: dict[str, Any] = {
    "model": "finder", "structures": ["core_left", "core_right"], "margin_mm": [4, 6, 8],
    "dark_to_bright": ["dark", "bright"],
}  # fmt: skip
WHERE = Region("finder", ("core_left", "core_right"), (4.0, 6.0, 8.0), ("dark", "bright"))


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return write_package(
        tmp_path / "crops", Pointwise(), modality=["MR"], region=REGION, reliability={"largest_field_of_view_mm": 30.0}
    )


def found(**metadata: Any) -> Segmentation:
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:12, 9:12, 30:40] = 1
    labels[28:33, 10:13, 20:30] = 2
    return Segmentation(
        labels, Grid(SHAPE, AFFINE), {1: "core_left", 2: "core_right"}, metadata={"grey_values": GREYS, **metadata}
    )


def image() -> Volume:
    return Volume(np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE), Grid(SHAPE, AFFINE), modality="MR")


class Draw:
    """Draws a box in the middle of each crop, and remembers the crops."""

    def __init__(self) -> None:
        self.crops: list[Volume] = []

    def __call__(self, crop: Volume) -> Segmentation:
        labels = np.zeros(crop.grid.shape, np.uint8)
        labels[4:-4, 4:-4, 12:-12] = 1 + len(self.crops)
        self.crops.append(crop)
        return Segmentation(
            labels, crop.grid, {1: "front", 2: "back"}, groups={"core": (1, 2)}, findings=(Finding("same", "said once"),),
            probabilities={"core": (labels > 0).astype(np.float16)},
            metadata={"model": "crops", "expected_dice": {"core": 0.9 - 0.1 * len(self.crops)}},
        )  # fmt: skip


def test_each_structure_is_drawn_in_its_own_crop_and_lies_where_it_lay(package: ModelPackage) -> None:
    draw = Draw()
    region = region_for(image(), package)
    assert region is not None
    result = in_region(image(), package, region, found(), draw)
    # 4 mm to the right and left, 8 up and down, 6 to the front and back, in voxels of 1, 2 and 0.5 mm
    assert [c.data.shape for c in draw.crops] == [(12, 11, 34), (13, 11, 34)]
    assert np.array_equal(draw.crops[0].data, image().data[4:16, 5:16, 18:52])
    assert np.allclose(draw.crops[1].grid.to_world((0, 0, 0)), image().grid.to_world((24, 6, 8)))
    assert np.array_equal(result.labels, found().labels)
    assert np.array_equal(result.probabilities["core"] > 0.5, found().labels > 0)
    assert [f.code for f in result.findings] == ["same", "same", "found-by-another-model"]
    assert [f.message.split(":")[0] for f in result.findings[:2]] == [
        "in the crop around core_left", "in the crop around core_right"
    ]  # fmt: skip
    assert result.metadata["expected_dice"] == {"core": pytest.approx(0.7)}
    assert result.metadata["found_by"] == "finder"
    assert result.grid.matches(image().grid)


@pytest.mark.parametrize(
    ("coarse", "why"),
    [
        (found(grey_values={"dark": [[-0.2, 0.1]], "bright": [[-0.5, 0.1]]}), "from dark to bright, dark, bright"),
        (found(grey_values={}), "too little here to tell the contrast"),
        (replace(found(), labels=np.zeros(SHAPE, np.uint8)), "found no core_left and no core_right"),
        (replace(found(), labels=np.ones(SHAPE, np.uint8)), "larger than model 'crops' knows"),
    ],
)
def test_refusals_are_one_line(package: ModelPackage, coarse: Segmentation, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        in_region(image(), package, WHERE, coarse, Draw())
    assert "\n" not in str(caught.value)


def test_one_side_is_enough(package: ModelPackage) -> None:
    coarse = found()
    one = replace(coarse, labels=np.where(coarse.labels == 2, 2, 0).astype(np.uint8))
    draw = Draw()
    result = in_region(image(), package, WHERE, one, draw)
    assert len(draw.crops) == 1
    assert "core_right," in result.findings[-1].message
    assert "core_left" not in result.findings[-1].message
    (warning,) = [f for f in result.findings if f.code == "region-not-found"]
    assert (warning.severity, warning.details["structures"]) == ("warning", ["core_left"])


def test_the_engine_asks_the_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real engines: one finds bright blobs in the whole image, the other labels by intensity in crops of it."""
    monkeypatch.setattr("slice3d.models.loading.build_network", lambda *_: Pointwise())
    region = {**REGION, "structures": ["spleen"], "dark_to_bright": []}
    common = {"modality": ["MR"], "intensity": {"scheme": "clip_zscore", "clip": [-90, 90], "mean": 0, "std": 10}}
    limits = {"largest_field_of_view_mm": 60.0}
    crops = write_package(tmp_path / "crops", Pointwise(), region=region, reliability=limits, **common)
    finder = write_package(tmp_path / "finder", Pointwise(), **common)
    monkeypatch.setattr(registry, "package", lambda name: {"finder": finder}[name])
    data = np.full((60, 60, 60), -50, np.int16)
    data[30:36, 20:27, 40:45] = 5  # between the thresholds of class 2, spleen
    data[5:9, 5:9, 5:9] = -5
    volume = Volume(data, Grid(data.shape, np.diag([3.0, 3.0, 3.0, 1])), modality="MR")
    settings = InferenceSettings(precision="float32", postprocess=False, device="cpu", threads=1)
    engine = Engine(crops, settings)
    result = engine.predict(volume)
    assert np.array_equal(result.labels == 2, data == 5)
    assert result.metadata["found_by"] == "finder"
    assert result.metadata["model"] == "crops"
    with pytest.raises(ModelError, match=r"budget is 0\.0 GiB"):
        engine.predict(volume, settings=replace(settings, memory_gib=0.01))
    assert np.array_equal(engine.predict(volume).labels, result.labels)  # no later call pays for that
    with pytest.raises(InputError):
        engine.predict([volume, volume])
    monkeypatch.setattr(engine, "_finder", engine)
    with pytest.raises(ModelError, match="knows crops alone"):
        engine.predict(volume)
    whole = engine.predict(volume, settings=replace(settings, allow_unexpected_input=True))
    assert "found_by" not in whole.metadata
    small = Volume(data[25:40, 15:30, 35:50], Grid((15, 15, 15), np.diag([3.0, 3.0, 3.0, 1])), modality="MR")
    assert "found_by" not in engine.predict(small).metadata


def test_results_depend_on_both_packages(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = replace(package, region=None)
    monkeypatch.setattr(registry, "packages", lambda folder=None: {"finder": finder})
    alone = registry.identity(finder)
    assert alone.startswith(finder.sha256)
    both = registry.identity(package)
    assert both.endswith("+" + alone)
    monkeypatch.setattr(registry, "packages", lambda folder=None: {})
    assert both == registry.identity(package) + "+" + alone
    # findings and the expected Dice follow from the description, not from the weights
    said = replace(finder, description={**finder.description, "reliability": {"untested": {"liver": "guesses it"}}})
    assert registry.identity(said).startswith(finder.sha256)
    assert registry.identity(said) != alone


@pytest.mark.parametrize(
    "region", ["head", {"model": "x"}, {**REGION, "margin_mm": [1, 2]}, {**REGION, "structures": []}]
)
def test_a_region_that_makes_no_sense_is_refused(tmp_path: Path, region: Any) -> None:
    with pytest.raises(ModelError, match="region"):
        write_package(tmp_path / "bad", Pointwise(), region=region)
