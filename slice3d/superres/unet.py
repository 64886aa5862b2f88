"""The 3D network over the plane network: it sees what either direction of planes answers, and mends it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from slice3d.superres.network import RATE, Frame, SliceNetwork

PAD = 4
_CELL = 2  # lines of either direction that are taken together
_PER_VOXEL = 2 * RATE + 1 + 3
# What brings inputs and answers near 1: without normalisation, that decides how fast the network learns.
_DETAIL, _APART, _SLICES, _ADDED, _GATE = 2.0, 8.0, 0.25, 0.1, 0.5


class VolumeNetwork(nn.Module):
    """(B, a, b, n · RATE) estimate, (B, a, b, n · RATE) by how much both directions of planes differ from it, (B, a, b, n)
    slices and (1 or B, 3) conditions of `network.condition_of` → (B, a, b, n · RATE) correction.

    A MONAI `DynUNet` with residual blocks and no normalisation (Lim 2017), at the slices' own resolution along the
    normal and half of it within the plane: 2×2 lines and the RATE samples of a slice are its channels (sub-pixel
    convolution, Shi 2016), 80 in all, since multiples of 16 are fast. It answers with detail to add and with a gate for
    the difference: which direction of planes to believe. Both start as zero. a and b must be multiples of 8, n of 2."""

    def __init__(self, *, filters: Sequence[int] = (48, 64, 96)) -> None:
        from monai.networks.nets.dynunet import DynUNet

        super().__init__()
        self.settings = {"filters": list(filters)}
        self.unet = DynUNet(
            3, _PER_VOXEL * _CELL**2, 2 * RATE * _CELL**2,
            kernel_size=[3] * 3, strides=[1, (2, 2, 1), 2], upsample_kernel_size=[(2, 2, 1), 2],
            filters=list(filters), norm_name="", res_block=True,
        )  # fmt: skip
        last = self.unet.output_block.conv.conv
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, fine: torch.Tensor, apart: torch.Tensor, slices: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """The correction in units of the input."""
        b, p, q, n = slices.shape
        x = torch.cat(
            [
                (fine.reshape(b, p, q, n, RATE) - slices[..., None]) * _DETAIL,
                apart.reshape(b, p, q, n, RATE) * _APART,
                slices[..., None] * _SLICES,
                condition[:, None, None, None, :].expand(b, p, q, n, 3).to(slices.dtype),
            ],
            dim=-1,
        )
        x = x.reshape(b, p // 2, 2, q // 2, 2, n, _PER_VOXEL).permute(0, 2, 4, 6, 1, 3, 5)
        x = x.reshape(b, -1, p // 2, q // 2, n).contiguous(memory_format=torch.channels_last_3d)
        y = self.unet(x).float().reshape(b, 2, 2, 2, RATE, p // 2, q // 2, n)
        added, gate = y.permute(3, 0, 5, 1, 6, 2, 7, 4).reshape(2, b, p, q, n * RATE)
        out: torch.Tensor = _ADDED * added + _GATE * gate * apart
        return out


def both_directions(
    network: SliceNetwork, slices: torch.Tensor, conditions: tuple[torch.Tensor, torch.Tensor], frame: Frame
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, a, b, n) slices → (B, a, b, n · RATE) the mean estimate of both directions of planes and half their difference.

    conditions: of planes whose lines run along b, and along a. frame: for n + 2 · PAD slices."""
    batch, p, q, n = slices.shape
    padded = torch.cat([slices[..., :1].expand(-1, -1, -1, PAD), slices, slices[..., -1:].expand(-1, -1, -1, PAD)], -1)
    first = network(padded.reshape(batch * p, q, -1), conditions[0]).reshape(batch, p, q, -1)
    turned = padded.transpose(1, 2).reshape(batch * q, p, -1)
    second = network(turned, conditions[1]).reshape(batch, q, p, -1).transpose(1, 2)
    first, second = first.float(), second.float()
    inner = slice(PAD * RATE, (PAD + n) * RATE)
    null = frame.null[:, inner].to(slices.device)
    fine = padded @ frame.base[:, inner].to(slices.device) + 0.5 * (first + second) @ null
    return fine, 0.5 * (first - second) @ null
