"""Which package answers which request, and what a damaged description is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slice3d.errors import InputError, ModelError
from slice3d.models import ModelPackage, find, package, packages, read_package
from slice3d.models.package import forbids_commercial_use, parse_package
from tests.inference.builders import random_network, write_package


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_package(tmp_path / "zz-tiny", random_network(), labels={"1": "pancreas", "2": "lung_left", "3": "lung_right"})
    write_package(tmp_path / "zz-mr", random_network(), modality=["MR"], labels={"1": "prostate", "2": "tumor"})
    return tmp_path


def test_packages_are_found_by_name(cache: Path) -> None:
    assert {"zz-tiny", "zz-mr"} <= set(packages(folder=cache))


def test_organ_aliases_and_groups_find_their_model(cache: Path) -> None:
    assert find("Pancreas", folder=cache).name == "zz-tiny"
    assert find(["lungs", "pancreas"], folder=cache).name == "zz-tiny"
    assert find("left lung", model="zz-tiny", folder=cache).name == "zz-tiny"


def test_unknown_organ_lists_what_there_is_with_the_nearest_spelling(cache: Path) -> None:
    with pytest.raises(InputError, match=r"pancreass.*available: .*pancreas.*did you mean 'pancreas'"):
        find("pancreass", folder=cache)


def test_wrong_modality_is_an_input_error(cache: Path) -> None:
    with pytest.raises(InputError, match="image is MR, but pancreas can only be found in CT"):
        find("pancreas", modality="MR", folder=cache)
    assert find("pancreas", modality="CT", folder=cache).name == "zz-tiny"
    assert find("pancreas", modality="", folder=cache).name == "zz-tiny"


def test_structures_of_two_models_cannot_be_asked_together(cache: Path) -> None:
    with pytest.raises(InputError, match="one model at a time"):
        find(["pancreas", "prostate"], folder=cache)


def test_the_name_itself_comes_before_its_parts_and_a_model_for_crops_only_gets_crops(cache: Path) -> None:
    crops = {"largest_field_of_view_mm": 90.0}
    write_package(cache / "zz-a-sides", random_network(), labels={"1": "lung_left", "2": "lung_right"})
    write_package(cache / "zz-b-both", random_network(), labels={"1": "lungs"}, reliability=crops)
    ours = {"folder": cache, "modality": "MR"}
    for name in ("zz-a-sides", "zz-b-both"):
        raw = json.loads((cache / name / "model.json").read_text()) | {"modality": ["MR"]}
        (cache / name / "model.json").write_text(json.dumps(raw))
    assert find("lungs", **ours, size_mm=(80.0, 60.0, 90.0)).name == "zz-b-both"
    assert find("lungs", **ours, size_mm=(80.0, 60.0, 200.0)).name == "zz-a-sides"
    assert find("lungs", **ours).name == "zz-b-both"
    assert find("lungs", **ours, model="zz-b-both", size_mm=(80.0, 60.0, 200.0)).name == "zz-b-both"


def test_unknown_model_suggests_and_known_one_says_how_to_add(cache: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'zz-tiny'"):
        package("zz-tny", folder=cache)
    with pytest.raises(ModelError, match="slice3d models add totalsegmentator-fast"):
        find("liver", model="totalsegmentator-fast", folder=cache)


def test_damaged_package_is_left_out_but_explained_by_name(cache: Path) -> None:
    (cache / "broken").mkdir()
    (cache / "broken" / "model.json").write_text("{")
    assert "broken" not in packages(folder=cache)
    with pytest.raises(ModelError, match="not valid JSON"):
        package("broken", folder=cache)


def test_changed_weights_fail_verification(cache: Path) -> None:
    found = package("zz-tiny", folder=cache)
    found.verify()
    path = found.folder / found.weights[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="SHA-256"):
        found.verify()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format", "other/2", "format"),
        ("name", "../evil", "name"),
        ("labels", {"1": "a", "2": "a"}, "labels"),
        ("labels", {}, "labels"),
        ("spacing_mm", [1, 2], "spacing_mm"),
        ("spacing_mm", [1, 2, -3], "spacing_mm"),
        ("patch_size", "16", "patch_size"),
        ("orientation", "RAR", "orientation"),
        ("intensity", {"scheme": "magic"}, "intensity"),
        ("groups", {"x": [99]}, "groups"),
        ("activation", "tanh", "activation"),
        ("weights", {"file": "../../etc/passwd", "sha256": "0"}, "weights file"),
        ("weights", {"file": "weights.pt", "sha256": "0"}, "safetensors"),
        ("weights", None, "weights"),
        ("network", {"class": "os.system"}, "network"),
        ("sampling", {"resampling": "guess"}, "sampling"),
        ("licence", None, "licence"),
        ("reliability", "good", "reliability"),
        ("reliability", {"untested": ["liver"]}, "untested"),
        ("reliability", {"untested": {"liver": 1}}, "untested"),
        ("reliability", {"untested": {"unicorn": "has none"}}, "untested"),
    ],
)
def test_each_wrong_field_is_named(cache: Path, field: str, value: object, says: str) -> None:
    description = json.loads((cache / "zz-tiny" / "model.json").read_text())
    description[field] = value
    with pytest.raises(ModelError, match=says) as caught:
        parse_package(description, cache / "zz-tiny")
    assert "\n" not in str(caught.value)


def test_only_listed_network_classes_are_built(cache: Path) -> None:
    from slice3d.models.loading import build_network

    with pytest.raises(ModelError, match=r"'os\.system' is not supported"):
        build_network("os.system", {"command": "true"})


def test_wrong_architecture_is_one_line(cache: Path) -> None:
    from slice3d.models.loading import load_network

    description = json.loads((cache / "zz-tiny" / "model.json").read_text())
    description["network"]["arguments"]["filters"] = [4, 8, 12]
    with pytest.raises(ModelError, match="do not fit its network") as caught:
        load_network(parse_package(description, cache / "zz-tiny"))
    assert "\n" not in str(caught.value)


def test_registry_does_not_import_torch() -> None:
    code = "import sys, slice3d.models, slice3d.models.known; slice3d.models.packages(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("Apache-2.0", False),
        ("CC-BY-NC-4.0", True),
        ("CC BY-NC 4.0", True),
        ("Non-commercial use only", True),
        ("MIT", False),
    ],
)
def test_licences_that_forbid_commercial_use(licence: str, forbids: bool) -> None:
    assert forbids_commercial_use(licence) is forbids


def test_verify_goes_on_after_a_damaged_package_and_names_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from slice3d.cli.models import app

    monkeypatch.setattr("slice3d.models.registry.cache_folder", lambda: cache)
    assert "zz-tiny" in CliRunner().invoke(app, ["verify"], catch_exceptions=False).output
    weights = next((cache / "zz-mr").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    done = CliRunner().invoke(app, ["verify"])
    assert isinstance(done.exception, ModelError)
    assert "zz-mr" in str(done.exception)
    assert "zz-tiny: weights are as model.json says" in done.output


def test_every_shipped_package_is_whole() -> None:
    shipped = [p for p in packages(folder=Path("nowhere")).values() if p.builtin]
    assert shipped
    for one in shipped:
        assert isinstance(one, ModelPackage)
        one.verify()
        assert read_package(one.folder).structures == one.structures
        assert (one.folder / "README.md").stat().st_size > 0
