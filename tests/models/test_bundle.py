"""MONAI bundles do here what MONAI does with them: windows, weights, thresholds, components."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slice3d.errors import ModelError
from slice3d.inference import InferenceSettings, predict
from slice3d.inference.case import Case, Run, padded, permuted, slab_axis, three
from slice3d.inference.networks import Networks
from slice3d.inference.postprocess import keep_largest
from slice3d.inference.prepare import make_frame
from slice3d.inference.sweep import Sweep, planes
from slice3d.models import ModelPackage
from slice3d.models.bundle import _labels
from slice3d.models.bundle_steps import after, intensity, spacing
from slice3d.models.install import AddSettings, add
from slice3d.models.loading import load_network
from slice3d.models.own_steps import KeepLargest
from slice3d.models.package import Sampling
from slice3d.progress import silent
from slice3d.volume import Volume, freeze
from tests.inference.builders import oblique_volume, random_network, write_package
from tests.models.builders import bundle_folder

FLOAT32 = InferenceSettings(precision="float32", device="cpu", threads=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("models") / "tiny", random_network())


@given(
    shape=st.tuples(*[st.integers(10, 45)] * 3),
    patch=st.tuples(*[st.sampled_from([16, 20])] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    blend=st.sampled_from(["gaussian", "constant"]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_equal_monai_s_sliding_window(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float, blend: str, tiny: ModelPackage
) -> None:
    from monai.inferers import sliding_window_inference

    sampling = Sampling(resampling="none", pad="zero", tiling="monai", blend=blend, overlap=overlap)
    package = replace(tiny, patch_size=patch, sampling=sampling)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    network = load_network(package)
    with torch.inference_mode():
        expected = sliding_window_inference(torch.from_numpy(image)[None], patch, 2, network, overlap, mode=blend)
    volume = Volume(freeze(np.zeros(shape, np.int16)), replace_grid(shape))
    frame = make_frame([volume], package)
    slab = slab_axis(frame.shape, patch)
    order = three([slab, *(n for n in range(3) if n != slab)])
    large, offset = padded(image, package)
    case = Case(frame, order, large, permuted(offset, order), FLOAT32, Run({}), silent)
    networks = Networks(package, (0,), torch.device("cpu"), torch.float32)
    sweep = Sweep(overlap, [()], networks.folds)
    with torch.inference_mode():
        found = [
            networks.scores(values).clone()
            for _, values in planes(networks, case, sweep, np.zeros(3, int), np.array(case.shape))
        ]
    scores = torch.stack(found).permute(3, *np.argsort(order).tolist())
    torch.testing.assert_close(scores, expected[0], atol=2e-4, rtol=2e-4)


def replace_grid(shape: tuple[int, int, int]) -> Any:
    from slice3d.grid import Grid

    return Grid.from_spacing(shape, (1.0, 1.0, 1.0))


@given(
    seed=st.integers(0, 1000),
    applied=st.sampled_from([None, [1], [1, 2], [3]]),
    independent=st.booleans(),
    connectivity=st.sampled_from([1, 2, 3]),
    components=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_largest_component_is_monai_s(
    seed: int, applied: list[int] | None, independent: bool, connectivity: int, components: int
) -> None:
    from monai.transforms import KeepLargestConnectedComponent

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(18, 15, 12)), 1.3)
    labels = np.digitize(noise, np.quantile(noise, (0.5, 0.7, 0.85))).astype(np.uint8)
    monai = KeepLargestConnectedComponent(applied, False, independent, connectivity, components)
    expected = np.asarray(monai(torch.from_numpy(labels[None].copy())))[0]
    ours = labels.copy()
    keep_largest(
        ours, [KeepLargest(None if applied is None else tuple(applied), independent, connectivity, components)]
    )
    # of components of equal size either may stay
    assert {v: int((ours == v).sum()) for v in range(4)} == {v: int((expected == v).sum()) for v in range(4)}
    if connectivity == 3 and components == 1:
        assert (ours != expected).mean() < 0.02


def test_step_of_the_bundle_keeps_one_component_whatever_is_asked_for(tmp_path: Path) -> None:
    volume = oblique_volume((30, 28, 26))
    parts = {}
    for name, extra in (
        ("without", []),
        ("with", [{"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}]),
    ):
        folder = bundle_folder(tmp_path / name)
        path = folder / "configs" / "inference.json"
        config = json.loads(path.read_text())
        config["postprocessing"]["transforms"][2:2] = extra
        path.write_text(json.dumps(config))
        package = add(folder, settings=AddSettings(name=name, folder=tmp_path / "cache"))
        labels = predict(volume, package, structures=["spleen"], settings=FLOAT32).labels
        parts[name] = ndimage.label(labels == 1, np.ones((3, 3, 3)))[1]
        switched_off = predict(volume, package, settings=replace(FLOAT32, postprocess=False)).labels
        assert ndimage.label(switched_off == 1, np.ones((3, 3, 3)))[1] > 1
    assert parts["without"] > 1
    assert parts["with"] == 1


def test_threshold_of_probabilities_or_of_scores() -> None:
    sigmoid = {"_target_": "Activationsd", "sigmoid": True}
    found = after([sigmoid, {"_target_": "AsDiscreted", "threshold": 0.8}])
    assert found.sigmoid
    assert found.threshold == pytest.approx(np.log(4))
    assert after([sigmoid]).threshold == 0.0
    assert after([sigmoid, {"_target_": "AsDiscreted", "threshold_values": True, "logit_thresh": 0.5}]).threshold == 0
    bare = after([{"_target_": "AsDiscreted", "threshold": 1.5}])
    assert (bare.sigmoid, bare.threshold) == (True, 1.5)
    plain = after([{"_target_": "Activationsd", "softmax": True}, {"_target_": "AsDiscreted", "argmax": True}])
    assert not plain.sigmoid


def test_higher_threshold_leaves_less(tmp_path: Path) -> None:
    sizes = []
    for threshold in (0.2, 0.5, 0.8):
        folder = bundle_folder(tmp_path / f"t{threshold}")
        path = folder / "configs" / "inference.json"
        config = json.loads(path.read_text())
        config["postprocessing"]["transforms"] = [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": threshold},
        ]
        path.write_text(json.dumps(config))
        package = add(folder, settings=AddSettings(name="t", folder=tmp_path / "cache", replace=True))
        assert package.regions == (0, 1), "channel 0 is named background"
        sizes.append(int((predict(oblique_volume(), package, settings=FLOAT32).labels == 1).sum()))
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"_target_": "LabelToContourd"}], "'LabelToContour', which is not supported"),
        ([{"_target_": "Activationsd", "softmax": True}, {"_target_": "AsDiscreted", "threshold": 0.5}], "expected argmax"),
        ([{"_target_": "Activationsd", "sigmoid": True}, {"_target_": "AsDiscreted", "threshold": 2}], "between 0 and 1"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_followed_are_refused(steps: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        after(steps)


def test_channels_and_the_values_they_write() -> None:
    assert _labels({0: "background", 1: "spleen"}, 2, False) == ({1: "spleen"}, [])
    assert _labels({0: "nothing", 1: "spleen"}, 3, False) == ({1: "spleen", 2: "class_2"}, [])
    assert _labels({0: "background", 1: "spleen"}, 1, True) == ({1: "spleen"}, [1])
    assert _labels({0: "background", 1: "spleen"}, 2, True) == ({1: "spleen"}, [0, 1])
    assert _labels({0: "tumor", 1: "edema"}, 2, True) == ({1: "tumor", 2: "edema"}, [1, 2])
    with pytest.raises(ModelError, match="argmax"):
        _labels({0: "spleen"}, 1, False)


def test_bundle_without_resampling_runs_at_the_study_s_own_spacing(tmp_path: Path) -> None:
    folder = bundle_folder(tmp_path)
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    steps = config["preprocessing"]["transforms"]
    config["preprocessing"]["transforms"] = [s for s in steps if s["_target_"] != "Spacingd"]
    path.write_text(json.dumps(config))
    package = add(folder, settings=AddSettings(name="free", folder=tmp_path / "cache"))
    assert package.sampling.resampling == "none"
    volume = oblique_volume()
    assert predict(volume, package, settings=FLOAT32).labels.shape == volume.data.shape
    assert spacing([]) is None


def test_channels_normalised_together_are_refused() -> None:
    step = {"_target_": "NormalizeIntensityd", "nonzero": True}
    with pytest.raises(ModelError, match="channel_wise"):
        intensity([step], 4)
    assert intensity([{**step, "channel_wise": True}], 4) == {"scheme": "zscore_nonzero"}
