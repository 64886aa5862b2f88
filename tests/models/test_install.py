"""Adding foreign models: what is understood, what is refused, and that nothing is half-installed."""

from __future__ import annotations

import copy
import http.server
import json
import os
import pickle
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from slice3d.errors import InputError, ModelError
from slice3d.inference import InferenceSettings, predict
from slice3d.models import packages
from slice3d.models.install import AddSettings, add, remove
from slice3d.models.loading import load_network
from slice3d.models.package import file_sha256
from tests.inference.builders import ARGUMENTS, oblique_volume, random_network, write_package
from tests.models.builders import DATASET, bundle_folder, nnunet_folder, plans

FLOAT32 = InferenceSettings(precision="float32", device="cpu", threads=1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def settings(cache: Path) -> AddSettings:
    return AddSettings(folder=cache)


def nothing_left(cache: Path) -> bool:
    return not cache.exists() or not [p for p in cache.iterdir() if p.name != "downloads"]


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_nnunet_zip_becomes_a_package_that_runs(tmp_path: Path, settings: AddSettings, kind: str) -> None:
    archive = zipped(nnunet_folder(tmp_path / "model", kind=kind, folds=2), tmp_path / "model.zip")
    package = add(archive, settings=settings)
    assert package.name == "Dataset900_Tiny"
    assert dict(package.labels) == {1: "liver", 2: "kidney_left"}
    assert package.non_commercial
    assert len(package.weights) == 2
    assert package.sampling.mirror_axes == (0, 1, 2)
    assert all(w.file.endswith(".safetensors") for w in package.weights)
    result = predict(oblique_volume(), package, structures=["left kidney"], settings=replace(FLOAT32, mirror=False))
    assert result.structures == ("kidney_left",)
    assert any(f.code == "licence-forbids-commercial-use" for f in result.findings)


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_networks_run_in_bfloat16_on_the_cpu(tmp_path: Path, settings: AddSettings, kind: str) -> None:
    package = add(nnunet_folder(tmp_path, kind=kind), settings=settings)
    volume = oblique_volume()
    exact, half = (
        predict(volume, package, settings=replace(FLOAT32, precision=p)).labels for p in ("float32", "bfloat16")
    )
    assert (exact == half).mean() > 0.9


def test_converted_weights_are_the_checkpoint_s(tmp_path: Path, settings: AddSettings) -> None:
    root = nnunet_folder(tmp_path / "model")
    package = add(root, settings=settings)
    (checkpoint,) = root.rglob("checkpoint_final.pth")
    stored = torch.load(checkpoint, weights_only=False)["network_weights"]
    loaded = load_network(package).state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[k], loaded[k]) for k in stored)
    own = package.folder / package.weights[0].file
    assert own.stat().st_size < checkpoint.stat().st_size


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_networks_equal_the_reference_implementation(kind: str) -> None:
    reference = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    from slice3d.models.loading import build_network
    from slice3d.models.nnunet import _configuration, _network

    described = plans(kind)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    described.update(
        n_stages=3, features_per_stage=[4, 6, 8], kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], n_conv_per_stage_decoder=[2, 1],
    )  # fmt: skip
    described["n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"] = [1, 2, 2]
    full = plans(kind)
    full["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = described
    network = _network(_configuration(full, "3d_fullres"), 2, 5)
    classes = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    theirs = getattr(reference, kind)(**{**network["arguments"], **classes}).eval()
    ours = build_network(network["class"], network["arguments"]).eval()
    state = {k: v for k, v in theirs.state_dict().items() if "all_modules" not in k and "decoder.encoder" not in k}
    ours.load_state_dict(state)
    x = torch.randn(1, 2, 8, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_region_labels_become_groups(tmp_path: Path, settings: AddSettings) -> None:
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": 3}
    dataset = {**DATASET, "labels": labels, "regions_class_order": [1, 2, 3]}
    package = add(nnunet_folder(tmp_path / "model", dataset=dataset), settings=settings)
    assert package.activation == "sigmoid"
    assert dict(package.labels) == {1: "whole_tumor_rest", 2: "tumor_core_rest", 3: "enhancing"}
    assert dict(package.groups) == {"whole_tumor": (1, 2, 3), "tumor_core": (2, 3)}
    result = predict(oblique_volume(), package, settings=FLOAT32)
    whole, core, inner = (result.mask(n) for n in ("whole_tumor", "tumor_core", "enhancing"))
    assert not (inner & ~core).any()
    assert not (core & ~whole).any()


def test_old_plans_describe_the_same_network(tmp_path: Path, settings: AddSettings) -> None:
    root = nnunet_folder(tmp_path / "model")
    (path,) = root.rglob("plans.json")
    described = json.loads(path.read_text())
    configuration = described["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration.update(
        UNet_class_name="PlainConvUNet", UNet_base_num_features=4, unet_max_num_features=8,
        n_conv_per_stage_encoder=[1, 1], n_conv_per_stage_decoder=[1], num_pool_per_axis=[1, 1, 1],
        pool_op_kernel_sizes=[[1, 1, 1], [2, 2, 2]], conv_kernel_sizes=[[3, 3, 3], [3, 3, 3]],
    )  # fmt: skip
    path.write_text(json.dumps(described))
    assert add(root, settings=settings).patch_size == (16, 16, 16)


def test_monai_bundle_becomes_a_package_that_runs(tmp_path: Path, settings: AddSettings) -> None:
    package = add(bundle_folder(tmp_path), settings=replace(settings, name="spleen"))
    assert (package.name, package.licence, package.orientation) == ("spleen", "Apache-2.0", "RAS")
    assert package.spacing_mm == (2.0, 2.0, 3.0)
    assert package.intensity[0].clip == (-57, 164)
    assert predict(oblique_volume(), package, structures=["spleen"], settings=FLOAT32).structures == ("spleen",)


def test_bundle_expression_is_evaluated_only_when_trusted(tmp_path: Path, settings: AddSettings) -> None:
    marker = tmp_path / "executed"
    definition = {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "channels": [4, 8], "strides": [2], "norm": "batch",
        "out_channels": f"$__import__('pathlib').Path({str(marker)!r}).write_text('x') + 1",
    }  # fmt: skip
    folder = bundle_folder(tmp_path, network=definition)
    with pytest.raises(ModelError, match="--trust"):
        add(folder, settings=settings)
    assert not marker.exists()
    assert nothing_left(settings.folder or tmp_path)
    assert add(folder, settings=replace(settings, trust=True)).structures == ("spleen",)
    assert marker.exists()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_executes_is_refused_and_does_not_run(tmp_path: Path, settings: AddSettings, legacy: bool) -> None:
    marker = tmp_path / "executed"
    root = nnunet_folder(tmp_path / "model")
    (checkpoint,) = root.rglob("checkpoint_final.pth")
    content = torch.load(checkpoint, weights_only=False)
    content["optimizer_state"] = Attack(marker)
    torch.save(content, checkpoint, _use_new_zipfile_serialization=not legacy)
    torch.load(checkpoint, weights_only=False)
    assert marker.exists(), "the attack itself must work"
    marker.unlink()
    with pytest.raises(ModelError, match="nothing was run") as caught:
        add(root, settings=settings)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    assert nothing_left(settings.folder or tmp_path)


def test_attack_in_a_bundle_s_weights_does_not_run(tmp_path: Path, settings: AddSettings) -> None:
    marker = tmp_path / "executed"
    folder = bundle_folder(tmp_path)
    (folder / "models" / "model.pt").write_bytes(pickle.dumps(Attack(marker)))
    with pytest.raises(ModelError):
        add(folder, settings=replace(settings, trust=True))
    assert not marker.exists()
    assert nothing_left(settings.folder or tmp_path)


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_zip_entries_outside_the_folder_are_refused(tmp_path: Path, settings: AddSettings, name: str) -> None:
    archive = tmp_path / "deep" / "bad.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("fine.txt", "x")
        packed.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(ModelError, match="outside its folder"):
        add(archive, settings=settings)
    assert not list(tmp_path.rglob("evil*"))
    assert nothing_left(settings.folder or tmp_path)


def test_zip_with_a_link_is_refused(tmp_path: Path, settings: AddSettings) -> None:
    archive = tmp_path / "bad.zip"
    entry = zipfile.ZipInfo("plans.json")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(entry, "/etc/passwd")
    with pytest.raises(ModelError, match="outside its folder"):
        add(archive, settings=settings)


def test_truncated_zip_is_refused(tmp_path: Path, settings: AddSettings) -> None:
    whole = zipped(bundle_folder(tmp_path), tmp_path / "whole.zip").read_bytes()
    for share in (0.3, 0.9, 0.999):
        archive = tmp_path / "cut.zip"
        archive.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match="complete zip"):
            add(archive, settings=settings)
    assert nothing_left(settings.folder or tmp_path)


def test_truncated_zip_is_not_taken_for_the_checkpoint_inside_it(tmp_path: Path, settings: AddSettings) -> None:
    """A stored checkpoint is a zip itself, and a reader that looks for an end finds that of the checkpoint."""
    whole = zipped(nnunet_folder(tmp_path / "model"), tmp_path / "whole.zip").read_bytes()
    for missing in (22, 400, 900):
        archive = tmp_path / "cut.zip"
        archive.write_bytes(whole[:-missing])
        with pytest.raises(ModelError, match="complete zip"):
            add(archive, settings=settings)
    assert nothing_left(settings.folder or tmp_path)


def test_damaged_zip_content_is_refused(tmp_path: Path, settings: AddSettings) -> None:
    data = bytearray(zipped(bundle_folder(tmp_path), tmp_path / "whole.zip").read_bytes())
    middle = data.find(b"models/model.pt") + 400
    data[middle : middle + 50] = bytes(50)
    (tmp_path / "bad.zip").write_bytes(bytes(data))
    with pytest.raises(ModelError):
        add(tmp_path / "bad.zip", settings=settings)
    assert nothing_left(settings.folder or tmp_path)


def edit(root: Path, name: str, **changes: Any) -> None:
    (path,) = root.rglob(name)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def break_checkpoint(root: Path) -> None:
    (path,) = root.rglob("checkpoint_final.pth")
    path.write_bytes(b"not a checkpoint at all")


def cut_checkpoint(root: Path) -> None:
    (path,) = root.rglob("checkpoint_final.pth")
    path.write_bytes(path.read_bytes()[:-200])


def lose_checkpoint(root: Path) -> None:
    (path,) = root.rglob("checkpoint_final.pth")
    path.unlink()


def other_network(root: Path) -> None:
    (path,) = root.rglob("plans.json")
    path.write_text(path.read_text().replace("PlainConvUNet", "SwinTransformerThing"))


def other_width(root: Path) -> None:
    (path,) = root.rglob("plans.json")
    path.write_text(path.read_text().replace("[4, 8]", "[6, 8]"))


def two_dimensional(root: Path) -> None:
    (path,) = root.rglob("plans.json")
    path.write_text(path.read_text().replace('"patch_size": [16, 16, 16]', '"patch_size": [16, 16]'))


def other_normalisation(root: Path) -> None:
    (path,) = root.rglob("plans.json")
    path.write_text(path.read_text().replace("CTNormalization", "MyNormalization"))


def not_json(root: Path) -> None:
    (path,) = root.rglob("dataset.json")
    path.write_text("{")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_checkpoint, "checkpoint"),
        (cut_checkpoint, "checkpoint"),
        (lose_checkpoint, "no model"),
        (other_network, "not supported"),
        (other_width, "do not fit"),
        (two_dimensional, "two-dimensional"),
        (other_normalisation, "MyNormalization"),
        (not_json, "dataset.json"),
    ],
)
def test_damaged_nnunet_is_one_line_and_leaves_nothing(
    tmp_path: Path, settings: AddSettings, damage: Any, says: str
) -> None:
    root = nnunet_folder(tmp_path / "model")
    damage(root)
    with pytest.raises(ModelError, match=says) as caught:
        add(root, settings=settings)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert nothing_left(settings.folder or tmp_path)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path to a value inside nested objects and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*here, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*here, key))


