"""Whole-volume inference while training, and overlap with what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from slice3d.errors import InputError
from slice3d.training.cases import Case
from slice3d.training.crops import normalised
from slice3d.training.losses import FIRST_PARTIAL
from slice3d.training.settings import TrainSettings

Array = NDArray[Any]


@torch.no_grad()
def probabilities(
    network: torch.nn.Module, image: Array, settings: TrainSettings, *, overlap: float = 0.5
) -> torch.Tensor:
    """(C, i, j, k) float32 softmax of the network over a whole image (HU), tile by tile."""
    from monai.inferers.utils import sliding_window_inference

    x = torch.from_numpy(normalised(np.asarray(image, np.float32), settings.intensity))[None, None]
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()

    def forward(tile: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tile.device.type, dtype=torch.bfloat16):
            out: torch.Tensor = network(tile.to(memory_format=torch.channels_last_3d))
        return torch.softmax(out.float(), dim=1)

    out = sliding_window_inference(
        x.to(device), settings.patch_size, 1, forward, overlap=overlap, mode="gaussian", padding_mode="constant",
        cval=float(x.min()),
    )  # fmt: skip
    network.train(was_training)
    return out[0].cpu()


def dice_by_class(predicted: Array, truth: Array, classes: Sequence[int]) -> dict[int, float]:
    """Dice of each class that is in `truth`, over the voxels where the truth is known."""
    known = truth < FIRST_PARTIAL
    out = {}
    for value in classes:
        a, b = (predicted == value) & known, truth == value
        if b.any():
            out[value] = float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return out


class WholeVolumes:
    """Validation for `loop.fit`: Dice per structure and case, by whole-volume inference.

    Raises `InputError` for a case whose voxels are not those of `settings`: it would look larger or smaller than it is.
    """

    def __init__(self, cases: Sequence[Case], settings: TrainSettings) -> None:
        for case in cases:
            if not np.allclose(case.spacing_mm, settings.spacing_mm, rtol=1e-3):
                raise InputError(
                    f"validation case {case.name} has voxels of {case.spacing_mm} mm; expected {settings.spacing_mm} mm"
                )
        self.cases = list(cases)
        self.settings = settings

    def __call__(self, network: torch.nn.Module) -> dict[str, float]:
        """`case/structure` → Dice."""
        scores = {}
        for case in self.cases:
            predicted = probabilities(network, case.image, self.settings).argmax(0).numpy().astype(np.uint8)
            truth = case.labels
            if self.settings.context:  # in use these count to one of the classes
                merged = int(self.settings.arguments.get("context_of", 0))
                truth = np.where(np.isin(truth, list(self.settings.context)), merged, truth)
            for value, dice in dice_by_class(predicted, truth, list(self.settings.labels)).items():
                scores[f"{case.name}/{self.settings.labels[value]}"] = dice
        return scores
