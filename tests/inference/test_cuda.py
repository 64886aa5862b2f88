"""The engine on a CUDA device: the CPU's labels, in the memory it planned for, warm on the second case."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slice3d.inference import Engine, InferenceSettings
from slice3d.models import ModelPackage
from tests.inference.builders import oblique_volume, random_network, write_package

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CPU = InferenceSettings(device="cpu", precision="float32", postprocess=False)
CUDA = replace(CPU, device="cuda")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return write_package(tmp_path_factory.mktemp("models") / "tiny", random_network(), sampling={"mirror_axes": [0]})


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-3), ("float16", 5e-3), ("bfloat16", 2e-2)])
def test_labels_are_the_cpu_s(package: ModelPackage, precision: str, most: float) -> None:
    volume = oblique_volume((40, 44, 36))
    expected = Engine(package, CPU).predict(volume).labels
    settings = replace(CUDA, precision=precision)  # type: ignore[arg-type]
    result = Engine(package, settings).predict(volume)
    assert result.metadata["device"] == "cuda"
    assert len(np.unique(expected)) >= 3
    assert (result.labels != expected).mean() < most


def test_wanted_region_and_probability_on_the_device(package: ModelPackage) -> None:
    volume = oblique_volume((48, 44, 36))
    settings = replace(CPU, probabilities=("spleen",))
    here = Engine(package, settings).predict(volume, structures=["spleen"])
    there = Engine(package, replace(settings, device="cuda")).predict(volume, structures=["spleen"])
    assert (here.labels != there.labels).mean() < 1e-3
    close = np.abs(here.probabilities["spleen"].astype(float) - there.probabilities["spleen"]) < 0.01
    assert close.mean() > 0.999


def test_same_input_same_bytes(package: ModelPackage) -> None:
    engine = Engine(package, InferenceSettings(device="cuda"))
    runs = [engine.predict(oblique_volume()).labels.tobytes() for _ in range(2)]
    assert runs[0] == runs[1]


def test_batch_does_not_matter(package: ModelPackage) -> None:
    volume = oblique_volume((48, 44, 36))
    one, four = (Engine(package, replace(CUDA, batch=n)).predict(volume) for n in (1, 4))
    assert four.metadata["batch"] == 4
    assert (one.labels != four.labels).mean() < 1e-3


def test_peak_device_memory_stays_in_the_plan(tmp_path: Path) -> None:
    """A network large enough that the plan's fixed allowance does not hide a mistake."""
    network = random_network(filters=[32, 64, 128])
    package = write_package(tmp_path / "wide", network, patch_size=[96, 96, 96], spacing_mm=[1.0, 1.0, 1.0],
                            network={"class": "monai.networks.nets.DynUNet", "arguments": _wide()})  # fmt: skip
    engine = Engine(package, replace(CUDA, memory_gib=8.0, precision="float16"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = engine.predict(oblique_volume((90, 110, 60)))
    used = (torch.cuda.max_memory_allocated() - before) / 1024**3
    assert 0.1 < used <= result.metadata["memory_planned_gib"] <= 8.0


def test_second_case_starts_at_once(package: ModelPackage) -> None:
    engine = Engine(package, InferenceSettings(device="cuda"))
    first = {name: fold.data_ptr() for name, fold in engine.networks.folds[0].network.named_parameters()}
    engine.predict(oblique_volume())
    torch.cuda.synchronize()
    start = time.perf_counter()
    engine.predict(oblique_volume(seed=1))
    torch.cuda.synchronize()
    assert time.perf_counter() - start < 5
    assert first == {name: fold.data_ptr() for name, fold in engine.networks.folds[0].network.named_parameters()}


def _wide() -> dict[str, object]:
    from tests.inference.builders import ARGUMENTS

    return {**ARGUMENTS, "filters": [32, 64, 128]}
