"""A changed setting re-does only what it must: the network runs again only when its result could differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import slice3d
from slice3d import pipeline
from slice3d.cohort import Case, CohortSettings, Job, pipeline_job
from slice3d.cohort.store import Store
from slice3d.cohort.work import Process, Task, do_case
from slice3d.inference import InferenceSettings
from slice3d.pipeline import RunSettings
from slice3d.surface import SurfaceSettings
from tests.cohort.real import MODEL, install_model, write_study
from tests.inference.builders import write_threshold_package

SETTINGS = RunSettings(organs=("liver",), model=MODEL, report=False)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The network's runs, one entry each, with a model and a study installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    install_model(tmp_path / "cache")
    write_study(tmp_path / "study", 0)
    runs: list[str] = []
    segment = pipeline.segment

    def counted(*arguments: Any, **options: Any) -> slice3d.Segmentation:
        runs.append("network")
        return segment(*arguments, **options)

    monkeypatch.setattr(pipeline, "segment", counted)
    monkeypatch.setattr("slice3d.viewer.preview", lambda *_, **__: None)  # slow, and of no matter here
    return runs


def _do(tmp_path: Path, settings: RunSettings, number: int = 0) -> tuple[dict[str, Any], Path]:
    store = Store(tmp_path / "out")
    store.prepare()
    execution = CohortSettings(min_free_gib=0.0, memory_gib=8.0)
    task = Task(Case(1, str(tmp_path / "study")), str(store.out), pipeline_job(settings), execution, "run", b"s")
    record = do_case(task, Process())
    assert record.status == "done", record.reason
    folder = store.folder(record.case)
    return json.loads((folder / "manifest.json").read_text()), folder


def test_surfaces_change_without_the_network(tmp_path: Path, ran: list[str]) -> None:
    first, folder = _do(tmp_path, SETTINGS)
    labels, mesh = (folder / "segmentation.nii.gz").read_bytes(), (folder / "liver.stl").read_bytes()
    coarse = replace(SETTINGS, surface=SurfaceSettings(target_triangles=300))
    second, _ = _do(tmp_path, coarse)
    assert ran == ["network"]
    assert (folder / "segmentation.nii.gz").read_bytes() == labels
    assert (folder / "liver.stl").read_bytes() != mesh
    assert (first["segmentation"]["taken_again"], second["segmentation"]["taken_again"]) == (False, True)
    for name in ("model", "input"):
        assert second[name] == first[name]
    assert {f["code"] for f in second["segmentation"]["findings"]} == {
        f["code"] for f in first["segmentation"]["findings"]
    }
    # what is taken again can be taken again, and gives what a run from nothing gives
    third, _ = _do(tmp_path, SETTINGS)
    assert ran == ["network"]
    assert third["segmentation"]["taken_again"]
    assert (folder / "liver.stl").read_bytes() == mesh


def test_how_it_is_computed_does_not_matter_but_what_is(tmp_path: Path, ran: list[str]) -> None:
    _do(tmp_path, SETTINGS)
    for inference, runs in ((InferenceSettings(memory_gib=3.0, threads=1), 1), (InferenceSettings(overlap=0.25), 2)):
        _do(tmp_path, replace(SETTINGS, inference=inference, dicom_seg=True))
        assert len(ran) == runs


def test_another_model_another_image_or_a_damaged_file_runs_the_network(tmp_path: Path, ran: list[str]) -> None:
    _, folder = _do(tmp_path, SETTINGS)
    write_threshold_package(tmp_path / "cache" / "slice3d" / "models" / MODEL, 120.0)
    _do(tmp_path, SETTINGS)
    assert len(ran) == 2
    labels = folder / "segmentation.nii.gz"
    labels.write_bytes(labels.read_bytes()[:-20] + b"\0" * 20)
    _do(tmp_path, replace(SETTINGS, surface=SurfaceSettings(target_triangles=300)))
    assert len(ran) == 3
    (folder / "manifest.json").write_text("{")
    _do(tmp_path, SETTINGS)
    assert len(ran) == 4


def test_plain_runs_take_nothing_again(tmp_path: Path, ran: list[str]) -> None:
    for _ in range(2):
        pipeline.run(tmp_path / "study", tmp_path / "out", settings=SETTINGS)
    assert len(ran) == 2


def test_jobs_differ_by_key(tmp_path: Path, ran: list[str]) -> None:
    from slice3d.io.dicom.deidentify import Key

    def identity(key: Key | None) -> str:
        job: Job = pipeline_job(replace(SETTINGS, dicom_seg=True, deidentify=key))
        return job.identity

    secret = b"a secret of some length"
    identities = [identity(key) for key in (None, Key(), Key(secret), Key(b"another secret, also long"))]
    assert len(set(identities)) == 4
    assert identity(Key()) == identities[1]  # a new key each time is no reason to do everything again
    assert "secret" not in "".join(identities)
