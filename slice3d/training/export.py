"""From a checkpoint to a model package: `model.json`, half-precision weights, the card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d.errors import InputError
from slice3d.training.settings import TrainSettings

if TYPE_CHECKING:
    import torch

    from slice3d.models.package import ModelPackage

FORMAT = "slice3d-model/1"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class CardFacts:
    """What a package says about itself beyond its network.

    groups: structure name → label values whose union it is. training, scores, reliability, expected_intensity,
    keep_largest, tissues, region: as in `model.json`. card: the text of README.md.
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
    tissues: Sequence[Mapping[str, Any]] = ()
    region: Mapping[str, Any] | None = None
    card: str = ""


def export(checkpoint: Path | Sequence[Path], settings: TrainSettings, facts: CardFacts, folder: Path) -> Path:
    """Write the averaged weights of `checkpoint` and everything needed to run them. Returns the package's folder.

    Several checkpoints become the folds of one package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(checkpoint, Path):
        weights: Any = _weights(checkpoint, settings, folder / WEIGHTS)
    else:
        weights = [_weights(path, settings, folder / f"weights-{n}.safetensors") for n, path in enumerate(checkpoint)]
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
        "intensity": _intensity(settings),
        "network": {"class": settings.network, "arguments": dict(settings.arguments)},
        "activation": "softmax",
        "sampling": {"resampling": "average", "pad": "lowest", "overlap": 0.5, **facts.sampling},
        "keep_largest": [dict(step) for step in facts.keep_largest],
        "tissues": [dict(tissue) for tissue in facts.tissues],
        **({"region": dict(facts.region)} if facts.region else {}),
        "training": dict(facts.training),
        "scores": dict(facts.scores),
        "reliability": dict(facts.reliability),
        "expected_intensity": dict(facts.expected_intensity),
        "weights": weights,
    }
    (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    if facts.card:
        (folder / "README.md").write_text(facts.card, encoding="utf-8")
    return folder


def _intensity(settings: TrainSettings) -> dict[str, Any]:
    how = settings.intensity
    values = {"clip": list(how.clip), "mean": how.mean, "std": how.std} if how.scheme == "clip_zscore" else {}
    return {"scheme": how.scheme, **values}


def _weights(checkpoint: Path, settings: TrainSettings, target: Path) -> dict[str, str]:
    """The averaged weights in half precision, each once whatever names it goes by, and their entry in `model.json`."""
    import torch

    from slice3d.models.loading import build_network, write_weights
    from slice3d.training.loop import without_heads

    network = build_network(settings.network, settings.arguments)
    network.load_state_dict(without_heads(torch.load(checkpoint, weights_only=True, map_location="cpu")["ema"]))
    _shift_by_class_weights(network, settings, -1)
    write_weights(network.state_dict(), target, half=True)
    target.chmod(0o644)
    return {"file": target.name, "sha256": hashlib.sha256(target.read_bytes()).hexdigest(), "dtype": "float16"}


def training_weights(package: ModelPackage, fold: int, settings: TrainSettings) -> dict[str, torch.Tensor]:
    """The weights of one network of a package, as training with `settings` has them: what `export` took off is back.

    Raises `InputError` where the package's network is not the one that is trained, `ModelError` where it is damaged.
    """
    from slice3d.models.loading import load_network

    ours = (settings.network, settings.arguments, settings.labels, _intensity(settings))
    theirs = (package.network_class, package.network_arguments, package.labels, package.description.get("intensity"))
    for what, a, b in zip(("network", "arguments", "labels", "intensity"), theirs, ours, strict=True):
        if _plain(a) != _plain(b):
            raise InputError(
                f"training cannot begin with model {package.name!r} {package.version} by its {what}, "
                f"{_plain(a)}; expected {_plain(b)}"
            )
    network = load_network(package, fold)
    _shift_by_class_weights(network, settings, 1)
    return {name: value.detach() for name, value in network.state_dict().items()}


def _plain(value: Any) -> Any:
    """As it reads in a file: keys are texts, sequences lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _shift_by_class_weights(network: torch.nn.Module, settings: TrainSettings, sign: int) -> None:
    """Take the class weights of the cross-entropy off the scores (-1) or put them back (1), in place.

    A class that counted eightfold while training comes out as eight times too likely (logit adjustment, Menon et al.
    2021, arXiv:2007.07314).
    """
    import math

    import torch

    from slice3d.models.loading import last_convolution

    if not settings.class_weights:
        return
    found = last_convolution(getattr(network, "inner", network))  # of a SubpixelUNet, the network within
    if found is None or found[2].bias is None:
        raise InputError(
            f"{settings.network} has no known last layer from whose bias class weights can be taken; expected a DynUNet "
            "or a SubpixelUNet, or no class_weights"
        )
    with torch.no_grad():
        blocks = found[2].bias.view(-1, settings.classes)  # a view: several voxels' classes side by side
        for value, weight in settings.class_weights.items():
            blocks[:, value] += sign * math.log(weight)
