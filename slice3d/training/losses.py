"""Dice + cross-entropy where some voxels are known only to be one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

FIRST_PARTIAL = 250


class PartialDiceCE(torch.nn.Module):
    """Soft Dice of each class on the voxels where it is known whether they are of it, marginal cross-entropy on all.

    partial: label number (≥ 250) → classes possible there; a voxel of such a label costs −log of their summed
    probability (Shi et al. 2021, doi:10.1016/j.media.2021.101979). Classes absent from the crop add no Dice term: their
    false positives are left to the cross-entropy. With no partial labels this is the usual Dice + cross-entropy.
    weights: class → how often its voxels count in the cross-entropy. A class that is rare and looks much like what is
    around it otherwise dies out: once its probability is near nothing, so is the slope of its Dice.
    """

    def __init__(
        self,
        classes: int,
        partial: Mapping[int, tuple[int, ...]] | None = None,
        smooth: float = 20.0,
        weights: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        kept = {value: tuple(c for c in allowed if c < classes) for value, allowed in (partial or {}).items()}
        self.partial = {value: allowed for value, allowed in kept.items() if 0 < len(allowed) < classes}
        self.smooth = smooth
        self.weights = torch.ones(256)
        for value, weight in (weights or {}).items():
            self.weights[value] = weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits: (B, C, …). labels: (B, …) integers. Returns a scalar."""
        if int(labels.max()) < FIRST_PARTIAL:
            return _DiceCE.apply(logits, labels, self.weights, self.smooth)  # type: ignore[no-any-return,no-untyped-call]
        return _PartialDiceCE.apply(logits, labels, self._allowed(), self.weights, self.smooth)  # type: ignore[no-any-return,no-untyped-call]

    def _allowed(self) -> torch.Tensor:
        """(256, C) 1.0 where a label number leaves a class possible; numbers that say nothing leave them all."""
        table = torch.ones((256, self.classes))
        table[: self.classes] = torch.eye(self.classes)
        for value, classes in self.partial.items():
            table[value] = 0.0
            table[value, list(classes)] = 1.0
        return table


