"""Deep supervision for networks that have none of their own: heads on the decoder, used in training, never exported."""

from __future__ import annotations

from typing import Any

import torch

from slice3d.models.subpixel import SubpixelUNet


class AuxiliaryHeads(torch.nn.Module):
    """A MONAI `UNet` with a 1×1×1 classifier on the output of each decoder level but the finest and the deepest.

    A `SubpixelUNet` has one on each decoder level, the finest included: that one is half as fine as the output.

    In training mode `forward` returns the list [finest, next coarser, …]: level n has every 2ⁿ-th voxel. In evaluation
    mode it is the network alone. `network` is what is exported.
    """

    def __init__(self, network: torch.nn.Module, levels: int = 3) -> None:
        super().__init__()
        self.network = network
        self._seen: list[torch.Tensor] = []
        self.heads = torch.nn.ModuleList()
        if isinstance(network, SubpixelUNet):
            ups = list(network.inner.upsamples)[-levels:]
            for up, width in zip(reversed(ups), network.filters, strict=False):
                up.register_forward_hook(self._keep)
                self.heads.append(torch.nn.Conv3d(width, network.training_channels, 1))
            return
        block: Any = network.model  # Sequential(down, SkipConnection(deeper block), up)
        classes = int(network.out_channels)  # type: ignore[arg-type]
        for _ in range(levels):
            block = block[1].submodule
            if not (isinstance(block, torch.nn.Sequential) and len(block) == 3):
                break
            block.register_forward_hook(self._keep)
            self.heads.append(torch.nn.Conv3d(_channels(block[2]), classes, 1))

    def _keep(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self.training:
            self._seen.append(output)

    def forward(self, x: torch.Tensor) -> Any:
        """x: (B, 1, i, j, k). Returns logits, or in training mode a list of them, finest first."""
        self._seen.clear()
        out = self.network(x)
        if not self.training:
            return out
        # hooks fire from the deepest block outwards
        coarse = [head(features) for head, features in zip(self.heads, reversed(self._seen), strict=True)]
        self._seen.clear()
        return [out, *coarse]


def _channels(block: torch.nn.Module) -> int:
    convolutions = [m for m in block.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.ConvTranspose3d))]
    return int(convolutions[-1].out_channels)
