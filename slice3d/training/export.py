"""From a checkpoint to a model package: `model.json`, half-precision weights, the card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slice3d.training.settings import TrainSettings

FORMAT = "slice3d-model/1"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class CardFacts:
    """What a package says about itself beyond its network.

    groups: structure name → label values whose union it is. training, scores, reliability, expected_intensity,
    keep_largest: as in `model.json`. card: the text of README.md.
    """

    name: str
    version: str
    licence: str
    modality: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, Any] = field(default_factory=dict)
    expected_intensity: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    keep_largest: Sequence[Mapping[str, Any]] = ()
    card: str = ""


def export(checkpoint: Path, settings: TrainSettings, facts: CardFacts, folder: Path) -> Path:
    """Write the averaged weights of `checkpoint` and everything needed to run them. Returns the package's folder."""
    import torch
    from safetensors.torch import save_file

    from slice3d.training.loop import without_heads

    folder.mkdir(parents=True, exist_ok=True)
    state = without_heads(torch.load(checkpoint, weights_only=True, map_location="cpu")["ema"])
    half = {k: (v.half() if v.dtype.is_floating_point else v).contiguous() for k, v in state.items()}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / WEIGHTS).chmod(0o644)
    how = settings.intensity
    intensity: dict[str, Any] = {"scheme": how.scheme}
    if how.scheme == "clip_zscore":
        intensity |= {"clip": list(how.clip), "mean": how.mean, "std": how.std}
    description: dict[str, Any] = {
        "format": FORMAT,
        "name": facts.name,
        "version": facts.version,
        "licence": facts.licence,
        "modality": list(facts.modality),
        "labels": {str(k): v for k, v in settings.labels.items()},
        "groups": {name: list(values) for name, values in facts.groups.items()},
        "spacing_mm": list(settings.spacing_mm),
        "orientation": "RAS",
        "patch_size": list(settings.patch_size),
        "intensity": intensity,
        "network": {"class": settings.network, "arguments": dict(settings.arguments)},
        "activation": "softmax",
        "sampling": {"resampling": "average", "pad": "lowest", "overlap": 0.5, **facts.sampling},
        "keep_largest": [dict(step) for step in facts.keep_largest],
        "training": dict(facts.training),
        "scores": dict(facts.scores),
        "reliability": dict(facts.reliability),
        "expected_intensity": dict(facts.expected_intensity),
        "weights": {"file": WEIGHTS, "sha256": digest, "dtype": "float16"},
    }
    (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    if facts.card:
        (folder / "README.md").write_text(facts.card, encoding="utf-8")
    return folder
