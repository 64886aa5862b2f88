"""Tiles in, finished planes out: one pass over an image with weights adding up in a buffer as deep as one patch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slice3d.inference.case import Axes, Case, permuted
from slice3d.inference.networks import Fold, Networks
from slice3d.inference.tiles import importance, tile_starts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sweep:
    """One pass over tiles: how much they overlap, which flips and folds are averaged."""

    overlap: float
    flips: Sequence[tuple[int, ...]]
    folds: Sequence[Fold]


def planes(
    networks: Networks, case: Case, sweep: Sweep, low: NDArray[Any], high: NDArray[Any]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Weighted mean values of the box low…high, plane by plane: (index from `low`, (H, W, width)).

    Tiles lie where they lie for the whole image, so that a part of it comes out as the whole would.
    """
    import torch

    package, run, device = networks.package, case.run, networks.device
    size = permuted(package.patch_size, case.order)
    low, high = low + case.offset, high + case.offset
    starts = [
        start
        for start in sorted(tile_starts(case.padded_shape, size, sweep.overlap, package.sampling.tiling))
        if all(s < b and s + p > a for s, p, a, b in zip(start, size, low, high, strict=True))
    ]
    origin = np.min(starts, axis=0)
    extent = np.max(starts, axis=0) + size - origin
    tile = importance(package.patch_size, package.sampling.tiling, package.sampling.blend)
    weight = torch.from_numpy(np.transpose(tile, case.order).copy()).to(device)
    image = torch.from_numpy(case.image)
    scores = torch.zeros((size[0], int(extent[1]), int(extent[2]), networks.width), device=device)
    total = torch.zeros(scores.shape[:3], device=device)
    inner = tuple(slice(int(low[n] - origin[n]), int(high[n] - origin[n])) for n in (1, 2))
    base, done = int(origin[0]), 0

    def finished(stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        for n in range(base, min(stop, int(high[0]))):
            if n >= low[0]:
                yield n - int(low[0]), scores[n - base][inner] / total[n - base][inner][..., None]

    for front, row in groupby(starts, key=lambda s: s[0]):
        yield from finished(front)
        base = _shift(scores, total, base, front)
        for some in _batches(list(row), run.plan.batch if run.plan else 1):
            start = time.perf_counter()
            here = [(s[0], s[1] - int(origin[1]), s[2] - int(origin[2])) for s in some]
            _add(networks, sweep, _cut(image, some, size, case.order).to(device), here, case.order,
                 (scores, total, weight))  # fmt: skip
            done += len(some)
            run.clock("network", start)
            case.progress("inference", done / len(starts))
    run.tiles += done
    yield from finished(int(high[0]))


def _cut(image: torch.Tensor, starts: Sequence[Axes], size: Axes, order: Axes) -> torch.Tensor:
    """(N, C, …) tiles of the image, along the network's axes."""
    import torch

    inverse = [order.index(n) for n in range(3)]
    tiles = []
    for start in starts:
        cut = tuple(slice(start[n], start[n] + size[n]) for n in inverse)
        tiles.append(image[(slice(None), *cut)])
    return torch.stack(tiles)


def _add(
    networks: Networks,
    sweep: Sweep,
    batch: torch.Tensor,
    places: Sequence[Axes],
    order: Axes,
    buffers: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Run one batch of tiles (all flips, all folds) and add its weighted values to the buffer."""
    scores, total, weight = buffers
    depth, height, width = weight.shape
    share = 1.0 / (len(sweep.flips) * len(sweep.folds))
    permutation = (order[0] + 1, order[1] + 1, order[2] + 1, 0)
    areas = [(slice(p[1], p[1] + height), slice(p[2], p[2] + width)) for p in places]
    for flip in sweep.flips:
        axes = [n + 2 for n in flip]
        for fold in sweep.folds:
            out = networks.forward(fold, batch.flip(axes) if flip else batch)
            if flip:
                out = out.flip(axes)
            for area, one in zip(areas, out, strict=True):
                tile = one.permute(permutation)
                for z in range(depth):
                    scores[z][area].addcmul_(tile[z].float(), weight[z, ..., None], value=share)
    for area in areas:
        total[(slice(None), *area)] += weight


def _shift(scores: torch.Tensor, total: torch.Tensor, base: int, front: int) -> int:
    """Move the unfinished planes to the start of the buffer and clear the rest."""
    step = front - base
    if step <= 0:
        return front
    keep = len(scores) - step
    for buffer in (scores, total):
        for n in range(max(keep, 0)):
            buffer[n] = buffer[n + step]
        buffer[max(keep, 0) :] = 0
    return front


def _batches(items: list[Axes], size: int) -> Iterator[list[Axes]]:
    for n in range(0, len(items), size):
        yield items[n : n + size]
