"""A U-Net that works on 2 × 2 × 2 blocks of voxels: fast to train where a network has many classes.

On a CPU most of a usual U-Net's training step goes into its finest level, whose few channels carry the least. Here a
block of eight voxels is one position with eight input channels, and the last layer gives all its eight voxels' scores at
once (sub-pixel convolution, Shi et al. 2016, doi:10.1109/CVPR.2016.207).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import nn


class SubpixelUNet(nn.Module):
    """MONAI's `DynUNet` between space-to-depth and depth-to-space; (N, C, i, j, k) → (N, out_channels, i, j, k).

    filters: channels of each level, finest first. context: further classes behind the first `out_channels` that it is
    trained to tell apart; in evaluation mode their probability is counted to class `context_of`. Sizes must be multiples
    of 2ⁿ, n the number of filters. Raises `ValueError` for arguments that do not fit.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, filters: Sequence[int], context: int = 0, context_of: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= context_of < out_channels or context < 0 or len(filters) < 3:
            raise ValueError(
                f"context {context} of class {context_of} and {len(filters)} levels; expected a class below "
                f"{out_channels}, no negative count and at least 3 levels"
            )
        self.out_channels, self.context, self.context_of = out_channels, context, context_of
        self.filters = tuple(filters)
        self.strides = (2,) * len(filters)  # as the other networks have them: each level's, finest first
        deeper = len(filters) - 1
        self.inner = DynUNet(
            spatial_dims=3, in_channels=8 * in_channels, out_channels=8 * self.training_channels,
            kernel_size=[3] * (deeper + 1), strides=[1] + [2] * deeper, upsample_kernel_size=[2] * deeper,
            filters=list(filters), norm_name=("GROUP", {"num_groups": 1}),
        )  # fmt: skip

    @property
    def training_channels(self) -> int:
        """Classes that are told apart while training."""
        return self.out_channels + self.context

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, i, j, k) → scores; in training mode (N, out_channels + context, i, j, k)."""
        scores = _to_space(self.inner(_to_depth(x)), self.training_channels)
        if self.training or not self.context:
            return scores
        # the logarithm of summed exponentials: after softmax exactly the sum of the probabilities
        parts = torch.cat((scores[:, self.context_of, None], scores[:, self.out_channels :]), dim=1).float()
        merged = torch.logsumexp(parts, dim=1, keepdim=True).to(scores.dtype)
        first, last = scores[:, : self.context_of], scores[:, self.context_of + 1 : self.out_channels]
        return torch.cat((first, merged, last), dim=1)


def _to_depth(x: torch.Tensor) -> torch.Tensor:
    """(N, C, 2i, 2j, 2k) → (N, 8 C, i, j, k), channels last in memory."""
    n, c, i, j, k = x.shape
    blocks = x.reshape(n, c, i // 2, 2, j // 2, 2, k // 2, 2).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return blocks.reshape(n, i // 2, j // 2, k // 2, 8 * c).permute(0, 4, 1, 2, 3)


def _to_space(x: torch.Tensor, channels: int) -> torch.Tensor:
    """(N, 8 · channels, i, j, k) → (N, channels, 2i, 2j, 2k), channels last in memory."""
    n, _, i, j, k = x.shape
    blocks = x.permute(0, 2, 3, 4, 1).reshape(n, i, j, k, 2, 2, 2, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return blocks.reshape(n, 2 * i, 2 * j, 2 * k, channels).permute(0, 4, 1, 2, 3)