def changed(described: Any, place: tuple[Any, ...], value: Any) -> Any:
    described = copy.deepcopy(described)
    holder = described
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return described


ODD = st.sampled_from(["x", None, [], {}, -1, 0.5, True, [None], {"x": []}, "²", 10**30])


@given(drawn=st.data())
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_odd_value_in_a_description_is_one_line_or_harmless(
    drawn: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("odd")
    kind = drawn.draw(st.sampled_from(["plans.json", "dataset.json", "model.json", "metadata.json", "inference.json"]))
    if kind == "model.json":
        source = write_package(root / "native", random_network()).folder
    elif kind in ("plans.json", "dataset.json"):
        source = nnunet_folder(root / "model")
    else:
        source = bundle_folder(root / "bundle")
    (path,) = source.rglob(kind)
    described = json.loads(path.read_text())
    place = drawn.draw(st.sampled_from(list(places(described))))
    path.write_text(json.dumps(changed(described, place, drawn.draw(ODD))))
    how = AddSettings(folder=root / "cache", name="odd")
    said = ""
    try:
        add(source, settings=how)
    except (ModelError, InputError) as error:
        said = str(error)
    assert "\n" not in said
    assert str(root) not in said
    assert not said or nothing_left(root / "cache")


def test_a_description_with_fewer_labels_than_the_network_has_scores(tmp_path: Path) -> None:
    """The head is applied late where that is cheaper: there, too, the numbers must agree."""
    arguments = {**ARGUMENTS, "out_channels": 14}
    few = {str(n): f"structure_{n}" for n in range(1, 12)}  # more than the network has features, fewer than scores
    package = write_package(
        tmp_path / "few", random_network(out_channels=14), labels=few,
        network={"class": "monai.networks.nets.DynUNet", "arguments": arguments},
    )  # fmt: skip
    with pytest.raises(ModelError, match="gives 14 scores per voxel, its labels need 12"):
        predict(oblique_volume(), package, settings=FLOAT32)


def test_regions_write_labels_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="regions"):
        write_package(tmp_path / "odd", random_network(), activation="sigmoid", regions=[1, 2, 999])


