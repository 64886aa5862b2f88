"""The engine against slow, plain implementations and against itself under other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slice3d.errors import InputError, ModelError
from slice3d.grid import Grid
from slice3d.inference import Engine, InferenceSettings, estimate, predict
from slice3d.models import ModelPackage
from slice3d.models.loading import load_network
from slice3d.resample import axis_moves, reorient, undo_moves
from slice3d.volume import Volume
from tests.inference.builders import ARGUMENTS, Pointwise, oblique_volume, random_network, write_package

FLOAT32 = InferenceSettings(precision="float32", postprocess=False, device="cpu", threads=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("models") / "tiny", random_network())


@pytest.fixture
def pointwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    monkeypatch.setattr("slice3d.models.loading.build_network", lambda *_: Pointwise())
    return write_package(tmp_path / "pointwise", Pointwise())


def brute_force(volume: Volume, package: ModelPackage, overlap: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (C, i, j, k) on the study's grid, everything held in memory, nothing clever."""
    network = load_network(package)
    turned = reorient(volume, "RAS")
    intensity = package.intensity[0]
    image = turned.data.astype(np.float64)
    ratio = np.array(package.spacing_mm) / turned.grid.spacing_mm
    image = ndimage.gaussian_filter(image, 0.35 * np.sqrt(np.maximum(ratio**2 - 1, 0)), mode="nearest")
    shape = tuple(np.ceil(np.array(image.shape) / ratio - 1e-3).astype(int))
    small = ndimage.affine_transform(image, ratio, (ratio - 1) / 2, shape, order=1, mode="nearest")
    small = ((np.clip(small, *intensity.clip) - intensity.mean) / intensity.std).astype(np.float32)
    patch = package.patch_size
    widths = [(max(0, p - n) // 2, max(0, p - n) - max(0, p - n) // 2) for n, p in zip(small.shape, patch, strict=True)]
    padded = np.pad(small, widths, constant_values=(intensity.clip[0] - intensity.mean) / intensity.std)
    line = [np.exp(-((np.arange(p) - p // 2) ** 2) / (2 * (p / 8) ** 2)) for p in patch]
    weight = np.maximum(np.einsum("i,j,k->ijk", *line), 6e-9)
    starts = []
    for n, p in zip(padded.shape, patch, strict=True):
        count = int(np.ceil((n - p) / max(1, p * (1 - overlap)))) + 1
        starts.append(np.round(np.linspace(0, n - p, count)).astype(int))
    total = np.zeros(padded.shape)
    scores = np.zeros((max(package.labels) + 1, *padded.shape))
    for a in starts[0]:
        for b in starts[1]:
            for c in starts[2]:
                box = (slice(a, a + patch[0]), slice(b, b + patch[1]), slice(c, c + patch[2]))
                with torch.inference_mode():
                    out = network(torch.from_numpy(padded[box])[None, None])[0].double().numpy()
                scores[(slice(None), *box)] += out * weight
                total[box] += weight
    inner = tuple(slice(w[0], w[0] + n) for w, n in zip(widths, small.shape, strict=True))
    scores = (scores / total)[(slice(None), *inner)]
    back = [
        ndimage.affine_transform(s, 1 / ratio, (1 / ratio - 1) / 2, image.shape, order=1, mode="nearest")
        for s in scores
    ]
    moves = axis_moves(volume.grid, "RAS")
    scores = np.stack([undo_moves(s, *moves) for s in back])
    return scores.argmax(0), scores


def assert_same(found: np.ndarray, scores: np.ndarray, tolerance: float = 1e-3) -> None:
    """Equal to the strongest class, except where two classes tie to rounding."""
    best = scores.max(0)
    mine = np.take_along_axis(scores, found[None].astype(int), 0)[0]
    assert (best - mine).max() < tolerance
    assert (found != scores.argmax(0)).mean() < 0.001


def test_equals_brute_force_on_an_oblique_anisotropic_study(tiny: ModelPackage) -> None:
    volume = oblique_volume()
    labels, scores = brute_force(volume, tiny)
    assert len(np.unique(labels)) >= 3
    assert_same(predict(volume, tiny, settings=FLOAT32).labels, scores)


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "ILA"])
def test_axes_of_the_study_do_not_matter(tiny: ModelPackage, orientation: str) -> None:
    volume = oblique_volume()
    here = predict(volume, tiny, settings=FLOAT32)
    there = predict(reorient(volume, orientation), tiny, settings=FLOAT32)
    moves = axis_moves(volume.grid, orientation)
    assert (undo_moves(there.labels, *moves) != here.labels).mean() < 1e-3


def test_pointwise_network_labels_the_values_themselves(pointwise: ModelPackage) -> None:
    package = replace(pointwise, spacing_mm=(2.0, 1.5, 3.5))  # the study's own spacing: no resampling at all
    volume = oblique_volume()
    result = Engine(package, FLOAT32).predict(volume)
    truth = np.digitize(np.clip(volume.data, -200, 300) / 100, (-1.0, 0.0, 1.0), right=True)
    assert (result.labels == truth).mean() > 0.999


@given(
    patch=st.tuples(*[st.sampled_from([8, 12, 16, 20])] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    batch=st.integers(1, 3),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_result_does_not_depend_on_tiles(
    pointwise: ModelPackage, patch: tuple[int, int, int], overlap: float, batch: int
) -> None:
    volume = oblique_volume()
    reference = Engine(replace(pointwise, patch_size=(64, 64, 64)), FLOAT32).predict(volume)
    tiled = Engine(replace(pointwise, patch_size=patch), replace(FLOAT32, overlap=overlap, batch=batch)).predict(volume)
    assert (tiled.labels != reference.labels).mean() < 1e-4


@given(batch=st.integers(1, 5), memory=st.floats(4.0, 12.0), threads=st.integers(1, 2))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_result_does_not_depend_on_batch_memory_or_threads(
    tiny: ModelPackage, batch: int, memory: float, threads: int
) -> None:
    volume = oblique_volume()
    reference = predict(volume, tiny, settings=FLOAT32)
    other = predict(volume, tiny, settings=replace(FLOAT32, batch=batch, memory_gib=memory, threads=threads))
    assert (other.labels != reference.labels).mean() < 1e-3


def test_same_input_same_bytes(tiny: ModelPackage) -> None:
    runs = [Engine(tiny, FLOAT32).predict(oblique_volume()).labels.tobytes() for _ in range(2)]
    assert runs[0] == runs[1]


def test_memory_budget_too_small_is_said_before_work_starts(tiny: ModelPackage) -> None:
    with pytest.raises(ModelError, match=r"needs about .* GiB .* budget is 0\.1 GiB; raise --memory"):
        predict(oblique_volume(), tiny, settings=replace(FLOAT32, memory_gib=0.1))


def test_only_wanted_structures_come_back(tiny: ModelPackage) -> None:
    volume = oblique_volume()
    everything = predict(volume, tiny, settings=FLOAT32)
    one = predict(volume, tiny, structures=["spleen"], settings=FLOAT32)
    assert dict(one.names) == {2: "spleen"}
    np.testing.assert_array_equal(one.labels == 2, everything.labels == 2)
    assert set(np.unique(one.labels)) <= {0, 2}
    assert one.metadata["structures"] == ("spleen",)


def test_what_lies_inside_a_wanted_structure_is_listed_only_when_asked_for(tmp_path: Path) -> None:
    # body: everything, liver: with its tumour; kidney_left and _right: a pair
    labels = {"1": "liver", "2": "liver_tumor", "3": "body", "4": "kidney_left", "5": "kidney_right"}
    groups = {"body": [1, 2, 3, 4, 5], "liver": [1, 2], "kidneys": [4, 5]}
    network = {"class": "monai.networks.nets.DynUNet", "arguments": {**ARGUMENTS, "out_channels": 6}}
    package = write_package(
        tmp_path / "nested", random_network(out_channels=6), labels=labels, groups=groups, network=network
    )
    volume = oblique_volume()
    every = predict(volume, package, settings=FLOAT32)
    assert len(np.unique(every.labels)) > 4
    assert every.structures == ("liver", "liver_tumor", "body", "kidney_left", "kidney_right", "kidneys")
    for wanted, structures in (
        (["body"], ("body",)),
        (["liver"], ("liver",)),
        (["liver", "body"], ("liver", "body")),
        (["liver", "liver_tumor"], ("liver", "liver_tumor")),
        (["kidneys"], ("kidney_left", "kidney_right", "kidneys")),
    ):
        result = predict(volume, package, structures=wanted, settings=FLOAT32)
        assert result.structures == structures
        assert set(np.unique(result.labels)) - {0} <= set(result.names)
        for name in structures:
            np.testing.assert_array_equal(result.mask(name), every.mask(name))


def test_an_engine_refuses_to_be_another_one_for_a_case(tmp_path: Path) -> None:
    package = write_package(tmp_path / "two", [random_network(seed=1), random_network(seed=2)])
    engine = Engine(package, replace(FLOAT32, device="cpu"))
    volume = oblique_volume()
    engine.predict(volume, settings=replace(FLOAT32, folds=(0, 1), device="cpu"))
    for same in (InferenceSettings(batch=2), replace(FLOAT32, folds=(1, 0)), replace(FLOAT32, folds=())):
        engine.predict(volume, settings=same)
    for other, says in (
        (replace(FLOAT32, folds=(1,)), r"folds \[1\] asked for in one case; this engine was made with \[0, 1\]"),
        (replace(FLOAT32, folds=(4,)), r"folds \[4\] asked for; model 'two' has 0 to 1"),
        (InferenceSettings(precision="bfloat16"), "precision torch.bfloat16 asked for"),
    ):
        with pytest.raises(InputError, match=says):
            engine.predict(volume, settings=other)
        with pytest.raises(InputError, match=says):
            next(engine.predict_each([volume], settings=other))
        with pytest.raises(InputError, match=says):
            estimate(engine, volume.grid, settings=other)
    alone = Engine(package, replace(FLOAT32, folds=(1,))).predict(volume)
    assert not np.array_equal(alone.labels, engine.predict(volume).labels)


@pytest.mark.parametrize("shape", [(21, 33, 27), (61, 90, 40)])
def test_estimate_is_what_a_run_takes(tiny: ModelPackage, shape: tuple[int, int, int]) -> None:
    volume = oblique_volume(shape)
    engine = Engine(tiny, FLOAT32)
    whole = replace(FLOAT32, region="whole")
    told = estimate(engine, volume.grid, structures=["liver"], settings=whole)
    ran = engine.predict(volume, structures=["liver"], settings=whole).metadata
    assert told.runs == ran["tiles"]
    assert told.memory_gib == pytest.approx(ran["memory_planned_gib"], abs=0.1)
    assert told.run_s > 0
    assert (told.device, told.precision, told.threads) == (ran["device"], ran["precision"], ran["threads"])
    # looking for the region first adds a look, and what it finds is no more than everything
    told = estimate(engine, volume.grid, structures=["liver"], settings=FLOAT32)
    assert told.runs >= engine.predict(volume, structures=["liver"], settings=FLOAT32).metadata["tiles"]
    with pytest.raises(ModelError, match="raise --memory"):
        estimate(engine, volume.grid, settings=replace(FLOAT32, memory_gib=0.1))


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": {"1": "bone", "2": "body"}},
        {
            "labels": {"1": "bone", "2": "liver"},
            "tissues": [{"name": "a", "labels": [0]}, {"name": "b", "labels": [1]}, {"name": "c", "labels": [2]}],
        },
        {"labels": {"1": "bone", "2": "liver", "3": "spleen"}, "keep_largest": [{"labels": [1]}]},
    ],
    ids=["bones lie in the body", "tissues", "own steps"],
)
def test_estimate_counts_what_is_looked_for_beside_what_was_asked(tmp_path: Path, fields: dict[str, Any]) -> None:
    arguments = {**ARGUMENTS, "out_channels": 1 + max(int(n) for n in fields["labels"])}
    network = {"class": "monai.networks.nets.DynUNet", "arguments": arguments}
    package = write_package(tmp_path / "more", random_network(**arguments), network=network, **fields)
    cleaned = replace(FLOAT32, postprocess=True)
    engine, volume = Engine(package, cleaned), oblique_volume((61, 90, 40))
    told = estimate(engine, volume.grid, structures=["bone"])
    assert told.runs == engine.predict(volume, structures=["bone"]).metadata["tiles"]


def test_probability_of_a_structure_agrees_with_its_label(tiny: ModelPackage) -> None:
    volume = oblique_volume()
    result = predict(volume, tiny, settings=replace(FLOAT32, probabilities=("bone",)))
    _, scores = brute_force(volume, tiny)
    softmax = np.exp(scores - scores.max(0)) / np.exp(scores - scores.max(0)).sum(0)
    assert np.abs(result.probabilities["bone"] - softmax[3]).mean() < 0.05


def test_bfloat16_agrees_with_float32(tiny: ModelPackage) -> None:
    volume = oblique_volume()
    a, b = (predict(volume, tiny, settings=replace(FLOAT32, precision=p)).labels for p in ("float32", "bfloat16"))
    assert (a != b).mean() < 0.03


def test_folds_and_flips_are_averaged(tmp_path: Path) -> None:
    networks = [random_network(1), random_network(2)]
    package = write_package(tmp_path / "folds", networks, sampling={"mirror_axes": [0, 2]})
    volume = oblique_volume()
    both = predict(volume, package, settings=FLOAT32)
    assert both.metadata["folds"] == 2
    assert both.metadata["mirrored_axes"] == [0, 2]
    singles = [predict(volume, package, settings=replace(FLOAT32, folds=(n,))).labels for n in (0, 1)]
    assert (singles[0] != singles[1]).any()
    plain = predict(volume, package, settings=replace(FLOAT32, mirror=False)).labels
    assert (plain != both.labels).any()


def test_unknown_fold_is_an_input_error(tiny: ModelPackage) -> None:
    with pytest.raises(InputError, match="folds"):
        Engine(tiny, replace(FLOAT32, folds=(3,)))


@given(
    seed=st.integers(0, 50),
    organ=st.sampled_from(["liver", "spleen"]),
    shape=st.sampled_from([(40, 36, 30), (30, 52, 21)]),
)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_region_first_gives_what_the_whole_image_gives(
    seed: int, organ: str, shape: tuple[int, int, int], pointwise: ModelPackage
) -> None:
    volume = oblique_volume(shape, seed)
    package = replace(pointwise, patch_size=(8, 8, 8))
    whole, part = (
        Engine(package, replace(FLOAT32, region=region)).predict(volume, structures=[organ])
        for region in ("whole", "auto")
    )
    assert whole.metadata["region"] is None
    assert part.metadata["region"] is not None
    np.testing.assert_array_equal(part.labels, whole.labels)


def test_region_that_cuts_an_organ_grows(pointwise: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick look shows half of the organ only; nothing may be cut flat."""
    from slice3d.inference.census import Census

    true_box = Census.box
    looks: list[int] = []

    def half_blind(self: Census, channels: list[int]) -> object:
        found = true_box(self, channels)
        looks.append(1)
        if len(looks) == 1 and found is not None:
            middle = (found[0] + found[1]) // 2
            return np.stack([middle - 1, middle + 1])
        return found

    monkeypatch.setattr(Census, "box", half_blind)
    monkeypatch.setattr("slice3d.inference.region._MARGIN_MM", 3.0)
    volume = oblique_volume((40, 36, 30))
    package = replace(pointwise, patch_size=(8, 8, 8))
    part = Engine(package, FLOAT32).predict(volume, structures=["spleen"])
    monkeypatch.setattr(Census, "box", true_box)
    whole = Engine(package, replace(FLOAT32, region="whole")).predict(volume, structures=["spleen"])
    assert len(looks) > 2, "the region must have grown"
    assert part.metadata["region"] is not None
    np.testing.assert_array_equal(part.labels, whole.labels)


def test_second_case_in_the_same_process_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slice3d.models import loading, read_package

    package = write_package(tmp_path / "warm", random_network())
    loads: list[int] = []

    def counted(package: ModelPackage, fold: int = 0) -> torch.nn.Module:
        loads.append(fold)
        return load_network(package, fold)

    monkeypatch.setattr(loading, "load_network", counted)
    first = predict(oblique_volume(), package, settings=FLOAT32)
    assert loads == [0]
    # the package is found anew for every study, as the command line and the cohort runner do
    again = predict(oblique_volume(), read_package(package.folder), settings=FLOAT32)
    assert loads == [0]
    np.testing.assert_array_equal(again.labels, first.labels)


@pytest.mark.parametrize("name", ["bone", "aorta"])
def test_rails_of_the_couch_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One structure alone was asked for: what lies in small pieces beside the body is not taken for it; an arm is.

    Of bones always, of others where the package looks for everything anyway.
    """
    steps = [{"labels": [2], "independent": True, "connectivity": 3, "components": 9}] if name == "aorta" else []
    monkeypatch.setattr("slice3d.models.loading.build_network", lambda *_: Pointwise((-1.0, 1.0)))
    package = write_package(
        tmp_path / "bones", Pointwise((-1.0, 1.0)), labels={"1": "body", "2": name}, groups={"body": [1, 2]},
        spacing_mm=[3.0, 3.0, 3.0], keep_largest=steps,
    )  # fmt: skip
    data = np.full((60, 50, 40), -1000, np.int16)
    data[15:45, 10:40] = 40
    data[26:34, 18:26] = 800
    data[3:9, 20:30] = 40
    data[5:7, 24:26] = 800  # the arm
    data[20:24, 45:48, :12] = 800  # the rail: more than a twentieth of the structure, less than a hundredth of the body
    volume = Volume(data, Grid(data.shape, np.diag([3.0, 3.0, 3.0, 1])), modality="CT")
    engine = Engine(package, replace(FLOAT32, postprocess=None))
    found = engine.predict(volume, structures=[name])
    expected = data == 800
    expected[20:24, 45:48] = False
    assert np.array_equal(found.mask(name), expected)
    assert found.structures == (name,)
    kept = Engine(package, FLOAT32).predict(volume, structures=[name])
    assert np.array_equal(kept.mask(name), data == 800)
