"""A segmentation made earlier, taken again when nothing that it depends on has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d import __version__
from slice3d.errors import Slice3DError
from slice3d.findings import Finding
from slice3d.volume import Segmentation, Volume

if TYPE_CHECKING:
    from slice3d.inference import InferenceSettings

_LABELS = "segmentation.nii.gz"
_HOW = ("memory_gib", "threads", "batch")  # how it is computed, not what


def segmentation_key(
    input_sha256: str, model_sha256: str, structures: Sequence[str], settings: InferenceSettings | None
) -> str:
    """SHA-256 of everything a segmentation depends on."""
    from slice3d.inference import InferenceSettings

    chosen = {k: v for k, v in asdict(settings or InferenceSettings()).items() if k not in _HOW}
    parts = [__version__, input_sha256, model_sha256, list(structures), chosen]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def kept(key: str, result: Segmentation) -> dict[str, Any]:
    """What a manifest must hold so that `earlier` can find the segmentation again."""
    return {
        "key": key,
        "names": {str(value): name for value, name in result.names.items()},
        "probabilities": sorted(result.probabilities),
        "groups": {name: list(values) for name, values in result.groups.items()},
        "findings": [finding.to_dict() for finding in result.findings],
    }


def earlier(folder: Path, key: str, volume: Volume) -> Segmentation | None:
    """The segmentation of an earlier run in `folder` when its key is this one and its file is as it was written.

    None where there is no such thing, or it came with probabilities, which are not kept.
    """
    from slice3d import io

    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        about = manifest["segmentation"]
        if about["key"] != key or about["probabilities"]:
            return None
        digest = hashlib.sha256((folder / _LABELS).read_bytes()).hexdigest()
        if digest != manifest["outputs"][_LABELS]:
            return None
        read = io.load_segmentation(folder / _LABELS)
        if not read.grid.matches(volume.grid):
            return None
        return Segmentation(
            read.labels,
            volume.grid,
            {int(value): name for value, name in about["names"].items()},
            groups=about["groups"],
            findings=tuple(_finding(f) for f in about["findings"]),
            metadata=manifest["model"],
            synthesised=volume.synthesised,
            uncertainty=volume.uncertainty,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, Slice3DError):
        return None  # nothing there, or not as this version writes it: the network runs


def _finding(values: Mapping[str, Any]) -> Finding:
    return Finding(values["code"], values["message"], values["severity"], values["details"])
