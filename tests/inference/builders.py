"""Tiny model packages for tests: random networks, and networks whose right answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slice3d.grid import Grid
from slice3d.models import ModelPackage, read_package
from slice3d.models.loading import write_weights
from slice3d.models.package import file_sha256
from slice3d.volume import Segmentation, Volume

ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [8, 12, 16],
    "norm_name": "instance",
}


def write_package(folder: Path, module: torch.nn.Module | list[torch.nn.Module], /, **fields: Any) -> ModelPackage:
    """Write a native package holding `module` (several: folds) and read it back."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = []
    for n, fold in enumerate(module if isinstance(module, list) else [module]):
        path = folder / f"weights{n}.safetensors"
        write_weights(fold.state_dict(), path)
        weights.append({"file": path.name, "sha256": file_sha256(path), "dtype": "float32"})
    description = {
        "format": "slice3d-model/1",
        "name": folder.name,
        "version": "1.0.0",
        "licence": "Apache-2.0",
        "modality": ["CT"],
        "labels": {"1": "liver", "2": "spleen", "3": "bone"},
        "spacing_mm": [3.0, 3.0, 3.0],
        "orientation": "RAS",
        "patch_size": [16, 16, 16],
        "intensity": {"scheme": "clip_zscore", "clip": [-200, 300], "mean": 0, "std": 100},
        "network": {"class": "monai.networks.nets.DynUNet", "arguments": ARGUMENTS},
        "activation": "softmax",
        "weights": weights,
        **fields,
    }
    (folder / "model.json").write_text(json.dumps(description))
    (folder / "README.md").write_text("card")
    return read_package(folder)


def random_network(seed: int = 0, **arguments: Any) -> torch.nn.Module:
    """A DynUNet with random weights and a lively output."""
    from monai.networks.nets import DynUNet

    torch.manual_seed(seed)
    network = DynUNet(**{**ARGUMENTS, **arguments})
    return network.eval()


class Pointwise(torch.nn.Module):
    """Class = the number of thresholds that the normalised value exceeds, voxel by voxel."""

    def __init__(self, thresholds: tuple[float, ...] = (-1.0, 0.0, 1.0)) -> None:
        super().__init__()
        steps = torch.tensor((0.0, *thresholds))
        self.slope = torch.nn.Parameter(torch.arange(len(steps)).float())
        self.offset = torch.nn.Parameter(-steps.cumsum(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1, 1)
        return x * self.slope.view(shape) + self.offset.view(shape)


def oblique_volume(shape: tuple[int, int, int] = (21, 33, 27), seed: int = 0, **fields: Any) -> Volume:
    """Air with a soft-tissue ellipsoid off centre, oblique, anisotropic, LPS-like axes."""
    rng = np.random.default_rng(seed)
    spacing = np.array([2.0, 1.5, 3.5])
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, -1, 1]) * spacing
    affine[:3, 3] = (30, 20, -40)
    grid = Grid(shape, affine)
    index = np.indices(shape).reshape(3, -1).T
    centre = np.array(shape) * (0.4, 0.55, 0.5)
    inside = (((index - centre) / (np.array(shape) * 0.35)) ** 2).sum(1) < 1
    data = np.where(inside, 60, -1000).reshape(shape) + rng.normal(0, 20, shape)
    return Volume(data.astype(np.int16), grid, **{"modality": "CT", **fields})


THRESHOLD: dict[str, Any] = {
    "class": "monai.networks.nets.UNet",
    "arguments": {
        "spatial_dims": 3, "in_channels": 1, "out_channels": 4, "channels": [1, 1], "strides": [1], "norm": None,
        "act": "RELU",
    },
}  # fmt: skip


def write_threshold_package(folder: Path, hu: float, **fields: Any) -> ModelPackage:
    """A package of a class that may be loaded, whose right answer is known: `liver` is whatever is above `hu`."""
    from monai.networks.nets import UNet

    network = UNet(**THRESHOLD["arguments"])
    weights = network.state_dict()
    for tensor in weights.values():
        tensor.zero_()
    first, last = (next(name for name in weights if name.startswith(f"model.{n}.")) for n in (0, 2))
    prefix_first, prefix_last = first.rpartition(".")[0], last.rpartition(".")[0]
    # normalised values are within −2…3: what is shifted by 10 passes the ReLU as it is
    weights[f"{prefix_first}.weight"][0, 0, 1, 1, 1] = 1.0
    weights[f"{prefix_first}.bias"][0] = 10.0
    weights[f"{prefix_last}.weight"][0, 1, 1, 1, 1] = 1.0
    weights[f"{prefix_last}.bias"][:] = torch.tensor([0.0, -10.0 - hu / 100.0, -100.0, -100.0])
    coarse = {"spacing_mm": [4.0, 4.0, 4.0], "patch_size": [48, 48, 48]}
    return write_package(folder, network, network=THRESHOLD, **{**coarse, **fields})


def coarse_grid(shape: tuple[int, int, int] = (60, 50, 40)) -> Grid:
    """Axes run to L, A, S; 4 × 3 × 5 mm."""
    affine = np.diag([-4.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = (100, -80, 20)
    return Grid(shape, affine)


def coarse_labels(
    boxes: dict[int, tuple[slice, slice, slice]], shape: tuple[int, int, int] = (60, 50, 40)
) -> Segmentation:
    """Boxes of liver (1), bone (2) and liver tumour (3) on `coarse_grid`; later ones lie over earlier ones."""
    array = np.zeros(shape, np.uint8)
    for value, box in boxes.items():
        array[box] = value
    return Segmentation(array, coarse_grid(shape), {1: "liver", 2: "bone", 3: "liver_tumor"})
