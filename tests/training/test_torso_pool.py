"""The pool of `ct-torso`: the same patients on the grids of its stages."""

from pathlib import Path

import numpy as np
import pytest

from slice3d.training import cases, torso_pool
from slice3d.training.annotate import confirmed_case
from slice3d.training.cases import Case
from slice3d.training.torso import COARSE_MIX, FINE_MIX, MIDDLE_MIX
from slice3d.training.torso_pool import FINE_MM, OUTLINES_MM, prepare_pool, sharper_case


def patient(spacing: tuple[float, float, float], organ: bool) -> Case:
    """A trunk in a field of view of 180 × 150 × 90 mm, off its middle; with an ellipsoid as organ in it or without."""
    shape = tuple(int(np.ceil(n / s)) for n, s in zip((180, 150, 90), spacing, strict=True))
    i, j, k = ((n + 0.5) * s for n, s in zip(np.indices(shape), spacing, strict=True))
    trunk = ((i - 80) / 50) ** 2 + ((j - 90) / 36) ** 2 < 1
    inside = ((i - 70) / 26) ** 2 + ((j - 90) / 20) ** 2 + ((k - 40) / 17) ** 2 < 1
    labels = np.where(trunk, 9, 0).astype(np.uint8)
    if organ:
        labels[inside] = 1
    return Case("one", np.where(inside, 120, np.where(trunk, 40, -1000)).astype(np.int16), labels, spacing)


def test_confirmed_outlines_lie_on_smaller_voxels_where_they_lay() -> None:
    whole = patient(OUTLINES_MM, organ=False)
    confirmed = cases.cropped_to_body(patient(OUTLINES_MM, organ=True))
    assert confirmed.labels.shape != whole.labels.shape, "something is cropped"
    case = sharper_case(confirmed, whole, patient(FINE_MM, organ=False))
    truth = patient(FINE_MM, organ=True)
    assert case.spacing_mm == FINE_MM
    assert case.image.shape == case.labels.shape
    same = tuple(slice(0, n) for n in case.labels.shape)
    for value in (1, 9):
        a, b = case.labels == value, truth.labels[same] == value
        assert 2 * np.count_nonzero(a & b) / (a.sum() + b.sum()) > 0.96
        assert np.argwhere(a).mean(0) == pytest.approx(np.argwhere(b).mean(0), abs=0.15)
    assert np.array_equal(case.image, truth.image[same])