def _shares(logits: torch.Tensor) -> torch.Tensor:
    """(B, C, …) → (voxels, C) float32 softmax; torch's own of so few values in a row takes longer on a CPU."""
    classes = logits.shape[1]
    share = torch.empty((logits.numel() // classes, classes), device=logits.device)
    share.copy_(logits.movedim(1, -1).reshape(-1, classes))
    share.sub_(share.amax(1, keepdim=True)).exp_()
    return share.mul_((share @ torch.ones(classes, device=share.device)).reciprocal_()[:, None])


class _DiceCE(torch.autograd.Function):
    """`PartialDiceCE` where every class is known, with its gradient written out.

    On a CPU automatic differentiation passes over the scores of many classes a dozen times, a third of a training step;
    here it is three times.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smooth: float
    ) -> torch.Tensor:
        share = _shares(logits)
        truth = labels.reshape(-1, 1).long()
        weight = weights.to(share.device)[truth] / len(share)
        hit = share.gather(1, truth)
        sums = share.sum(0)
        hits, sizes = (
            torch.zeros_like(sums).index_add(0, truth[:, 0], t) for t in (hit[:, 0], torch.ones_like(hit[:, 0]))
        )
        present = sizes > 0
        present[0] = False
        below = sums + sizes + smooth
        count = max(1, int(present.sum()))
        ctx.save_for_backward(share, truth, hit, weight)
        ctx.by_sum = torch.where(present, (2 * hits + smooth) / below**2 / count, 0)
        ctx.by_hit = torch.where(present, -2 / below / count, 0)
        ctx.shape, ctx.dtype = logits.movedim(1, -1).shape, logits.dtype
        dice = ((2 * hits + smooth) / below)[present]
        entropy = -(hit.clamp_min(torch.finfo(torch.float32).tiny).log() * weight).sum()
        return entropy + (1 - dice.mean() if len(dice) else 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        share, truth, hit, weight = ctx.saved_tensors
        mine = hit * ctx.by_hit[truth[:, 0], None]
        common = weight - (share @ ctx.by_sum)[:, None] - mine
        out = (share * common).addcmul_(share, ctx.by_sum)
        out.scatter_add_(1, truth, mine - weight).mul_(gradients[0])
        return out.to(ctx.dtype).reshape(ctx.shape).movedim(-1, 1), None, None, None


class _PartialDiceCE(torch.autograd.Function):
    """`PartialDiceCE` where some voxels are known in part only, with its gradient written out."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, table: torch.Tensor, weights: torch.Tensor, smooth: float
    ) -> torch.Tensor:
        classes = logits.shape[1]
        share = _shares(logits)
        flat = labels.reshape(-1).long()
        table = table.to(share.device)
        said = (table.sum(1) < classes)[flat].float()  # voxels about which anything is known
        known = (flat < FIRST_PARTIAL).float()
        # a class that a partial label rules out is a false positive there: else borders would creep into such voxels
        told = 1 - table
        told[:FIRST_PARTIAL] = 1.0
        told = told[flat]
        truth = torch.where(flat < FIRST_PARTIAL, flat, 0)[:, None]
        possible = share * table[flat]
        chance = (possible @ torch.ones(classes, device=share.device)).clamp_min_(torch.finfo(torch.float32).tiny)
        count = max(1.0, float(said.sum()))
        weight = said * weights.to(share.device)[flat] / count
        sums = (share * told).sum(0)
        hits, sizes = (
            torch.zeros_like(sums).index_add(0, truth[:, 0], t) for t in (share.gather(1, truth)[:, 0] * known, known)
        )
        present = sizes > 0
        present[0] = False
        below = sums + sizes + smooth
        terms = max(1, int(present.sum()))
        by_sum = torch.where(present, (2 * hits + smooth) / below**2 / terms, 0)
        by_hit = torch.where(present, -2 / below / terms, 0)
        ctx.save_for_backward(share, possible, chance, weight, known, told, truth, by_sum, by_hit)
        ctx.shape, ctx.dtype = logits.movedim(1, -1).shape, logits.dtype
        dice = ((2 * hits + smooth) / below)[present]
        entropy = -(chance.log() @ weight)
        return entropy + (1 - dice.mean() if len(dice) else 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        share, possible, chance, weight, known, told, truth, by_sum, by_hit = ctx.saved_tensors
        mine = share.gather(1, truth) * by_hit[truth[:, 0], None] * known[:, None]
        slope = told * by_sum
        common = (weight - (share * slope).sum(1))[:, None] - mine
        out = share * common
        out.addcmul_(possible, (-weight / chance)[:, None])
        out.addcmul_(share, slope)
        out.scatter_add_(1, truth, mine).mul_(gradients[0])
        return out.to(ctx.dtype).reshape(ctx.shape).movedim(-1, 1), None, None, None, None


class DeepSupervision(torch.nn.Module):
    """The same loss on coarser outputs, halved weights from level to level, as nnU-Net does."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """outputs: logits (B, C, …); or those of several levels, finest first: a list, each with its own number of
        voxels, or stacked as (B, D, C, …) the way MONAI's DynUNet gives them, blown up to full size.
        """
        if isinstance(outputs, torch.Tensor):
            if outputs.ndim == labels.ndim + 1:
                return self.loss(outputs, labels)  # type: ignore[no-any-return]
            outputs = [outputs[:, n] for n in range(outputs.shape[1])]
        total, weights = torch.zeros((), device=labels.device), 0.0
        for level, logits in enumerate(outputs):
            steps = [max(1, round(n / m)) for n, m in zip(labels.shape[1:], logits.shape[2:], strict=True)]
            total = total + 0.5**level * self.loss(logits, labels[:, :: steps[0], :: steps[1], :: steps[2]])
            weights += 0.5**level
        return total / weights
