"""Group norm whose gradient is computed in the memory layout that convolutions of a CPU are fastest in."""

from __future__ import annotations

from typing import Any

import torch

_LAYOUT = torch.channels_last_3d


def with_quick_gradients(network: torch.nn.Module) -> torch.nn.Module:
    """Replace every `GroupNorm` inside by one that trains faster on a CPU; parameters and their names stay."""
    for name, child in network.named_children():
        if type(child) is torch.nn.GroupNorm and child.affine:
            quick = _GroupNorm(child.num_groups, child.num_channels, eps=child.eps)
            quick.weight, quick.bias = child.weight, child.bias
            setattr(network, name, quick)
        else:
            with_quick_gradients(child)
    return network


class _GroupNorm(torch.nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.ndim != 5 or input.device.type != "cpu":
            return super().forward(input)
        return _Normalise.apply(input, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-any-return,no-untyped-call]


class _Normalise(torch.autograd.Function):
    """torch's own gradient takes a quarter of a small network's training step where channels come last."""

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        batch, channels = values.shape[:2]
        out, mean, scale = torch.native_group_norm(
            values, weight, bias, batch, channels, values[0, 0].numel(), groups, eps
        )
        ctx.save_for_backward(values, mean, scale, weight)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        values, mean, scale, weight = ctx.saved_tensors
        batch, channels = values.shape[:2]
        voxels, groups = values[0, 0].numel(), ctx.groups
        each = channels // groups
        # several voxels make one row: torch is slow over rows of so few channels
        beside = next(n for n in (32, 16, 8, 4, 2, 1) if voxels % n == 0)

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            last = tensor.contiguous(memory_format=_LAYOUT).movedim(1, -1)
            return last.reshape(batch, voxels // beside, beside * channels)

        def total(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.sum(1, dtype=torch.float32).view(batch, beside, groups, each).sum(1)

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            every = tensor.expand(batch, groups, each).reshape(batch, 1, 1, channels)
            return every.expand(batch, 1, beside, channels).reshape(batch, 1, -1).to(slope.dtype)

        slope, seen = rows(gradients[0]), rows(values)
        mean, scale = (t.float().view(batch, groups, 1) for t in (mean, scale))
        by_bias = total(slope)
        by_weight = (total(slope * seen) - mean * by_bias) * scale
        factor = weight.float().view(1, groups, each)
        shift = (by_bias * factor).sum(2, keepdim=True) / (voxels * each)
        tilt = (by_weight * factor).sum(2, keepdim=True) / (voxels * each)
        out = (slope * repeated(scale * factor)).addcmul_(seen, repeated(-(scale**2) * tilt))
        out.add_(repeated(scale**2 * tilt * mean - scale * shift))
        by_input = out.view(batch, *values.shape[2:], channels).movedim(-1, 1)
        by_weight, by_bias = (t.sum(0).reshape(-1).to(weight.dtype) for t in (by_weight, by_bias))
        return by_input, by_weight, by_bias, None, None
