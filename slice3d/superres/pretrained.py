"""The weights that come with the package: one network, trained across CT and MR subjects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slice3d.errors import ModelError
from slice3d.models.loading import read_weights
from slice3d.superres.network import SliceNetwork

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Weights:
    """What the card beside the weights says. settings: arguments of `SliceNetwork`."""

    name: str
    sha256: str
    settings: dict[str, Any]
    folder: Path


def weights(folder: Path = FOLDER) -> Weights:
    """Read the card. Raises `ModelError` when it is missing or damaged."""
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return Weights(f"{card['name']} {card['version']}", card["sha256"], card["network"], folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the super-resolution weights in {folder.name} cannot be read ({type(error).__name__}); expected model.json and "
            "weights.safetensors; reinstall slice3d or use method='selftrain'"
        ) from error


def network(chosen: Weights) -> SliceNetwork:
    """The network with its weights. Raises `ModelError` when they are damaged or not the ones that the card describes."""
    import hashlib

    path = chosen.folder / "weights.safetensors"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != chosen.sha256:
        raise ModelError(
            f"super-resolution weights: {path.name} has SHA-256 {found[:12]}; expected {chosen.sha256[:12]} as in its "
            "card; reinstall slice3d or use method='selftrain'"
        )
    out = SliceNetwork(**chosen.settings)
    out.load_state_dict({name: tensor.float() for name, tensor in read_weights(path).items()})
    return out.eval()
