"""What is done to each case, and what its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slice3d import __version__
from slice3d.pipeline import RunSettings
from slice3d.progress import Progress


@dataclass(frozen=True)
class CaseInput:
    """What a case function gets: the study (folder or file), and what the cohort table said about it.

    previous: folder of the case's results with other settings, of which parts may be taken again. memory_gib, threads:
    the worker's share of the machine.
    """

    study: Path
    series: str | None = None
    reference: Path | None = None
    memory_gib: float | None = None
    previous: Path | None = None
    threads: int | None = None


# (case, folder to make, progress) → None; it writes `metrics.json` and `manifest.json` into the folder
CaseFunction = Callable[[CaseInput, Path, Progress], None]


@dataclass(frozen=True)
class Job:
    """A case function and its identity: two jobs of the same identity make the same results of the same study."""

    function: CaseFunction
    identity: str

    def key(self, input_sha256: str, series: str | None, reference_sha256: str) -> str:
        """SHA-256 of everything the result of a case depends on."""
        parts = ["slice3d-case/1", self.identity, input_sha256, series or "", reference_sha256]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class _Pipeline:
    settings: RunSettings

    def __call__(self, case: CaseInput, out: Path, progress: Progress) -> None:
        from slice3d import pipeline
        from slice3d.inference import InferenceSettings

        settings = replace(self.settings, series=case.series or self.settings.series)
        inference = settings.inference or InferenceSettings()
        inference = replace(  # what was asked for stays
            inference, memory_gib=inference.memory_gib or case.memory_gib, threads=inference.threads or case.threads
        )
        settings = replace(settings, inference=inference)
        pipeline.run(
            case.study, out, settings=settings, reference=case.reference, previous=case.previous, progress=progress
        )


def pipeline_job(settings: RunSettings) -> Job:
    """The pipeline with `settings`. Raises `InputError` for an unknown organ and `ModelError` for a missing model.

    The identity covers the settings, the version of slice3d and the hash of every installed model that could be chosen.
    """
    from slice3d import models

    models.find(settings.organs, model=settings.model)
    candidates = [models.package(settings.model)] if settings.model else list(models.packages().values())
    able = {f"{p.name} {p.version}": models.identity(p) for p in candidates if _offers(p, settings.organs)}
    wanted = _plain(asdict(settings))
    for name in ("memory_gib", "threads", "batch"):  # how it is computed, not what
        (wanted.get("inference") or {}).pop(name, None)
    identity = {"slice3d": __version__, "settings": wanted, "models": able}
    return Job(_Pipeline(settings), json.dumps(identity, sort_keys=True))


def _offers(package: Any, organs: tuple[str, ...]) -> bool:
    from slice3d import anatomy
    from slice3d.errors import InputError

    try:
        for organ in organs:
            anatomy.resolve(organ, package.structures)
    except InputError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
