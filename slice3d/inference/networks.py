"""The networks of a package, loaded once: every fold on its device, in its number format, ready to be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from slice3d.errors import ModelError
from slice3d.inference import memory
from slice3d.inference.settings import InferenceSettings
from slice3d.models.package import ModelPackage

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Fold:
    """One network; head: its last, linear step where that was taken off to come after averaging."""

    network: nn.Module
    head: Any = None


class Networks:
    """The folds of one package on one device.

    channels_out: scores per voxel; width: values per voxel that tiles add up (fewer where the head comes later).
    Raises `ModelError` when the weights do not match their hash or the architecture.
    """

    def __init__(self, package: ModelPackage, folds: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        import torch

        from slice3d.models.loading import load_network, quicken, split_head

        self.package, self.device, self.dtype = package, device, dtype
        self.channels_out = len(package.regions) if package.activation == "sigmoid" else max(package.labels) + 1
        self.width = self.channels_out
        self.folds: list[Fold] = []
        self._activation_gib: float | None = None
        for fold in folds:
            network = load_network(package, fold)
            head = None
            if len(folds) == 1 and (head := split_head(network, fewer_than=self.channels_out)) is not None:
                head = replace(head, weight=head.weight.to(device), bias=head.bias.to(device))
                self._check(len(head.weight))
                self.width = int(head.weight.shape[1])
            if device.type == "cpu":
                quicken(network)
                network = network.to(dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            else:
                network = network.to(device)
            self.folds.append(Fold(network, head))

    def forward(self, fold: Fold, batch: torch.Tensor) -> torch.Tensor:
        """(N, C, …) image → (N, width, …) in the network's number format. Raises `ModelError` for another shape."""
        import torch

        if self.device.type == "cpu":
            batch = batch.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
            out = fold.network(batch)
        else:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                out = fold.network(batch)
        while isinstance(out, (tuple, list)):
            out = out[0]
        if out.shape[1] != self.width or out.shape[2:] != batch.shape[2:]:
            raise ModelError(
                f"network of model {self.package.name!r} returns shape {tuple(out.shape)} for {tuple(batch.shape)}; "
                f"expected {self.width} channels of the same size; the package's description is wrong"
            )
        return out  # type: ignore[no-any-return]

    def _check(self, classes: int) -> None:
        if classes != self.channels_out:
            raise ModelError(
                f"network of model {self.package.name!r} gives {classes} scores per voxel, its labels need "
                f"{self.channels_out}; the package's description is wrong"
            )

    def scores(self, averaged: torch.Tensor) -> torch.Tensor:
        """(…, width) averaged values → (…, channels_out) float32 scores. Raises `ModelError` for NaN or infinity."""
        return self.checked(self.last_layer(averaged))

    def last_layer(self, averaged: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(…, width) averaged values → (…, channels_out) float32 scores: what is linear is done once, after averaging.

        out: memory for them, used where they are not the averaged values themselves.
        """
        import torch

        head = self.folds[0].head
        if head is None:
            return averaged
        flat = averaged.reshape(-1, averaged.shape[-1])
        flat_out = None if out is None else out.view(-1, out.shape[-1])
        return torch.addmm(head.bias, flat, head.weight.T, out=flat_out).view(*averaged.shape[:-1], -1)

    def checked(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores. Raises `ModelError` for NaN or infinity among them."""
        from slice3d.models.loading import finite

        if not finite(scores):
            raise ModelError(
                f"model {self.package.name!r} gave NaN or infinite scores in {self.dtype}; "
                "check the image for extreme values, or calculate in float32 (InferenceSettings.precision)"
            )
        return scores

    def activation_gib(self) -> float:
        """Memory of one forward pass of one tile."""
        if self._activation_gib is None:
            shape = (1, len(self.package.channels), *self.package.patch_size)
            size = 4 if self.dtype.itemsize == 4 else 2
            network = self.folds[0].network
            strides = self.package.network_arguments.get("strides") or getattr(network, "strides", None)
            self._activation_gib = memory.activation_gib(network, shape, size, strides)
        return self._activation_gib


def mirror_axes(package: ModelPackage, settings: InferenceSettings) -> tuple[int, ...]:
    """The network axes to average flips over."""
    return package.sampling.mirror_axes if settings.mirror is not False else ()


def flips(package: ModelPackage, settings: InferenceSettings) -> list[tuple[int, ...]]:
    """Every combination of the mirrored axes, the unflipped one first."""
    axes = mirror_axes(package, settings)
    return [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]