def test_what_is_on_its_way_is_no_model(tmp_path: Path, settings: AddSettings, cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    with pytest.raises(ModelError, match="no added model 'downloads'"):
        remove("downloads", folder=cache)
    with pytest.raises(ModelError, match="choose another --name"):
        add(nnunet_folder(tmp_path / "model"), settings=replace(settings, name="downloads"))
    assert nothing_left(cache)


def test_missing_fold_is_said(tmp_path: Path, settings: AddSettings) -> None:
    root = nnunet_folder(tmp_path / "model", folds=3)
    with pytest.raises(ModelError, match=r"fold 4 is not in this model; it has fold 0, 1, 2"):
        add(root, settings=replace(settings, folds=(4,)))
    lost = next(root.rglob("fold_1/checkpoint_final.pth"))
    lost.unlink()
    with pytest.raises(ModelError, match="fold 1 is missing"):
        add(root, settings=settings)
    assert len(add(root, settings=replace(settings, folds=(0, 2))).weights) == 2


def test_second_stage_of_a_cascade_is_refused(tmp_path: Path, settings: AddSettings) -> None:
    root = nnunet_folder(tmp_path / "model")
    (path,) = root.rglob("plans.json")
    described = json.loads(path.read_text())
    described["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    path.write_text(json.dumps(described))
    with pytest.raises(ModelError, match="cascade"):
        add(root, settings=settings)


def test_native_package_round_trip_name_clash_and_removal(tmp_path: Path, settings: AddSettings, cache: Path) -> None:
    source = write_package(tmp_path / "mine", random_network())
    added = add(source.folder, settings=settings)
    assert added.name in packages(folder=cache)
    with pytest.raises(ModelError, match="already there"):
        add(source.folder, settings=settings)
    add(source.folder, settings=replace(settings, replace=True))
    add(source.folder, settings=replace(settings, name="second"))
    remove("mine", folder=cache)
    assert "mine" not in packages(folder=cache)
    assert "second" in packages(folder=cache)
    with pytest.raises(ModelError, match="no added model"):
        remove("mine", folder=cache)
    with pytest.raises(ModelError, match="ships with slice3d"):
        remove("ct-torso", folder=cache)
    with pytest.raises(ModelError):
        remove("../mine", folder=cache)


def test_native_package_with_changed_weights_is_refused(tmp_path: Path, settings: AddSettings) -> None:
    source = write_package(tmp_path / "mine", random_network())
    path = source.folder / source.weights[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match="SHA-256"):
        add(source.folder, settings=settings)
    assert nothing_left(settings.folder or tmp_path)


def test_shipped_name_cannot_be_taken(tmp_path: Path, settings: AddSettings) -> None:
    source = write_package(tmp_path / "mine", random_network())
    with pytest.raises(ModelError, match="choose another --name"):
        add(source.folder, settings=replace(settings, name="ct-torso"))


def test_missing_source_and_empty_folder(tmp_path: Path, settings: AddSettings) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        add(tmp_path / "absent", settings=settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        add(tmp_path / "empty", settings=settings)


class _Server(http.server.BaseHTTPRequestHandler):
    content = b""
    fail_after: int | None = None
    ranges: list[str]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        type(self).ranges.append(asked or "")
        start = int(asked.split("=")[1].rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        stop = len(self.content) if type(self).fail_after is None else type(self).fail_after
        type(self).fail_after = None
        self.wfile.write(self.content[start:stop])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[_Server]]]:
    handler = type("Handler", (_Server,), {"ranges": []})
    handler.content = zipped(
        write_package(tmp_path / "served", random_network()).folder, tmp_path / "s.zip"
    ).read_bytes()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/served.zip", handler
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_download_resumes_where_it_broke(
    tmp_path: Path, settings: AddSettings, server: tuple[str, type[_Server]]
) -> None:
    pytest.importorskip("pooch")
    url, handler = server
    handler.fail_after = len(handler.content) // 2
    with pytest.raises(ModelError, match="cannot download"):
        add(url, settings=settings)
    sha256 = file_sha256(tmp_path / "s.zip")
    assert add(url, settings=replace(settings, sha256=sha256)).name == "served"
    first, second = handler.ranges
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= len(handler.content) // 2
    assert not list((settings.folder or tmp_path).glob("downloads/*"))


def test_download_with_the_wrong_hash_is_refused(
    tmp_path: Path, settings: AddSettings, server: tuple[str, type[_Server]]
) -> None:
    pytest.importorskip("pooch")
    with pytest.raises(ModelError, match="SHA-256"):
        add(server[0], settings=replace(settings, sha256="0" * 64))
    assert nothing_left(settings.folder or tmp_path)
    assert not list((settings.folder or tmp_path).glob("downloads/*"))


def test_local_zip_with_the_wrong_hash_is_refused(tmp_path: Path, settings: AddSettings) -> None:
    archive = zipped(bundle_folder(tmp_path), tmp_path / "b.zip")
    with pytest.raises(ModelError, match="SHA-256"):
        add(archive, settings=replace(settings, sha256="0" * 64))


def test_masked_normalisation_takes_statistics_inside_the_filled_region() -> None:
    from slice3d.inference.prepare import _filled, _Normaliser
    from slice3d.models.package import Intensity

    image = np.zeros((5, 7, 9))
    image[1:4, 1:6, 1:8] = np.random.default_rng(0).normal(100, 10, (3, 5, 7))
    image[2, 3, 4] = 0  # a hole
    mask = _filled([image])
    assert mask.sum() == 3 * 5 * 7
    normalise = _Normaliser(image, Intensity("zscore_nonzero"), mask)
    out = np.stack([normalise.plane(image[n], n, 0) for n in range(5)])
    assert abs(out[mask].mean()) < 1e-5
    assert abs(out[mask].std() - 1) < 1e-5
    assert not out[~mask].any()