def test_every_stage_draws_from_folders_of_the_pool_and_prepared_cases_are_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torso_pool, "LABELLED", {"s0003": cases.LABELLED["s0003"]})
    monkeypatch.setattr(torso_pool, "UNLABELLED", {"ct-20slices": cases.UNLABELLED["ct-20slices"]})
    monkeypatch.setattr(torso_pool, "ORDER", ("s0000",))
    prepare_pool(data, tmp_path, synthetic=1, phantoms=1)
    for mix in (COARSE_MIX, MIDDLE_MIX, FINE_MIX):
        assert sum(mix.values()) == pytest.approx(1)
        for group in mix:
            (path,) = (tmp_path / group).glob("*.json")
            case = cases.load_case(path.parent, path.stem)
            assert case.spacing_mm[0] == {"coarse": 4.5, "middle": 3.2, "fine": 2.5}[group.split("/")[0]]
            assert case.image.shape == case.labels.shape
    # liver and bone lie where they were confirmed
    outlined = confirmed_case(cases.load_case(tmp_path / "outlines" / "ruled", "ct-20slices"))
    for level in ("fine", "middle", "coarse"):
        case = cases.load_case(tmp_path / level / "confirmed", "ct-20slices")
        # open rims, thinner than a voxel, give way to what they surround
        for value, volume, hu in ((1, 0.07, 12), (7, 0.15, 40)):
            ml = [np.count_nonzero(c.labels == value) * np.prod(c.spacing_mm) / 1000 for c in (outlined, case)]
            assert ml[1] == pytest.approx(ml[0], rel=volume)
            brightness = [c.image[c.labels == value].mean() for c in (outlined, case)]
            assert brightness[1] == pytest.approx(brightness[0], abs=hu)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    prepare_pool(data, tmp_path, synthetic=1, phantoms=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_a_network_of_smaller_voxels_guesses_outlines_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from slice3d.training import annotate, bones, loop, torso, validate

    def shares(network: object, image: np.ndarray, *_: object, **__: object) -> torch.Tensor:
        out = np.zeros((12, *image.shape), np.float32)
        out[1] = image == 120
        return torch.from_numpy(out)

    monkeypatch.setattr(cases, "unlabelled_case", lambda data, name, spacing_mm: patient(spacing_mm, organ=False))
    monkeypatch.setattr(loop, "averaged_network", lambda checkpoint, settings: None)
    monkeypatch.setattr(validate, "probabilities", shares)
    monkeypatch.setattr(torso, "refine", lambda case, moved, confirmed: case)
    monkeypatch.setattr(torso, "whole_bones", lambda case, moved, seen: (moved[1] > 0.5).astype(np.uint8))
    monkeypatch.setattr(torso, "SEEN", {"one": bones.Skeleton()})
    (guess,) = torso.guessed_outlines(
        tmp_path, torso.fine_settings(torso.Recipe()), tmp_path, {"one": annotate.Checked()}
    )
    truth = cases.cropped_to_body(patient(OUTLINES_MM, organ=False))
    organ = truth.image == 120
    assert guess.labels.shape == organ.shape
    assert 2 * np.count_nonzero(guess.labels & organ) / (guess.labels.sum() + organ.sum()) > 0.96
    assert np.argwhere(guess.labels).mean(0) == pytest.approx(np.argwhere(organ).mean(0), abs=0.15)


def test_each_stage_begins_with_the_weights_of_the_one_before_and_never_sees_its_held_out_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from safetensors.torch import load_file

    from slice3d.models.package import read_package
    from slice3d.training import crops, torso
    from slice3d.training.curves import read_history
    from slice3d.training.loop import averaged_network

    def prepared(data: Path, folder: Path, **_: object) -> None:
        for level, mm in (("coarse", torso.COARSE_MM), ("middle", torso.MIDDLE_MM), ("fine", torso.FINE_MM)):
            for name in ("s0009", "spl", "other"):
                cases.save(replace(patient(mm, organ=True), name=name), folder / level / "labelled")

    drawn: list[tuple[str, set[str]]] = []

    class Watched(crops.Pool):
        def __init__(self, folders: dict[Path, float], *, without: tuple[str, ...] = ()) -> None:
            super().__init__(folders, without=without)
            drawn.append((next(iter(folders)).parent.name, set(self.names)))

    monkeypatch.setattr(torso, "prepare_pool", prepared)
    monkeypatch.setattr(crops, "Pool", Watched)
    recipe = torso.Recipe(coarse_steps=1, middle_steps=0, fine_steps=0, again_steps=1)
    told: list[str] = []
    package = torso.train_torso(tmp_path, tmp_path / "out", recipe=recipe, report=told.append)
    assert drawn == [
        ("coarse", {"other"}), ("middle", {"other"}), ("fine", {"spl", "other"}), ("fine", {"spl", "other"}),
        ("fine", {"s0009", "other"}), ("fine", {"s0009", "other"}),
    ]  # fmt: skip
    assert "0 at 3.2 mm" in told[0]
    coarse, middle = (
        averaged_network(tmp_path / "out" / stage / "last.ckpt", torso.coarse_settings(recipe)).state_dict()
        for stage in ("coarse", "middle")
    )
    assert all((coarse[name] == middle[name]).all() for name in coarse), "no step was made: nothing but handed on"
    for fold, (held, other) in enumerate((("s0009", "spl"), ("spl", "s0009"))):
        rows = read_history(tmp_path / "out" / f"without-{held}-again")
        watched = {key.split("/")[0] for row in rows for key in row if "/" in key}
        assert watched == {held}, f"and not {other}"
        # one step of a warm-up: near the weights that it began with, but for what class weights put into the last bias
        trained = load_file(package / f"weights-{fold}.safetensors")
        moved = {name: float((value.float() - middle[name]).abs().max()) for name, value in trained.items()}
        assert 2 < moved.pop("inner.output_block.conv.conv.bias") < 2.1
        assert len(moved) > 20
        assert max(moved.values()) < 1e-3
    described = read_package(package)
    assert described.spacing_mm == torso.WORKING_MM
    assert (tmp_path / "out" / "learning-curves.png").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/last.ckpt")}
    assert len(stamps) == 6
    torso.train_torso(tmp_path, tmp_path / "out", recipe=recipe)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what is finished is not done again"


def test_the_last_stage_alone_begins_with_the_networks_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    import torch
    from safetensors.torch import load_file

    from slice3d.errors import InputError
    from slice3d.models.package import read_package
    from slice3d.training import crops, torso
    from slice3d.training.card import VERSION, package_facts
    from slice3d.training.export import export, training_weights
    from slice3d.training.loop import _new, averaged_network, begin_with

    def prepared(data: Path, folder: Path, *, coarser: bool, **_: object) -> None:
        assert not coarser, "larger voxels are of the stages that are left out"
        for name in ("s0009", "spl", "other"):
            cases.save(replace(patient(torso.FINE_MM, organ=True), name=name), folder / "fine" / "labelled")

    drawn: list[set[str]] = []

    class Watched(crops.Pool):
        def __init__(self, folders: dict[Path, float], *, without: tuple[str, ...] = ()) -> None:
            super().__init__(folders, without=without)
            drawn.append(set(self.names))

    monkeypatch.setattr(torso, "prepare_pool", prepared)
    monkeypatch.setattr(crops, "Pool", Watched)
    recipe = torso.Recipe(again_steps=1)
    how = torso.again_settings(recipe)
    for name, seed in (("s0009", 11), ("spl", 12)):
        network, _ = _new(replace(how, seed=seed))
        begin_with({k.removeprefix("network."): v for k, v in network.state_dict().items() if k.startswith("network.")},
                   how, tmp_path / name)  # fmt: skip
    before = [tmp_path / name / "last.ckpt" for name in ("s0009", "spl")]
    earlier = export(before, how, package_facts(("s0009", "spl")), tmp_path / "earlier")
    recipe = replace(recipe, start=earlier)
    told: list[str] = []
    package = torso.train_torso(tmp_path, tmp_path / "out", recipe=recipe, report=told.append)
    assert drawn == [{"spl", "other"}, {"s0009", "other"}], "what is held out is not drawn"
    assert told[0].startswith("from the networks of ct-torso")
    assert "4.5 mm" not in told[0]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/last.ckpt")}
    assert {path.parent.name for path in stamps} == {
        f"without-{name}-{stage}" for name in ("s0009", "spl") for stage in ("again", "mean")
    }
    for fold, name in enumerate(("s0009", "spl")):
        first = training_weights(read_package(earlier), fold, how)
        last, mean = (
            averaged_network(tmp_path / "out" / f"without-{name}-{stage}" / "last.ckpt", how).state_dict()
            for stage in ("again", "mean")
        )
        assert any((first[key] != last[key]).any() for key in first), "a step was made"
        assert all(torch.equal(mean[key], (first[key] + last[key]) / 2) for key in first)
    described = read_package(package)
    assert described.spacing_mm == torso.WORKING_MM
    assert described.description["training"]["begun_with"]["sha256"] == read_package(earlier).sha256
    assert f"Begun with the networks of version {VERSION};" in (package / "README.md").read_text()
    # one step of a warm-up: class weights were put back, and taken off again
    for fold in range(2):
        a, b = (load_file(folder / f"weights-{fold}.safetensors") for folder in (earlier, package))
        assert a.keys() == b.keys()
        assert all((a[name] - b[name]).abs().max() < 2e-3 for name in a)
    torso.train_torso(tmp_path, tmp_path / "out", recipe=recipe)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what is finished is not done again"
    with pytest.raises(InputError, match=r"began with version .* \([0-9a-f]{12}…\), this one would with nothing"):
        torso.train_torso(tmp_path, tmp_path / "out", recipe=replace(recipe, start=None))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": "foo"}, "'foo' .*expected an earlier ct-torso"),
        ({"licence": "CC-BY-NC-4.0"}, "CC-BY-NC-4.0; expected an earlier ct-torso, CC-BY-4.0"),
        ({"version": "0.6.0"}, "expected version 0.7.0 or later"),
        ({"training": None}, "not trained on unknown; expected one without each of s0009, spl"),
        ({"held_out_by_fold": [["spl"], ["s0009"]]}, "in this order"),
        ({"labelled": {"s0002": "", "mine": ""}}, "trained on mine as well"),
        (
            {"intensity": {"scheme": "clip_zscore", "clip": [-1000, 1000], "mean": 0, "std": 500}},
            "by its intensity, .*500",
        ),
        ({"patch_size": [96, 96, 96]}, ""),
    ],
)
def test_other_models_than_earlier_versions_are_refused(tmp_path: Path, changed: dict[str, object], says: str) -> None:
    import json
    import shutil

    from slice3d.errors import InputError
    from slice3d.models import registry
    from slice3d.training import torso
    from slice3d.training.export import training_weights

    shutil.copytree(registry.package("ct-torso").folder, tmp_path / "package")
    described = json.loads((tmp_path / "package" / "model.json").read_text())
    inner = {"held_out_by_fold", "labelled"} & set(changed)
    (described["training"] if inner else described).update(changed)
    (tmp_path / "package" / "model.json").write_text(json.dumps(described))
    how = torso.again_settings(torso.Recipe())

    def weights() -> None:
        training_weights(torso._earlier(tmp_path / "package", ("s0009", "spl")), 1, how)

    if not says:  # how it is run has nothing to do with how it is trained
        weights()
        return
    with pytest.raises(InputError, match=says):
        weights()
