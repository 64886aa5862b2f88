"""The weights that come with the package, trained across CT and MR subjects: of the plane network and of the 3D network over it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from slice3d.errors import ModelError
from slice3d.models.loading import read_weights
from slice3d.superres.network import SliceNetwork

if TYPE_CHECKING:
    from slice3d.superres.unet import VolumeNetwork

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Weights:
    """What the card beside the weights says. settings: arguments of `SliceNetwork`; volume_settings: of
    `VolumeNetwork`. sha256, volume_sha256: of their files."""

    name: str
    sha256: str
    settings: dict[str, Any]
    volume_sha256: str
    volume_settings: dict[str, Any]
    folder: Path


def weights(folder: Path = FOLDER) -> Weights:
    """Read the card. Raises `ModelError` when it is missing or damaged."""
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return Weights(
            f"{card['name']} {card['version']}", card["sha256"], card["network"], card["volume_sha256"],
            card["volume_network"], folder,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the super-resolution weights in {folder.name} cannot be read ({type(error).__name__}); expected model.json, "
            "weights.safetensors and volume.safetensors; reinstall slice3d or use method='selftrain'"
        ) from error


def network(chosen: Weights) -> SliceNetwork:
    """The plane network with its weights. Raises `ModelError` when they are damaged or not those of the card."""
    out = SliceNetwork(**chosen.settings)
    _fill(out, chosen.folder / "weights.safetensors", chosen.sha256)
    return out.eval()


def volume_network(chosen: Weights) -> VolumeNetwork:
    """The 3D network with its weights. Raises `ModelError` when they are damaged or not those of the card."""
    from slice3d.superres.unet import VolumeNetwork

    out = VolumeNetwork(**chosen.volume_settings)
    _fill(out, chosen.folder / "volume.safetensors", chosen.volume_sha256)
    return out.eval()


def _fill(network: nn.Module, path: Path, sha256: str) -> None:
    import hashlib

    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != sha256:
        raise ModelError(
            f"super-resolution weights: {path.name} has SHA-256 {found[:12]}; expected {sha256[:12]} as in its "
            "card; reinstall slice3d or use method='selftrain'"
        )
    state = {name: tensor.float() for name, tensor in read_weights(path).items()}
    # a parameter with several names is listed, and stored, under one
    if set(state) != {name for name, _ in network.named_parameters()}:
        raise ModelError(
            f"super-resolution weights: {path.name} does not fit the network of its card; reinstall slice3d or use "
            "method='selftrain'"
        )
    network.load_state_dict(state, strict=False)
